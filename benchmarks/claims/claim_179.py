"""Claim 179 (layer masking): what is taken away inside the layers is not seen, whatever stands there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.claims.kit import Record, cifar, fit
from osteon.backbones import build_backbone
from osteon.backbones.resnet import ResNet
from osteon.data import Dataset
from osteon.evaluators.layer_masking import masked_features
from osteon.objectives.supervised import Supervised
from osteon.parts.types import Draws, Step
from osteon.verbs._model import fit_samples
from osteon.views.masks import POLICIES

RATIOS = (0.1, 0.2, 0.3, 0.4)
#: values in [0, 1] that a region is painted with
FILLS = {"grey": 0.5, "black": 0.0, "white": 1.0}
SEEDS = (0, 1, 2)
STEPS = 500
#: (normalised images (B, 3, 32, 32), what is hidden (B, 32, 32) bool) -> logits (B, 10)
Hide = Callable[[Tensor, Tensor], Tensor]


def run(quick: bool = False) -> Record:
    """Train a small CNN, hide regions of test images, and compare what it says of them by three ways of hiding."""
    record = Record(
        179,
        "Masking the layers, not the pixels, lets CNNs ignore a removed region whatever its fill colour.",
        "Small CNN trained 2 min on CIFAR-10 subset, 500 test images, masks of 10-40% area.",
        "Output independent of masked pixels to 1e-5 (grey/black vary); prediction kept in >= grey fill + 3 points of "
        "cases. First half exact.")
    train, test = cifar("train", 400 if quick else 10_000), cifar("test", 64 if quick else 500)
    torch.manual_seed(0)
    method = Supervised(build_backbone("resnet_tiny", channels=3, size=32), train.spec)
    steps = 3 if quick else STEPS
    fit(method, train, steps=steps, watch=record.say, batch_size=128)
    network = method.eval().backbone
    assert isinstance(network, ResNet)
    images, labels = inputs(test, train)
    with torch.no_grad():
        whole = method.head(network(images).pooled)
    right = 100 * float((whole.argmax(1) == labels).double().mean())
    record.say(f"resnet_tiny, {len(train)} training images, {steps} steps of 128 (about 2 minutes of an idle thread), "
               f"the supervised defaults; test accuracy {right:.1f} on {len(test)} images. Masks: osteon's policy of "
               "random rectangles on the grid of pixels, default sides, 3 draws.")
    found = compare(hiding(method, network, train), images, whole, train)
    for row, ratio in enumerate(RATIOS):
        record.say(f"{ratio:.0%} hidden, prediction kept: "
                   + ", ".join(f"{name} {np.mean(shares[row]):.1f}" for name, shares in found.kept.items()))
    record.check("layer masking: largest change of a logit over what stands under the mask (image, grey, black, white, "
                 f"noise) {found.unseen:.1e} (<= 1e-5)", found.unseen <= 1e-5)
    record.check(f"grey and black fill give other outputs: a logit changes by up to {found.fill:.2f} (> 1e-5)",
                 found.fill > 1e-5)
    gain = float(np.mean(found.kept["layer masking"]) - np.mean(found.kept["grey"]))
    record.check(f"prediction kept more often than by grey fill by >= 3 points: {gain:+.1f}", gain >= 3)
    return record


@dataclass
class Found:
    """Largest change of a logit by what stands under a mask, of layer masking and of fills; predictions kept.

    ``kept`` holds a list a ratio with a number a draw, in per cent.
    """

    unseen: float
    fill: float
    kept: dict[str, list[list[float]]]


def compare(ways: dict[str, Hide], images: Tensor, whole: Tensor, like: Dataset) -> Found:
    """Hide regions of every size by every way and compare with what is said of whole images."""
    found = Found(0.0, 0.0, {name: [[] for _ in RATIOS] for name in ways})
    noise = 10 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    for row, ratio in enumerate(RATIOS):
        for seed in SEEDS:
            hidden = draw(ratio, len(images), seed)
            outputs = {name: way(images, hidden) for name, way in ways.items()}
            for name, out in outputs.items():
                found.kept[name][row].append(100 * float((out.argmax(1) == whole.argmax(1)).double().mean()))
            beneath = [paint(images, hidden, value, like) for value in FILLS.values()]
            for x in [*beneath, torch.where(hidden[:, None], noise, images)]:
                change = ways["layer masking"](x, hidden) - outputs["layer masking"]
                found.unseen = max(found.unseen, float(change.abs().max()))
            found.fill = max(found.fill, float((outputs["black"] - outputs["grey"]).abs().max()))
    return found


def inputs(dataset: Dataset, like: Dataset) -> tuple[Tensor, Tensor]:
    """Normalised images and their labels."""
    assert dataset.labels is not None
    return fit_samples(dataset, like.spec, np.arange(len(dataset))), torch.from_numpy(dataset.labels)


def draw(ratio: float, count: int, seed: int) -> Tensor:
    """Which pixels are hidden, (B, 32, 32) bool."""
    draws = Draws(Step(0, 1, seed), torch.arange(count), count)
    return POLICIES["rectangles"]((32, 32), ratio, draws).view(count, 32, 32)


def paint(images: Tensor, hidden: Tensor, value: float, like: Dataset) -> Tensor:
    """Normalised images with one colour where hidden."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (like.spec.mean, like.spec.std))
    return torch.where(hidden[:, None], (value - mean) / std, images)


def hiding(method: Supervised, network: ResNet, like: Dataset) -> dict[str, Hide]:
    """Ways from images and what is hidden of them to logits."""
    @torch.no_grad()
    def layers(images: Tensor, hidden: Tensor) -> Tensor:
        return method.head(masked_features(network, images, ~hidden))

    def filled(value: float) -> Hide:
        @torch.no_grad()
        def logits(images: Tensor, hidden: Tensor) -> Tensor:
            return method.head(network(paint(images, hidden, value, like)).pooled)

        return logits

    return {"layer masking": layers, **{name: filled(value) for name, value in FILLS.items()}}
