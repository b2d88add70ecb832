"""Claim 346 (TRP): weights truncated again and again while they train can be cut into thin layers without loss."""

from __future__ import annotations

import copy
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from benchmarks.claims._classifiers import accuracy, calibration_of, classifier, digits, trainer
from benchmarks.claims._digits import MLP
from benchmarks.claims.kit import Record, spread
from osteon.backbones import Backbone
from osteon.compressors.trp import LowRankTraining, cut, rank_for
from osteon.core import registry
from osteon.parts.compressor import Budget, params_of
from osteon.parts.objective import Objective

SEEDS = (0, 1, 2)
EPOCHS, BATCH = 40, 64


def run(quick: bool = False) -> Record:
    """Train plainly, cut at once or train by TRP and cut, at the same ranks."""
    record = Record(
        346,
        "Truncating weights periodically during training (TRP) leaves a network that can be split into thin layers "
        "with no fine-tuning.",
        "Digits MLP 64-256-256-10, SGD 0.1 momentum 0.9, 40 epochs, project every 20 steps at 95% energy + nuclear "
        "penalty 3e-4, 3 seeds; control: plain training cut to the same ranks. osteon's TRP works to a budget (the "
        "parameters are at most 0.15 x): 95% energy in the first half of training, the ranks of the budget in the "
        "second; it trains on the features of the plain network instead of labels; the classifier stays as it is.",
        "finalize() after a projection changes accuracy by 0; parameters of the linears <= 0.15x; TRP within 1 point "
        "of plain dense and >= post-hoc SVD at the same ranks + 1.5 points on the mean.")
    train, test = digits()
    steps = 20 if quick else EPOCHS * (len(train) // BATCH)
    record.say(f"{len(train)} training and {len(test)} test digits, {steps} steps of {BATCH}, cosine schedule.")
    results = {share: trial(record, share, steps, quick=quick) for share in (0.15, 0.10)}
    for share, (found, _) in results.items():
        record.say(f"at most {share:.2f} x the parameters{'' if share == 0.15 else ' (reported, not judged)'}:")
        for name, values in found.items():
            record.say(f"  {name:30} {spread(values)}")
    found, shares = results[0.15]
    mean = {name: np.mean(values) for name, values in found.items()}
    change = max(abs(a - b) for a, b in zip(found["TRP"], found["TRP before the cut"], strict=True))
    record.check(f"the cut changes accuracy by {change:.2f} (0)", change == 0)
    record.check(f"parameters {max(shares):.3f} x (<= 0.15)", max(shares) <= 0.15)
    record.check(f"TRP - plain: {mean['TRP'] - mean['plain']:+.1f} points (>= -1)", mean["TRP"] - mean["plain"] >= -1)
    gap = mean["TRP"] - mean["plain, cut to the same ranks"]
    record.check(f"TRP - plain cut to the same ranks: {gap:+.1f} points (>= 1.5)", gap >= 1.5)
    return record


def trial(record: Record, share: float, steps: int, *, quick: bool) -> tuple[dict[str, list[float]], list[float]]:
    """Accuracy of every network and the share of parameters that TRP's has, a value a seed."""
    train, test = digits()
    wishes: dict[str, Any] = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0,
                              "batch_size": BATCH, "steps": steps}
    found: dict[str, list[float]] = {name: [] for name in (
        "plain", "TRP before the cut", "TRP", "plain, cut to the same ranks", "PELA (cut, then trained)")}
    shares = []
    for seed in SEEDS[: 1 if quick else None]:
        torch.manual_seed(seed)
        dense = MLP()
        head = classifier(dense, train, seed=seed, **wishes)
        whole = params_of(dense) + params_of(head)
        budget = Budget("params", int(share * whole) - params_of(head), share=False)
        known, seen = calibration_of(train, train, count=256, seed=seed, head=head), list[Objective]()
        door = registry.build("compressor", "trp", every=20, nuclear_weight=3e-4, augment="none")
        small = door(dense, budget, known, trainer(train, seen, seed=seed, **wishes), seed=seed)
        objective = cast(LowRankTraining, seen[0])
        rival = registry.build("compressor", "pela", augment="none")(
            dense, budget, known, trainer(train, seed=seed, **wishes), seed=seed)
        networks = (dense, objective.backbone, small, cut(dense, objective.ranks, "channel"), rival)
        for values, network in zip(found.values(), networks, strict=True):
            values.append(accuracy(network, head, test, train))
        shares.append((params_of(small) + params_of(head)) / whole)
        record.say(f"seed {seed}: ranks {list(objective.ranks.values())}; the plain network needs "
                   f"{ranks_at_95(dense)} for 95 % of its energy, TRP's {ranks_at_95(objective.backbone)}; parameters "
                   f"{shares[-1]:.3f} x with the classifier; {'; '.join(door.notes)}")
    return found, shares


def ranks_at_95(network: Backbone) -> list[int]:
    """Ranks that hold 95 % of the energy of each linear layer."""
    layers = [m for m in copy.deepcopy(network).modules() if isinstance(m, nn.Linear)]
    return [rank_for(torch.linalg.svdvals(m.weight.detach().double()), 0.95) for m in layers]
