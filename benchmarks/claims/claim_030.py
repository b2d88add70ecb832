"""Claim 30 (PELA): training the cut network on the original's features brings back what the cut took."""

from __future__ import annotations

import numpy as np

from benchmarks.claims._classifiers import accuracy, calibration_of, trainer, vit_on_cifar
from benchmarks.claims.kit import Record, cifar, spread
from osteon.core import registry
from osteon.parts.compressor import Budget, params_of

SEEDS = (0, 1, 2)
#: share of the parameters that stays -> seeds
SHARES = {1 / 2: SEEDS, 2 / 3: SEEDS[:1], 1 / 3: SEEDS[:1]}
STEPS, BATCH = 300, 32


def run(quick: bool = False) -> Record:
    """Cut to a share of the parameters by truncated SVD, alone and with distillation on unlabelled images."""
    record = Record(
        30,
        "Low-rank pre-training stage with feature distillation (PELA) loses about 0.6 point while parameters shrink by "
        "1/3 to 2/3.",
        "ViT d=128 L=4 (patch 8) trained on CIFAR-10 subset (2,500 labels, 8 epochs), 10,000 unlabelled images for "
        f"recovery, {STEPS} steps of {BATCH}, 3 seeds at 1/2 (one seed at 2/3 and 1/3).",
        "At 1/2 parameters PELA recovers >= 60% of the drop caused by plain truncation and ends within 2 points of the "
        "teacher.")
    images = cifar("train", 300 if quick else 10_000)
    steps = 3 if quick else STEPS
    for share, seeds in SHARES.items():
        found: dict[str, list[float]] = {"teacher": [], "truncated": [], "PELA": []}
        for seed in seeds[: 1 if quick else None]:
            taught = vit_on_cifar(seed, quick)
            budget = Budget("params", share)
            known = calibration_of(images, taught.train, count=256, seed=seed)
            plain = registry.build("compressor", "pela", recover=False)
            door = registry.build("compressor", "pela")
            fit = trainer(images, seed=seed, batch_size=BATCH, steps=steps)
            cut = plain(taught.backbone, budget, known, seed=seed)
            small = door(taught.backbone, budget, known, fit, seed=seed)
            found["teacher"].append(taught.full)
            for name, network in (("truncated", cut), ("PELA", small)):
                found[name].append(accuracy(network, taught.head, taught.test, taught.train))
            record.say(f"parameters {params_of(small) / params_of(taught.backbone):.3f} x, seed {seed}: teacher "
                       f"{taught.full:.1f}, truncated {found['truncated'][-1]:.1f}, PELA {found['PELA'][-1]:.1f} "
                       f"({'; '.join(door.notes)})")
        full, low, after = (float(np.mean(values)) for values in found.values())
        share_back = (after - low) / (full - low) if full > low else 1.0
        record.say(f"at {share:.2f} x: " + "; ".join(f"{name} {spread(values)}" for name, values in found.items())
                   + f"; recovered {100 * share_back:.0f} % of {full - low:.1f} points")
        if share == 1 / 2:
            record.check(f"at 1/2, {100 * share_back:.0f} % of the drop comes back (>= 60 %)", share_back >= 0.6)
            record.check(f"at 1/2, PELA - teacher {after - full:+.1f} points (>= -2)", after - full >= -2)
    return record
