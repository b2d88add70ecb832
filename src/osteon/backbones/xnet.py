"""xNet: a pre-trained network as encoder and a second one, walked through backwards, as decoder of a dense map.

"Is Pre-training Applicable to the Decoder for Dense Prediction?" (2025), arXiv:2503.07637: its three designs (reversed
decoder, Re-Shape module, Post Feature Pyramid) and the image that is mixed in. What is inside them is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones import resnet
from osteon.backbones._base import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError, nearest
from osteon.parts.types import Features

CARD = Card(
    kind="backbone",
    name="xnet",
    papers=("Is Pre-training Applicable to the Decoder for Dense Prediction?",),
    modalities=("image", "volume", "video"),
    differs="The insides of the three designs were published as figures that were not at hand: they are ours. Both "
    "networks are ResNets. The decoder first sees the image as it did in pre-training; then its stages run from the "
    "deepest to the finest, each on what it saw of the image plus two Re-Shape modules (1 x 1 convolutions from zero, "
    "and a resize), one from the encoder and one from the deeper stage, so that at first every stage answers just as "
    "in pre-training, whatever the encoder says. The pyramid adds coarser maps to finer ones, as FPN does, after the "
    "decoder. Depth and segmentation heads are left out: `levels[0]` is the dense map. Compare it with one network "
    "of as many weights, since it has twice those of its encoder.",
    rows=(13,),
    backbones=("maps",),
    cost="the encoder, and the decoder nearly twice",
)

#: Name -> networks and width of the pyramid.
SIZES: dict[str, dict[str, Any]] = {
    "xnet_tiny": {"encoder": "resnet_tiny", "decoder": "resnet_tiny", "width": 32},
    "xnet_mini": {"encoder": "resnet_mini", "decoder": "resnet_mini", "width": 64},
    "xnet_small": {"encoder": "resnet18", "decoder": "resnet18", "width": 128},
}


class ReShape(nn.Module):
    """Maps of one network in the width and at the resolution another's stage expects; nothing at first.

    Args:
        inputs: width of the maps given.
        outputs: width expected.
        sides: 2 for images, 3 for volumes and clips.
    """

    def __init__(self, inputs: int, outputs: int, sides: int) -> None:
        super().__init__()
        self.mix = _conv(inputs, outputs, 1, sides)
        nn.init.zeros_(self.mix.weight)
        assert self.mix.bias is not None
        nn.init.zeros_(self.mix.bias)

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        """(B, inputs, *sides) -> (B, outputs, *sides of ``like``)."""
        return resize(self.mix(x), like.shape[2:])


class Pyramid(nn.Module):
    """Maps of one width at every resolution, each with all coarser ones added.

    Args:
        widths: of the maps given, finest first.
        width: of those made.
        sides: 2 for images, 3 for volumes and clips.
    """

    def __init__(self, widths: Sequence[int], width: int, sides: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(_conv(inputs, width, 1, sides) for inputs in widths)
        self.smooth = nn.ModuleList(_conv(width, width, 3, sides) for _ in widths)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps finest first -> as many of the same sides, (B, width, *sides)."""
        sums = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for number in reversed(range(len(sums) - 1)):
            sums[number] = sums[number] + resize(sums[number + 1], sums[number].shape[2:])
        return [smooth(x) for smooth, x in zip(self.smooth, sums, strict=True)]


def resize(x: Tensor, sides: Sequence[int]) -> Tensor:
    """Linear interpolation of (B, D, *have) to (B, D, *sides)."""
    if tuple(x.shape[2:]) == tuple(sides):
        return x
    return F.interpolate(x, size=tuple(sides), mode="bilinear" if x.dim() == 4 else "trilinear", align_corners=False)


