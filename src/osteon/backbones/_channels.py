"""What backbones of series share that treat every channel as a series of its own, by the same weights.

A token holds the vectors of all channels one after the other, so that it still is one token a span of time, and part c
of its width depends on channel c alone. Shape letters: B batch, C channels, T steps, N tokens, D width of one channel's
vector.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from osteon.backbones._base import Backbone, placed_tokens
from osteon.core.errors import UsageError
from osteon.parts.types import Features


class ChannelwiseBackbone(Backbone):
    """Base of backbones for samples with one side whose channels are taken apart.

    Args:
        name: the name it was built by.
        channels: C.
        size: steps of its context.
        dim: D, the width of one channel's vector.
        patch: steps of a token; must divide the context.
        options: every resolved option.
    """

    kind = "tokens"

    def __init__(self, name: str, *, channels: int, size: int | tuple[int, ...], dim: int, patch: int,
                 options: dict[str, Any]) -> None:
        super().__init__(name, channels=channels, size=size, options=options)
        if len(self.extent) != 1:
            raise UsageError(f"{name} takes samples with one side, not {' x '.join(map(str, self.extent))}.",
                             where="backbone", fix="Choose a ViT, e.g. vit_tiny.")
        if patch < 1 or self.extent[0] % patch:
            raise UsageError(f"Patches of {patch} steps do not tile a context of {self.extent[0]}.", where="patch",
                             fix="Set a patch that divides the context.")
        self.stride, self.width, self.apart = patch, dim, channels
        self.dim = self.token_dim = channels * dim
        self.context, self.count = self.extent[0], self.extent[0] // patch

    def grid(self, *extent: int) -> tuple[int, ...]:
        """(N,): of longer samples the last steps are read, shorter ones are refused."""
        if len(extent) != 1 or extent[0] < self.context:
            raise UsageError(f"{self.name} reads {self.context} steps, a sample has "
                             f"{' x '.join(map(str, extent))}.", where=self.name, fix="Give longer samples.")
        return (self.count,)

    def shown(self, x: Tensor) -> Tensor:
        """Values of each patch of the steps that are read: (B, C, T) -> (B, N, patch * C)."""
        return super().shown(x[..., -self.context:])

    def positions(self, grid: tuple[int, ...], x: Tensor | None = None) -> Tensor:
        """Zeros (1, N, token_dim): the network knows places by other means."""
        return next(self.parameters()).new_zeros(1, self.count, self.token_dim)

    def prefix(self, batch: int) -> Tensor:
        """No class or register tokens: (B, 0, token_dim)."""
        return next(self.parameters()).new_zeros(batch, 0, self.token_dim)

    def patches(self, x: Tensor) -> Tensor:
        """Checked input as patches a channel: (B, C, T) -> (B, C, N, patch)."""
        self._check_images(x)
        self.grid(*x.shape[2:])
        return x[..., -self.context:].unflatten(-1, (self.count, self.stride))

    def split(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, C * D) -> vectors a channel (B, C, N, D)."""
        if tokens.shape[1:] != (self.count, self.token_dim):
            raise UsageError(f"{self.name} computes all {self.count} tokens of its context together.",
                             where=f"tokens {tuple(tokens.shape)}", fix="Choose a ViT, e.g. vit_tiny.")
        return tokens.unflatten(-1, (self.channels, -1)).transpose(1, 2)

    @staticmethod
    def join(vectors: Tensor) -> Tensor:
        """Vectors a channel (B, C, N, D) -> tokens (B, N, C * D)."""
        return vectors.transpose(1, 2).flatten(2)

    def forward(self, x: Tensor, *, keep: Tensor | None = None, mask: Tensor | None = None,
                mask_token: Tensor | None = None) -> Features:
        """(B, C, T) -> Features; see :meth:`Backbone.forward`. Tokens cannot be left out (``keep``)."""
        if keep is not None:
            raise self._refuse("keep: it computes all tokens of its context together", "Use mask, or a ViT.")
        return self.finish(*placed_tokens(self, x, mask, mask_token))

    def finish(self, tokens: Tensor, grid: tuple[int, ...], present: Tensor | None = None) -> Features:
        """Tokens -> trunk -> Features, pooled by the mean."""
        out = self.trunk(tokens)
        assert isinstance(out, torch.Tensor)
        return Features(pooled=out.mean(1), tokens=out, grid=grid)
