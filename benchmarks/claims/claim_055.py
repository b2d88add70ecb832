"""Claim 55 (LST): a ladder beside the frozen network keeps few activations; LoRA keeps them all."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.claims._digits import accuracy, train
from benchmarks.claims.kit import Record, cifar, fit, spread
from osteon.adapters.meft import Bottleneck
from osteon.backbones import Backbone, build_backbone
from osteon.core import registry
from osteon.data import Dataset
from osteon.objectives.supervised import Supervised
from osteon.parts.adapter import Adapter
from osteon.parts.types import DataSpec
from osteon.verbs._adapt_cost import SavedBytes

SEEDS = (0, 1, 2)
PAIR = DataSpec("image", 3, 32, (0.0,) * 3, (1.0,) * 3, 1.0, 2)
ARMS: dict[str, tuple[str, dict[str, int]]] = {
    "full": ("full", {}), "LST r=8": ("lst", {"reduction": 8}), "LST r=4": ("lst", {"reduction": 4}),
    "LoRA r=8": ("lora", {"rank": 8})}


class Followed(nn.Module):
    """A frozen block and the residual bottleneck after it: the classical adapter, as a control."""

    def __init__(self, block: nn.Module, width: int, bottleneck: int) -> None:
        super().__init__()
        self.block, self.after = block, Bottleneck(width, bottleneck)

    def forward(self, x: Tensor, attend: Tensor | None = None) -> Tensor:
        out = self.block(x, attend)
        return out + self.after(out)


def vit(depth: int) -> Backbone:
    """Pre-norm ViT of width 128 with 64 patches and a class token at 32 x 32 pixels."""
    torch.manual_seed(0)
    return build_backbone("vit_mini", channels=3, size=32, depth=depth, pool="cls")


def build(name: str, backbone: Backbone, spec: DataSpec, **options: object) -> Adapter:
    """An adapter by its card's name."""
    return registry.build("adapter", name, backbone, spec, **options)


def bottlenecks(backbone: Backbone, spec: DataSpec, bottleneck: int = 32) -> Adapter:
    """A bottleneck after every block of an otherwise frozen network."""
    adapter = build("full", backbone, spec)
    adapter.backbone.requires_grad_(False)
    blocks = cast(nn.ModuleList, adapter.backbone.get_submodule("blocks"))
    for i, block in enumerate(blocks):
        blocks[i] = Followed(block, backbone.token_dim, bottleneck)
    return adapter


def kept_bytes(adapter: Adapter, batch: int = 16) -> int:
    """Bytes of distinct tensors that autograd keeps between forward and backward, weights excluded."""
    images = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with SavedBytes(adapter) as kept:
        total = F.cross_entropy(adapter.train()(images), torch.arange(batch) % 2)
        held = kept.total
        total.backward()
    return held


def run(quick: bool = False) -> Record:
    """Count what is kept; then adapt a trained network to two new classes."""
    record = Record(
        55, "Training a slim ladder side network on a frozen backbone needs 69% less memory than full fine-tuning, "
        "where other parameter-efficient methods save only 26% (2.7x more saving).",
        "Pre-norm ViT d=128, L in {6,12}, 65 tokens, batch 16; LST r=8 and r=4; LoRA r=8 on every linear; bottleneck "
        "adapter 32 after every block. Accuracy (reported): vit_tiny (d=64, L=5, for time) trained on 4,000 images of "
        "CIFAR-10's classes 0-7 for 400 steps of 64, adapted to classes 8-9 (1,000 images, 300 steps of 16, the "
        "adapters' recipes, crop and mirror, 3 seeds), tested on the 2,000 test images of these classes.",
        "Saved bytes LST(r=8) <= 0.31 x full (paper's 69% saving) and LST(r=4) <= 0.40 x full; LoRA on all linears >= "
        "0.90 x full; accuracy within 3 points of LoRA (report, not gate).")
    for depth in (6, 12):
        kept = {name: kept_bytes(build(method, vit(depth), PAIR, **options))
                for name, (method, options) in ARMS.items()}
        kept["bottleneck adapter"] = kept_bytes(bottlenecks(vit(depth), PAIR))
        share = {name: value / kept["full"] for name, value in kept.items()}
        record.say(f"L={depth}: " + ", ".join(f"{name} {kept[name] / 2**20:.2f} MiB ({share[name]:.3f})"
                                              for name in kept))
        record.check(f"L={depth}: LST r=8 keeps {share['LST r=8']:.3f} of full (<= 0.31)", share["LST r=8"] <= 0.31)
        record.check(f"L={depth}: LST r=4 keeps {share['LST r=4']:.3f} of full (<= 0.40)", share["LST r=4"] <= 0.40)
        record.check(f"L={depth}: LoRA on all linears keeps {share['LoRA r=8']:.3f} of full (>= 0.90)",
                     share["LoRA r=8"] >= 0.90)
    accuracies(record, quick)
    return record


def classes(source: Dataset, wanted: range, limit: int) -> Dataset:
    """The first images of some classes, renumbered from 0."""
    assert source.labels is not None
    rows = np.flatnonzero(np.isin(source.labels, wanted))[:limit]
    names = [source.class_names[c] for c in wanted]
    return Dataset.from_arrays(np.asarray(source.images[rows]), source.labels[rows] - wanted[0], class_names=names)


def accuracies(record: Record, quick: bool) -> None:
    """Report how well each arm learns two classes the network has not seen."""
    whole, test_all = cifar("train"), cifar("test")
    known = classes(whole, range(8), 200 if quick else 4000)
    pool, test = classes(whole, range(8, 10), 10_000), classes(test_all, range(8, 10), 50 if quick else 2000)
    torch.manual_seed(0)
    first = Supervised(build_backbone("vit_tiny", channels=3, size=32), known.spec)
    fit(first, known, steps=2 if quick else 400, batch_size=64)
    spec = replace(pool.spec, mean=known.spec.mean, std=known.spec.std)
    pool, test = replace(pool, spec=spec), replace(test, spec=spec)
    mean = {}
    for name, (method, options) in ARMS.items():
        found = []
        for seed in SEEDS[: 1 if quick else None]:
            some = pool.subset(np.sort(np.random.default_rng(seed).permutation(len(pool))[:1000]))
            torch.manual_seed(seed)
            adapter = build(method, first.backbone, spec, **options)
            train(adapter, some, steps=2 if quick else 300, batch=16, lr=adapter.recipe["lr"], seed=seed,
                  augment="crop_flip")
            found.append(accuracy(adapter, test))
        mean[name] = float(np.mean(found))
        record.say(f"accuracy on classes 8-9, {name}: {spread(found)}")
    for name in ("LST r=8", "LST r=4"):
        gap = mean[name] - mean["LoRA r=8"]
        record.say(f"{name} - LoRA: {gap:+.1f} points ({'within' if gap >= -3 else 'not within'} 3; not judged)")
