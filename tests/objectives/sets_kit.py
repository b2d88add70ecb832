"""Small sets of several modalities for the tests of their objectives."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from osteon.backbones import Backbone, build_backbone
from osteon.data import Dataset, open_source
from osteon.modalities import find
from osteon.parts.types import Draws, Step


@functools.cache
def numbers() -> Dataset:
    """40 sets of images, sounds and texts, some of each missing."""
    return open_source("numbers:train", cache=False, limit=40)


def network(name: str = "towers", **options: object) -> Backbone:
    torch.manual_seed(0)
    small: dict[str, object] = {"encoder": "vit_tiny"} if name == "towers" else {"dim": 32, "depth": 2, "heads": 2}
    return build_backbone(name, channels=1, size=numbers().spec.extent,
                          **{**small, **find("several").backbone_options(numbers().spec), **options})


def batch(rows: int = 40) -> dict[str, Tensor]:
    return dict(numbers().batch(np.arange(rows)))


def draws(n: int = 40, index: int = 0) -> Draws:
    return Draws(Step(index, 10, 3), torch.arange(n), n)


def sphere(*shape: int, seed: int = 0) -> Tensor:
    z = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(z, dim=-1)
