"""Claim 82 (Zero-TPrune): tokens chosen by the attention graph can leave a trained ViT at little loss."""

from __future__ import annotations

import copy
import statistics
import time
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.claims._classifiers import accuracy, calibration_of, classifier, digits
from benchmarks.claims.kit import Record, spread
from osteon.backbones import Backbone, build_backbone
from osteon.core import registry
from osteon.data import Dataset
from osteon.parts.compressor import Budget, search, spent
from osteon.parts.surgery import replace_layer
from osteon.parts.token_pruning import TokenPruning

DRAWS = 5
TARGETS = (0.70, 0.60, 0.50)


class RandomTokens(TokenPruning):
    """As many tokens stay as asked, chosen at random."""

    random: torch.Generator

    def _look(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.rand(len(x), x.shape[1] - self.prefix, generator=self.random), x


class LeastAttended(TokenPruning):
    """As many tokens stay as asked; those go that the class token attends to least."""

    def _look(self, x: Tensor) -> tuple[Tensor, Tensor]:
        block: Any = self.block
        return block.attn.attention_weights(block.norm1(x)).mean(1)[:, 0, self.prefix:], x


def run(quick: bool = False) -> Record:
    """Train once, prune at three budgets, by three rules."""
    record = Record(
        82,
        "Zero-TPrune removes tokens by attention page-rank and similarity with no training: DeiT-S FLOPs -34.7%, "
        "accuracy -0.4 points.",
        "ViT d=128 L=6 with 64 tokens and a class token; pruned after blocks 2 and 4. The protocol's CIFAR-10 network "
        "of >= 55% takes hours on one thread, so the images are scikit-learn's digits (8 x 8, patch 1), which minutes "
        "suffice for.",
        "FLOPs -30% or more with accuracy loss <= 0.5 x loss of random dropping at the same FLOPs, and <= 3 points.")
    train, test = digits()
    torch.manual_seed(0)
    network = build_backbone("vit_tiny", channels=1, size=8, dim=128, depth=6, heads=4, patch=1, pool="cls")
    steps = 2 if quick else 40 * (len(train) // 64)
    if quick:
        train, test = train.subset(np.arange(128)), test.subset(np.arange(64))
    head = classifier(network, train, steps=steps, batch_size=64, seed=0)
    full = accuracy(network, head, test, train)
    record.say(f"{len(train)} training and {len(test)} test digits, {steps} steps of 64, seed 0: accuracy {full:.1f}; "
               f"random dropping: {DRAWS} draws")
    for target in TARGETS:
        door = registry.build("compressor", "zero_tprune", blocks="1,3")
        pruned = door(network, Budget("flops", target), calibration_of(train, train, count=64))
        judge(record, target, network, pruned, head, full, train, test, door.notes[0])
    return record


def judge(record: Record, target: float, network: Backbone, pruned: Backbone, head: nn.Module, full: float,
          train: Dataset, test: Dataset, note: str) -> None:
    """Score one budget beside its controls; the first is compared with the threshold."""
    whole, limit = spent(network, "flops"), Budget("flops", spent(pruned, "flops"), share=False)
    share, mine = limit.value / whole, full - accuracy(pruned, head, test, train)
    least, _ = search("least attended", network, limit, lambda s: instead(pruned, LeastAttended, 1 - s))
    rival, strength = search("random", network, limit, lambda s: instead(pruned, RandomTokens, 1 - s))
    losses = [full - accuracy(instead(pruned, RandomTokens, 1 - strength, draw), head, test, train)
              for draw in range(DRAWS)]
    record.say(f"FLOPs {share:.3f} x ({note}); least attended {spent(least, 'flops') / whole:.3f} x, random "
               f"{spent(rival, 'flops') / whole:.3f} x; wall {wall(network, pruned):.2f} x")
    by_class = full - accuracy(least, head, test, train)
    record.say(f"  points lost: Zero-TPrune {mine:.1f}; least attended {by_class:.1f}; random {spread(losses)}")
    if target == TARGETS[0]:
        lost = float(np.mean(losses))
        record.check(f"FLOPs {100 * (share - 1):.1f} % (<= -30 %)", share <= 0.70)
        record.check(f"{mine:.1f} points lost (<= 0.5 x random's {lost:.1f}, and <= 3)", mine <= min(0.5 * lost, 3))


def instead(pruned: Backbone, kind: type[TokenPruning], keep: float, draw: int = 0) -> Backbone:
    """A copy of a pruned network whose tokens leave at the same places by another rule; a share ``keep`` stays."""
    made = copy.deepcopy(pruned)
    for name, module in list(made.named_modules()):
        if isinstance(module, TokenPruning):
            new = kind(module.block, prefix=module.prefix, keep_importance=max(0.02, keep), keep_similarity=1.0,
                       iterations=1)
            if isinstance(new, RandomTokens):
                new.random = torch.Generator().manual_seed(draw)
            replace_layer(made, name, new)
    return made


@torch.inference_mode()
def wall(network: Backbone, pruned: Backbone) -> float:
    """Median seconds of a batch of 64, pruned over whole, in turn."""
    x, times = torch.randn(64, 1, 8, 8), cast("list[tuple[float, float]]", [])
    for _ in range(6):
        marks = [time.perf_counter()]
        for each in (network, pruned):
            each(x)
            marks.append(time.perf_counter())
        times.append((marks[1] - marks[0], marks[2] - marks[1]))
    return statistics.median(t[1] for t in times[1:]) / statistics.median(t[0] for t in times[1:])
