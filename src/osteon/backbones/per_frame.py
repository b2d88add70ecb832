"""One network of images for every frame of a clip: what a 2-D network makes of video.

As Xu and Wang 2021, "Rethinking Self-supervised Correspondence Learning: A Video Frame-level Similarity Perspective"
(VFS), train it; features of a clip are the mean over its frames.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor

from osteon.backbones._base import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.types import Features

CARD = Card(
    kind="backbone",
    name="per_frame",
    papers=("Rethinking Self-supervised Correspondence Learning: A Video Frame-level Similarity Perspective",),
    modalities=("video",),
    differs="No paper's network: a way to read clips by any of osteon's networks of images. Motion is not seen.",
    rows=(340,),
    backbones=("tokens", "maps"),
    cost="one forward of the image network a frame",
)

SIZES: dict[str, dict[str, Any]] = {"per_frame": {}}


class PerFrame(Backbone):
    """Every frame through the same network of images; one token a place and frame.

    Args:
        name: the name it was built by.
        channels: number of channels.
        size: (frames, height, width); clips of other lengths are read too, of one frame as well.
        encoder: name of the network of images.
        encoder_options: its options.

    Attributes:
        encoder: the network, which reads images (B, C, H, W).
    """

    def __init__(self, name: str, *, channels: int, size: int | Sequence[int], encoder: str = "resnet_tiny",
                 encoder_options: Mapping[str, Any] | None = None) -> None:
        extent = (size, size) if isinstance(size, int) else tuple(size)
        if len(extent) != 3:
            raise UsageError(f"{name} takes clips (frames, height, width), not {' x '.join(map(str, extent))}.",
                             where="backbone", fix=f"Images need only the network itself: {encoder}.")
        build = importlib.import_module("osteon.backbones").build_backbone
        inner = cast(Backbone, build(encoder, channels=channels, size=extent[1:], **(encoder_options or {})))
        super().__init__(name, channels=channels, size=extent,
                         options={"encoder": inner.name, "encoder_options": dict(inner.options)})
        self.encoder, self.kind, self.stride = inner, inner.kind, inner.stride
        self.dim, self.token_dim = inner.dim, inner.token_dim
        self.level_dims, self.level_strides = inner.level_dims, inner.level_strides
        self.notes += [f"{inner.name} on every frame", *inner.notes]

    def grid(self, *extent: int) -> tuple[int, ...]:
        """(frames, rows, columns)."""
        return (extent[0], *self.encoder.grid(*extent[1:]))

    @property
    def shown_width(self) -> int:
        """Pixels of a patch of one frame."""
        return self.encoder.shown_width

    def shown(self, x: Tensor) -> Tensor:
        """What the tokens of every frame show; see :meth:`Backbone.shown`."""
        return self.encoder.shown(_frames(x)).unflatten(0, (len(x), -1)).flatten(1, 2)

    def assemble(self, shown: Tensor, x: Tensor) -> Tensor:
        """Tokens as frames again; see :meth:`Backbone.assemble`."""
        frames = _frames(x)
        flat = shown.reshape(len(frames), -1, *shown.shape[2:])
        return self.encoder.assemble(flat, frames).unflatten(0, (len(x), -1)).transpose(1, 2)

    def forward(self, x: Tensor, *, keep: Tensor | None = None, mask: Tensor | None = None,
                mask_token: Tensor | None = None) -> Features:
        """(B, C, T, H, W) -> Features; see :meth:`Backbone.forward`. ``mask`` needs a ViT, ``keep`` is refused."""
        if keep is not None or (mask is not None and self.kind == "maps"):
            raise self._refuse("keep, nor masks of convolutional networks", "Choose a ViT on clips, e.g. vit_mini.")
        self._check_images(x)
        b, grid = len(x), self.grid(*x.shape[2:])
        if mask is not None:
            self._check_mask(mask, b, grid)
            mask = mask.reshape(b * grid[0], -1)
        seen = self.encoder(_frames(x), mask=mask, mask_token=mask_token)
        return Features(pooled=seen.pooled.unflatten(0, (b, -1)).mean(1),
                        tokens=seen.tokens.unflatten(0, (b, -1)).flatten(1, 2), grid=(grid[0], *seen.grid),
                        levels=[level.unflatten(0, (b, -1)).transpose(1, 2) for level in seen.levels])


def _frames(x: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B * T, C, H, W)."""
    return x.transpose(1, 2).flatten(0, 1)
