"""What the tests of objectives on clips share: a tiny network, random clips, and their data."""

from __future__ import annotations

import torch
from torch import Tensor

from osteon.backbones import Backbone, build_backbone
from osteon.parts.types import DataSpec


def spec(channels: int = 1, frames: int = 8, size: int = 16) -> DataSpec:
    """Clips of 8 bits."""
    return DataSpec("video", channels, size, (0.4,) * channels, (0.2,) * channels, shape=(frames, size, size),
                    traits={"stride": 1})


def vit(channels: int = 1, frames: int = 8, size: int = 16, patch: int = 4, **options: object) -> Backbone:
    """A Transformer of one block on cubes."""
    torch.manual_seed(0)
    return build_backbone("vit_tiny", channels=channels, size=(frames, size, size), dim=16, depth=1, heads=2,
                          patch=patch, **options)


def clips(n: int = 8, channels: int = 1, frames: int = 8, size: int = 16, seed: int = 0) -> dict[str, Tensor]:
    """A batch of noise."""
    g = torch.Generator().manual_seed(seed)
    return {"video": torch.randint(0, 256, (n, channels, frames, size, size), generator=g, dtype=torch.uint8),
            "index": torch.arange(n)}
