"""Claim 18 (NMC): class means of frozen features forget nothing."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmarks.claims._tasks import (
    MLP,
    TASKS,
    accuracy,
    classes_of,
    digits,
    rotation_pretext,
    task,
    untrained,
)
from benchmarks.claims.kit import Record, features, spread
from osteon.backbones import Backbone
from osteon.core import registry
from osteon.data import Dataset
from osteon.mergers._controls import Sequential
from osteon.parts.continual import Continual
from osteon.parts.types import Features

SEEDS = (0, 1, 2)
STARTS = ("untrained MLP", "rotation pretext", "raw pixels", "pretext, one layer earlier")


class Pixels(MLP):
    """The pixels themselves; nothing in it can be trained."""

    def __init__(self) -> None:
        super().__init__((64, 64))
        self.requires_grad_(False)
        self.train(False)

    def forward(self, x: Tensor, *, keep: Tensor | None = None, mask: Tensor | None = None,
                mask_token: Tensor | None = None) -> Features:
        pooled = x.flatten(1)
        return Features(pooled=pooled, tokens=pooled[:, None], grid=(1, 1))


def run(quick: bool = False) -> Record:
    """Learn the digits two at a time, by class means, by fine-tuning, and by training the head alone."""
    record = Record(
        18,
        "Frozen features plus running class means (NMC) beat most continual learning methods that start from the same "
        "pre-trained net (88.5% on 10-split CIFAR-100, averaged over the ten steps).",
        "Split digits (5 tasks x 2 classes), 3 seeds; three backbones: untrained MLP 64-256-256-64, rotation-pretext "
        "MLP, raw pixels.",
        "NMC - sequential fine-tuning (same start) >= 25 points on every seed; NMC after streaming equals batch NMC to "
        "1e-6; all three backbones printed. NOT claimed: that pre-training helps.")
    train, test = digits()
    epochs = 1 if quick else 10
    record.say(f"{len(train)} training and {len(test)} test digits, tasks 01 23 45 67 89. Fine-tuning: AdamW 1e-3, "
               f"{epochs} epochs a task, batch 32 (the control's defaults). Pretext: which of four turns, "
               f"{2 * epochs} epochs. Final accuracy on all ten classes, per cent, every seed:")
    record.say(f"{'':28}{'NMC':26}{'NMC, mean over the steps':26}{'sequential':26}head only")
    apart: list[float] = []
    gaps: dict[str, float] = {}
    for name in STARTS:
        found: dict[str, list[float]] = {"NMC": [], "steps": [], "sequential": [], "head": []}
        for seed in SEEDS:
            start = begin(name, train, seed, 2 * epochs)
            nmc = registry.build("merger", "nmc")
            steps = follow(nmc, start, train, test, seed)
            found["NMC"].append(steps[-1])
            found["steps"].append(float(np.mean(steps)))
            apart.append(distance_from_batch(nmc, start, train))
            for key, rule in (("sequential", Sequential(epochs=epochs)),
                              ("head", Sequential(epochs=epochs, head_only=True))):
                found[key].append(follow(rule, start, train, test, seed)[-1])
        gaps[name] = min(a - b for a, b in zip(found["NMC"], found["sequential"], strict=True))
        record.say(f"{name:28}" + "".join(f"{spread(values):26}" for values in found.values()).rstrip())
    record.say("Nothing in the pixels can be trained: there sequential fine-tuning is the head alone. The pretext's "
               "last layer, on which its classifier of four turns stands, has lost the digits' means; the layer before "
               "is printed beside and not judged.")
    for name in STARTS[:3]:
        record.check(f"{name}: NMC - sequential fine-tuning >= 25 points on every seed: least {gaps[name]:.1f}",
                     gaps[name] >= 25)
    record.check(f"class means after streaming are those of the whole to 1e-6: largest difference {max(apart):.1e}",
                 max(apart) <= 1e-6)
    return record


def begin(name: str, train: Dataset, seed: int, epochs: int) -> MLP:
    """The backbone that everything starts from."""
    if name == "untrained MLP":
        return untrained(seed)
    if name == "raw pixels":
        return Pixels()
    backbone = rotation_pretext(train, seed, epochs=epochs)
    return backbone if name == "rotation pretext" else backbone.without_last()


def follow(rule: Continual, start: Backbone, train: Dataset, test: Dataset, seed: int) -> list[float]:
    """Learn task after task; accuracy on all classes seen so far after each."""
    rule.begin(start, TASKS, seed)
    steps = []
    for number, classes in enumerate(TASKS, 1):
        rule.learn(task(train, classes, train))
        seen = tuple(c for part in TASKS[:number] for c in part)
        steps.append(accuracy(rule, task(test, seen, train)))
    return steps


def distance_from_batch(streamed: Continual, start: Backbone, train: Dataset) -> float:
    """Largest difference between streamed class means and those of all samples at once, taken plainly."""
    x, y = features(start, train, train).astype(np.float64), classes_of(train)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    together = torch.from_numpy(np.stack([unit[y == c].mean(0) for c in streamed.seen]))
    means: Tensor = streamed.means()  # type: ignore[attr-defined]
    return float((means - together).abs().max())
