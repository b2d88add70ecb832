"""U-Net: a pyramid down and a pyramid up with bridges between, for images and volumes.

Ronneberger, Fischer & Brox 2015, arXiv:1505.04597; in three dimensions Cicek et al. 2016, arXiv:1606.06650.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones._base import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.norm import BatchNorm
from osteon.parts.types import Features

CARD = Card(
    kind="backbone",
    name="unet",
    papers=("U-Net: Convolutional Networks for Biomedical Image Segmentation",
            "3D U-Net: Learning Dense Volumetric Segmentation from Sparse Annotation"),
    modalities=("image", "volume", "video"),
    differs="Convolutions are padded, so that a map out is as large as the map in; upsampling is nearest-neighbour and "
    "followed by the convolutions of the level; batch normalisation everywhere, over all ranks; widths from 16, as in "
    "the network released with anatomix. Pooled features are the means of all maps of the way up, the lowest included. "
    "There is no head of classes.",
    backbones=("maps",),
    cost="grows linearly with the number of pixels; most of it at full resolution",
)

#: Name -> width of each level, finest first.
SIZES: dict[str, dict[str, Any]] = {
    "unet_tiny": {"widths": (16, 32, 64)},
    "unet_mini": {"widths": (16, 32, 64, 128)},
    "unet_small": {"widths": (16, 32, 64, 128, 256)},
}


class Level(nn.Sequential):
    """Twice a 3 x 3 (x 3) convolution, batch normalisation and ReLU: (B, inputs, *sides) -> (B, width, *sides)."""

    def __init__(self, inputs: int, width: int, sides: int) -> None:
        conv = nn.Conv2d if sides == 2 else nn.Conv3d
        super().__init__(*(layer for i in range(2) for layer in (
            conv(width if i else inputs, width, 3, padding=1, bias=False), BatchNorm(width), nn.ReLU())))


class UNet(Backbone):
    """Maps of the same scene at every resolution, each knowing what lies around it.

    ``levels`` are the maps of the way up, the finest as large as the input; ``tokens`` are the cells of the lowest.

    Args:
        name: the name it was built by.
        channels: number of input channels.
        size: side of the images in pixels, or the sides of another sample.
        widths: width of each level, finest first; each has half the resolution of the one before.
    """

    kind = "maps"
    #: What a dense objective reads: every level of the way down and of the way up.
    dense_layers = ("down.*", "up.*")

    def __init__(self, name: str, *, channels: int, size: int | Sequence[int], widths: Sequence[int]) -> None:
        extent = (size, size) if isinstance(size, int) else tuple(size)
        if len(extent) not in (2, 3):
            raise UsageError(f"{name} takes images, volumes and clips, not samples with {len(extent)} "
                             f"side{'s' * (len(extent) > 1)}.", where="backbone", fix="Choose a ViT, e.g. vit_tiny.")
        if len(widths) < 2 or min(widths) < 1 or len(widths) > 8:
            raise UsageError("widths are 2 to 8 positive numbers.", where=f"{name}: widths={widths}")
        super().__init__(name, channels=channels, size=size, options={"widths": list(widths)})
        sides = len(extent)
        self.level_dims = tuple(widths)
        self.level_strides = tuple(2**i for i in range(len(widths)))
        self.stride, self.token_dim, self.dim = 2**(len(widths) - 1), widths[-1], sum(widths)
        self.down = nn.ModuleList(Level(a, b, sides) for a, b in zip((channels, *widths[:-1]), widths, strict=True))
        self.up = nn.ModuleList(Level(a + b, a, sides) for a, b in zip(widths[:-1], widths[1:], strict=True))
        for module in self.modules():  # He et al. 2015, arXiv:1502.01852, equation 14
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def grid(self, *extent: int) -> tuple[int, ...]:
        """Sides of the lowest map; sides that do not divide are rounded up."""
        return tuple(-(-side // self.stride) for side in extent)

    def forward(self, x: Tensor, *, keep: Tensor | None = None, mask: Tensor | None = None,
                mask_token: Tensor | None = None) -> Features:
        """(B, C, *extent) -> Features, ``levels`` from full resolution down."""
        if keep is not None or mask is not None or mask_token is not None:
            raise self._refuse("masks", "Choose a ResNet or a ViT, e.g. resnet_tiny.")
        self._check_images(x)
        halve = F.max_pool2d if x.dim() == 4 else F.max_pool3d
        bridges: list[Tensor] = []
        for number, level in enumerate(self.down):
            x = level(halve(x, 2, ceil_mode=True) if number else x)
            bridges.append(x)
        levels = [x]
        for number in reversed(range(len(self.up))):
            bridge = bridges[number]
            wide = F.interpolate(levels[0], size=bridge.shape[2:], mode="nearest")
            levels.insert(0, self.up[number](torch.cat([bridge, wide], 1)))
        pooled = torch.cat([level.flatten(2).mean(2) for level in levels], 1)
        return Features(pooled=pooled, tokens=x.flatten(2).transpose(1, 2), grid=tuple(x.shape[2:]), levels=levels)
