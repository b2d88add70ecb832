"""Claim 26 (POA): one self-distillation run with elastic students gives networks of many sizes."""

from __future__ import annotations

import copy
from typing import cast

import numpy as np
import torch
from lightning_fabric import Fabric

from benchmarks.claims._classifiers import calibration_of, trainer
from benchmarks.claims.kit import Record, cifar, features, fit, knn, spread
from osteon.backbones import Backbone, build_backbone
from osteon.backbones.vit import ViT
from osteon.compressors.poa import Elastic, Size, extract_size, sizes, slice_forward
from osteon.core import registry
from osteon.data import Dataset
from osteon.objectives.dino import DINO
from osteon.parts.compressor import Budget
from osteon.parts.flops import count_step
from osteon.parts.objective import Objective
from osteon.parts.types import Step
from osteon.train.loop import Engine
from osteon.train.settings import resolve_settings

SEEDS = (0, 1)
STEPS, BATCH = 150, 64
DRAWS = 30


def network(seed: int) -> ViT:
    """The ViT that both methods start from."""
    torch.manual_seed(seed)
    return cast(ViT, build_backbone("vit_tiny", channels=3, size=32, dim=128, depth=6, heads=4, patch=8))


def run(quick: bool = False) -> Record:
    """Train POA and DINO for as many steps from the same start, and slice both the same way."""
    record = Record(
        26,
        "One self-distillation run with elastic students (POA) yields about 100 usable model sizes.",
        f"Unlabelled CIFAR-10 subset (10k), ViT d=128 L=6 (patch 8), 12 slices, {STEPS} steps of {BATCH} (short of the "
        "protocol's 5 minutes on one thread); kNN with 1,000 known on 2,000 test images; 1 seed + 1 repeat. Control: "
        "DINO with two full crops, cut to the same slices. Not run: every size trained alone (the smallest only).",
        "Sliced model equals in-place slice to 1e-6 (exact); all slices beat the naive slice of a plain DINO run (mean "
        ">= +3 points kNN); one-run cost <= 0.35 x training 9 sizes separately at equal steps. The absolute kNN stays "
        "low (30-40%).")
    train, bank, test = (cifar(part, 100 if quick else count) for part, count in (
        ("train", 10_000), ("train", 1000), ("test", 2000)))
    steps, gaps, differences = 2 if quick else STEPS, list[list[float]](), []
    for seed in SEEDS[: 1 if quick else None]:
        poa, dino = pretrained(record, train, seed, steps)
        differences.append(max(difference(poa, size, test) for size in sizes(poa)))
        scores = {name: [score(extract_size(net, size), bank, test, train) for size in sizes(net)]
                  for name, net in (("POA", poa), ("DINO", dino))}
        record.say(f"seed {seed}: kNN of slices by heads x blocks ("
                   + ", ".join(f"{h}x{len(b)}" for h, b in sizes(poa)) + f"); largest difference {differences[-1]:.1e}")
        for name, values in scores.items():
            record.say(f"  {name:5} {spread(values)}")
        small = DINO(extract_size(network(seed), sizes(poa)[0]), train.spec, n_local=0)
        fit(small, train, steps=steps, batch_size=BATCH, seed=seed)
        record.say(f"  untrained, whole: {score(network(seed), bank, test, train):.1f}; the smallest size trained "
                   f"alone by DINO for as many steps: {score(small.exported(), bank, test, train):.1f}")
        gaps.append([a - b for a, b in zip(scores["POA"], scores["DINO"], strict=True)])
    record.check(f"a cut network differs from its slice by {max(differences):.1e} (<= 1e-6)", max(differences) <= 1e-6)
    found = np.array(gaps)
    cut = found[:, :-1]
    record.say(f"POA - DINO by seed, points: slices {spread(list(cut.mean(1)))}, whole {spread(list(found[:, -1]))}")
    better = int((cut > 0).sum())
    record.check(f"slices better than DINO's: {better} of {cut.size} (all), mean {cut.mean():+.1f} points (>= 3)",
                 bool((cut > 0).all()) and cut.mean() >= 3)
    share = cost(record, train, draws=2 if quick else DRAWS)
    record.check(f"cost of the one run {share:.2f} x nine runs' (<= 0.35)", share <= 0.35)
    return record


def pretrained(record: Record, train: Dataset, seed: int, steps: int) -> tuple[ViT, ViT]:
    """Networks of POA (the teacher all sizes are cut of) and of DINO, from the same start."""
    seen = list[Objective]()
    door = registry.build("compressor", "poa")
    door(network(seed), Budget("params", 0.5), calibration_of(train, train, count=64),
         trainer(train, seen, seed=seed, batch_size=BATCH, steps=steps), seed=seed)
    record.say(f"seed {seed}: {'; '.join(door.notes)}")
    dino = DINO(network(seed), train.spec, n_local=0)
    fit(dino, train, steps=steps, batch_size=BATCH, seed=seed)
    return cast(ViT, cast(Elastic, seen[0]).exported().eval()), cast(ViT, dino.exported().eval())


@torch.no_grad()
def difference(net: ViT, size: Size, test: Dataset) -> float:
    """Largest difference of pooled features between a network cut out and its slice in place, in float64."""
    small, whole = extract_size(net, size).double(), copy.deepcopy(net).double()
    x = test.batch(np.arange(32))["image"].double() / 255 - 0.5
    return float((small(x).pooled - slice_forward(whole, x, size)).abs().max())


def score(net: Backbone, bank: Dataset, test: Dataset, like: Dataset) -> float:
    """kNN accuracy in per cent."""
    assert bank.labels is not None and test.labels is not None
    return knn(features(net, bank, like), bank.labels, features(net, test, like), test.labels)


def cost(record: Record, train: Dataset, *, draws: int) -> float:
    """Operations of POA's step, mean over draws of sizes, over those of DINO's steps for nine sizes."""
    batch = train.batch(np.arange(8))

    def count(method: Objective, times: int) -> float:
        settings, _ = resolve_settings({"steps": STEPS, "batch_size": 8}, DINO.recipe, len(train), kind="tokens")
        engine = Engine(method.train(), settings, Fabric(accelerator="cpu", devices=1))
        return float(np.mean([count_step(engine, batch, Step(i, STEPS)).total for i in range(times)])) / 8

    whole = network(0)
    one = count(Elastic(network(0), train.spec, registry.build("compressor", "poa")), draws)
    depths = set(np.linspace(3, 6, 3).round().astype(int).tolist())
    each = [count(DINO(extract_size(whole, s), train.spec, n_local=0), 1) for s in sizes(whole) if len(s[1]) in depths]
    record.say(f"MFLOPs a step and image, all of it: POA {one / 1e6:.0f} (mean of {draws} draws); DINO for {len(each)} "
               f"sizes (depths {sorted(depths)}) {sum(each) / 1e6:.0f}, the largest alone {each[-1] / 1e6:.0f}")
    return one / sum(each)
