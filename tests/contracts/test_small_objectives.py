"""Small and odd data: every objective either learns from them or refuses in words before anything is computed.

One sample a step, a batch that is the whole source, two and three samples, one class, one channel, images of one pixel,
constant images, and fewer tokens than a mask hides. What is allowed: a step whose loss and gradients are finite, or one
UsageError. An error of a library, or a loss that is no number, is neither.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from osteon.backbones import build_backbone
from osteon.core import registry
from osteon.core.errors import DataError, UsageError
from osteon.data import Dataset
from osteon.parts.types import Step
from osteon.train.loop import Engine
from osteon.train.settings import resolve_settings

SMALL = {"tokens": ("vit_tiny", {"dim": 16, "depth": 1, "heads": 2}),
         "maps": ("resnet_tiny", {"depths": (1, 1), "widths": (8, 16), "stride": 2})}
EVERY = pytest.mark.parametrize(("name", "kind"), [
    (card.name, kind) for card in registry.cards(kind="objective") if registry.fits(card, "image")
    for kind in card.backbones if kind in SMALL], ids=lambda v: v)


def source(count: int, size: int = 8, *, classes: int = 2, channels: int = 1, constant: bool = False) -> Dataset:
    """Noise, or all one grey."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, channels, size, size), np.uint8)
    return Dataset.from_arrays(np.full_like(images, 7) if constant else images, np.arange(count) % classes,
                               class_names=[str(i) for i in range(classes)])


def works_or_refuses(name: str, kind: str, data: Dataset, batch: int, patch: int = 0) -> str:
    """One step: "worked", or the words of the refusal."""
    network_name, options = SMALL[kind]
    torch.manual_seed(0)
    try:
        network = build_backbone(network_name, channels=data.spec.channels, size=data.spec.extent,
                                 **{**options, **({"patch": patch} if patch and kind == "tokens" else {})})
        method = registry.build("objective", name, network, data.spec)
        asked = {"steps": 2, "batch_size": batch, "precision": "32", "warmup": 0.0}
        training = resolve_settings(asked, method.recipe, len(data), kind=network.kind)[0]
        engine = Engine(method.train(), training, Fabric(accelerator="cpu", devices=1))
        for index in range(2):
            loss, _ = engine.run(data.batch(np.arange(batch)), Step(index, 2, 0))[:2]
            assert math.isfinite(float(loss.total)), f"the loss is {float(loss.total)}"
    except (UsageError, DataError) as error:
        assert error.what
        return str(error)
    weights = [p for p in method.parameters() if p.requires_grad]
    assert all(bool(torch.isfinite(p).all()) for p in weights), "a step left weights that are no numbers"
    return "worked"


ODD = {"batch of 1": (source(8), 1, 0), "two samples": (source(2), 2, 0), "three samples": (source(3), 3, 0),
       "one class": (source(8, classes=1), 4, 0), "one pixel": (source(4, 1), 4, 0),
       "one token": (source(4), 4, 8), "four tokens": (source(4), 4, 4), "constant": (source(8, constant=True), 4, 0),
       "five channels": (source(4, channels=5), 4, 0)}


@EVERY
@pytest.mark.parametrize("odd", ODD)
def test_small_and_odd(name, kind, odd):
    data, batch, patch = ODD[odd]
    works_or_refuses(name, kind, data, batch, patch)


@EVERY
def test_what_is_not_odd_works(name, kind):
    """So that a refusal of everything cannot pass."""
    assert works_or_refuses(name, kind, source(8), 8) == "worked"