def _conv(inputs: int, outputs: int, kernel: int, sides: int) -> nn.Conv2d | nn.Conv3d:
    return (nn.Conv2d if sides == 2 else nn.Conv3d)(inputs, outputs, kernel, padding=kernel // 2)


class XNet(Backbone):
    """A dense map at the resolution of the input, by two networks that may both be pre-trained.

    Pooled features are those of the encoder and the mean of the dense map; ``levels`` are the pyramid's, the finest as
    large as the input; ``tokens`` are the cells of the coarsest.

    Args:
        name: the name it was built by.
        channels: number of input channels.
        size: side of the images in pixels, or the sides of another sample.
        encoder: name of a ResNet.
        decoder: name of a ResNet.
        width: of the pyramid.
    """

    kind = "maps"

    def __init__(self, name: str, *, channels: int, size: int | Sequence[int], encoder: str, decoder: str,
                 width: int) -> None:
        for part in (encoder, decoder):
            if part not in resnet.SIZES:
                raise UsageError(f"{name} is made of two ResNets, not of {part!r}.{nearest(part, resnet.SIZES)}",
                                 where=f"backbone {name}", fix=f"Choose among {', '.join(resnet.SIZES)}.")
        if width < 1:
            raise UsageError(f"A pyramid of width {width} holds nothing.", where=f"backbone {name}")
        super().__init__(name, channels=channels, size=size,
                         options={"encoder": encoder, "decoder": decoder, "width": width})
        self.encoder, self.decoder = (resnet.ResNet(part, channels=channels, size=size, **resnet.SIZES[part])
                                      for part in (encoder, decoder))
        sides, dims, strides = len(self.extent), self.decoder.level_dims, self.decoder.level_strides
        self.inputs = (self.decoder.conv1.out_channels, *dims[:-1])  # widths its stages expect
        #: The encoder's level that each stage hears: the deepest the deepest, others the one nearest in resolution.
        self.partners = [self._nearest(stride) for stride in strides[:-1]] + [len(self.encoder.level_dims) - 1]
        self.reshape = nn.ModuleList(ReShape(self.encoder.level_dims[partner], expected, sides)
                                     for partner, expected in zip(self.partners, self.inputs, strict=True))
        self.turn = nn.ModuleList(ReShape(deeper, expected, sides)
                                  for deeper, expected in zip(dims[1:], self.inputs[:-1], strict=True))
        self.pyramid = Pyramid(dims, width, sides)
        self.last = _conv(width, width, 3, sides) if strides[0] > 1 else None
        self.level_dims = (width,) * (len(dims) + (self.last is not None))
        self.level_strides = (*((1,) if self.last is not None else ()), *strides)
        self.stride, self.token_dim, self.dim = strides[-1], width, self.encoder.dim + width

    def _nearest(self, stride: int) -> int:
        """The encoder's level whose cells are nearest in size."""
        gaps = [abs(step - stride) for step in self.encoder.level_strides]
        return gaps.index(min(gaps))

    def grid(self, *extent: int) -> tuple[int, ...]:
        """Sides of the coarsest map."""
        return self.decoder.grid(*extent)

    def adopt(self, *, encoder: Backbone | None = None, decoder: Backbone | None = None) -> None:
        """Take over the weights of pre-trained networks, all of them: a missing or further one is an error.

        Args:
            encoder: a network of the encoder's kind, e.g. ``osteon.load(RUN).backbone``; None leaves it as it is.
            decoder: one of the decoder's.

        Raises:
            UsageError: the weights are those of another network.
        """
        for mine, given in ((self.encoder, encoder), (self.decoder, decoder)):
            if given is None:
                continue
            try:
                mine.load_state_dict(given.state_dict())
            except RuntimeError as error:
                raise UsageError(f"The weights of {given.name} are not those of a {mine.name} for these samples.",
                                 where=f"backbone {self.name}", fix=str(error)[:300]) from error

    def seen(self, x: Tensor) -> list[Tensor]:
        """What each stage of the decoder is given of the image alone, finest first."""
        first = F.relu(self.decoder.bn1(self.decoder.conv1(x)))
        maps = [first if self.decoder.maxpool is None else self.decoder.maxpool(first)]
        for number in range(1, len(self.inputs)):
            maps.append(self._stage(number, maps[-1]))
        return maps

    def _stage(self, number: int, x: Tensor) -> Tensor:
        """Stage ``number`` of the decoder, from 1."""
        for block in self.decoder.get_submodule(f"layer{number}").children():
            x = block(x)
        return x

    def decode(self, x: Tensor, levels: Sequence[Tensor]) -> list[Tensor]:
        """The decoder's maps, finest first, from the image and the encoder's levels: deepest stage first."""
        out: list[Tensor] = []
        seen = self.seen(x)
        for number in reversed(range(len(seen))):
            given = seen[number] + self.reshape[number](levels[self.partners[number]], seen[number])
            if out:
                given = given + self.turn[number](out[0], seen[number])
            out.insert(0, self._stage(number + 1, given))
        return out

    def forward(self, x: Tensor, *, keep: Tensor | None = None, mask: Tensor | None = None,
                mask_token: Tensor | None = None) -> Features:
        """(B, C, *extent) -> Features, ``levels`` from full resolution down."""
        if keep is not None or mask is not None or mask_token is not None:
            raise self._refuse("masks", "Choose a ResNet or a ViT, e.g. resnet_tiny.")
        self._check_images(x)
        found = self.encoder(x)
        levels = self.pyramid(self.decode(x, found.levels))
        if self.last is not None:
            levels.insert(0, self.last(resize(levels[0], x.shape[2:])))
        dense, coarse = levels[0], levels[-1]
        pooled = torch.cat([found.pooled, dense.flatten(2).mean(2)], 1)
        return Features(pooled=pooled, tokens=coarse.flatten(2).transpose(1, 2),
                        grid=tuple(coarse.shape[2:]), levels=levels)
