"""Claim 437 (CropMAE): with a second crop to look at, one visible patch in 64 is enough."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.claims.kit import Record, cifar, fit
from osteon.backbones import build_backbone
from osteon.data import Dataset
from osteon.objectives.cropmae import CropMAE
from osteon.parts.types import Draws, Step

RATIOS = (0.75, 0.9, 0.985)
PARTNERS = ("true", "wrong", "no")


def run(quick: bool = False) -> Record:
    """Train one network a ratio for the same number of steps; compare partners on images it never saw."""
    record = Record(
        437,
        "Cross-crop MAE can mask 98.5% of one crop because the other crop is visible; image pairs replace video pairs.",
        "CIFAR-10 10k unlabelled, ViT d=128 L=4, patch 4 (64 tokens: 1-2 visible), 4 min.",
        "True-partner error <= 0.9 x wrong-partner at >= 97% masking; gap grows with the ratio. Copying pixels across "
        "crops is easy to learn; label propagation quality is not claimed.")
    train, held_out = cifar("train", 200 if quick else 10_000), cifar("test", 100 if quick else 2_000)
    record.say(f"{len(train)} training images, {len(held_out)} held out; the options of the method are its defaults; "
               "batch 64, seed 0. Each network trains for 4 minutes' worth of steps, measured at the lowest ratio, the "
               "dearest. Gap: error with a wrong partner (another image's) minus error with the true one. No partner: "
               "a blank view at the mean of the data. Predicting each patch's mean costs 0.98.")
    steps, ratios, gaps = (3 if quick else 0), [], []
    for ratio in RATIOS:
        torch.manual_seed(0)
        backbone = build_backbone("vit_tiny", channels=3, size=32, dim=128, depth=4, heads=4, patch=4)
        method = CropMAE(backbone, train.spec, ratio=ratio)
        settings = fit(method, train, steps=steps, minutes=0 if steps else 4, watch=record.say, batch_size=64, seed=0)
        steps = settings.steps
        error = errors(method, held_out)
        mean = dict(zip(PARTNERS, error.mean(0), strict=True))
        difference = error[:, 1] - error[:, 0]
        margin = 1.96 * difference.std(ddof=1) / len(difference) ** 0.5
        hidden = 1 - method.visible / 64
        masked, whole = megaflops(method, masked=True), megaflops(method, masked=False)
        record.say(f"ratio {ratio:g} ({hidden:.1%} hidden, {steps} steps): error with the true partner "
                   f"{mean['true']:.3f}, a wrong one {mean['wrong']:.3f}, none {mean['no']:.3f}; true / wrong "
                   f"{mean['true'] / mean['wrong']:.3f}; gap {difference.mean():.3f} +- {margin:.3f} (95 %); encoder "
                   f"on the masked view {masked:.2f} MFLOPs, {masked / whole:.1%} of a whole one's {whole:.1f}")
        ratios.append(mean["true"] / mean["wrong"])
        gaps.append(float(difference.mean()))
    record.check(f"true partner's error <= 0.9 x a wrong partner's at {hidden:.1%} hidden: {ratios[-1]:.3f}",
                 hidden >= 0.97 and ratios[-1] <= 0.9)
    record.check("the gap grows with the ratio: " + " < ".join(f"{g:.3f}" for g in gaps), gaps == sorted(set(gaps)))
    return record


@torch.no_grad()
def errors(method: CropMAE, dataset: Dataset) -> np.ndarray:
    """Reconstruction error of every image with the same views and masks and each of the partners: (N, 3)."""
    method.eval()
    out = []
    for start in range(0, len(dataset), 200):
        images = dataset.batch(np.arange(start, min(start + 200, len(dataset))))
        draws = Draws.of(images, Step(start, 1, seed=1))
        seen, masked = method.views(images["image"], draws)
        mask = method.mask(draws)
        partners = (seen.x, seen.x.roll(1, 0), torch.zeros_like(seen.x))
        losses = [method.losses(method.predict(x, masked.x, mask)[0], masked.x, mask) for x in partners]
        out.append(torch.stack(losses, 1).numpy())
    return np.concatenate(out)


@torch.no_grad()
def megaflops(method: CropMAE, *, masked: bool) -> float:
    """Millions of floating-point operations of the encoder on one image, masked or whole."""
    keep = torch.arange(method.visible)[None] if masked else None
    with FlopCounterMode(display=False) as counter:
        method.backbone(torch.zeros(1, 3, 32, 32), keep=keep)
    return counter.get_total_flops() / 1e6
