"""What every backbone is: samples in, :class:`~osteon.parts.types.Features` out."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from osteon.core.errors import UsageError
from osteon.core.licences import UNKNOWN
from osteon.parts.targets import patchify, unpatchify
from osteon.parts.types import Features


class Backbone(nn.Module):
    """Base of all backbones.

    Args:
        name: the name it was built by.
        channels: number of input channels C.
        size: side of the square images it is meant for, in pixels, or the sides of another sample.
        options: every option of the architecture after defaults were resolved, as JSON-ready values. The same name,
            channels, size and options build the same network with fresh random weights, without any download.
    """

    kind: Literal["tokens", "maps", "towers", "nodes"]
    dim: int  # width of pooled features
    token_dim: int  # width of tokens
    stride: int  # pixels a token
    discrete: bool = False  # a token shows a member of a vocabulary, not values
    apart: int = 1  # equal parts of a token's width: the number of channels where each has a part of its own
    level_dims: tuple[int, ...] = ()  # widths of the feature pyramid, finest first
    level_strides: tuple[int, ...] = ()  # pixels a cell of each level

    def __init__(self, name: str, *, channels: int, size: int | Sequence[int], options: dict[str, Any]) -> None:
        super().__init__()
        self.extent = (size, size) if isinstance(size, int) else tuple(size)
        if channels < 1 or min(self.extent, default=0) < 1:
            raise UsageError(f"A backbone needs at least one channel and one pixel, not {channels} and {size}.",
                             where=name)
        square = len(self.extent) == 2 and self.extent[0] == self.extent[1]
        self.size: int | tuple[int, ...] = self.extent[0] if square else self.extent
        self.name, self.channels, self.options = name, channels, options
        self.notes: list[str] = []  # every automatic choice with its rule
        self.origin: dict[str, str] | None = None  # name (with its commit where that is known) and licence of weights

    def example(self, count: int, *, seed: int = 0) -> Tensor:
        """Samples (B, C, *extent) of the size it is meant for, drawn at random, on the CPU.

        They are as the network takes them: what counts its cost, times it or writes it down as a program asks for them.
        Nothing in them is missing and no part only fills up, so that no sample costs more.
        """
        return torch.randn(count, self.channels, *self.extent, generator=torch.Generator().manual_seed(seed))

    @abstractmethod
    def forward(self, x: Tensor, *, keep: Tensor | None = None, mask: Tensor | None = None,
                mask_token: Tensor | None = None) -> Features:
        """Encode samples (B, C, *extent), of images (B, C, H, W).

        Args:
            x: normalised samples.
            keep: (B, K) int64 raster indices of the tokens to compute; the others are left out (kind "tokens" only).
            mask: (B, N) bool, True = hidden. Kind "tokens": hidden tokens are replaced by ``mask_token``. Kind "maps":
                sparse convolution, hidden positions stay zero through the network. Kind "nodes": the features of
                hidden nodes are replaced, by a ``mask_token`` as wide as these.
            mask_token: (token_dim,) what stands for a hidden token; zeros when None.
        """

    def grid(self, *extent: int) -> tuple[int, ...]:
        """Sides of the grid of tokens for a sample of these sides: rows and columns for a height and a width."""
        if any(side % self.stride or side < self.stride for side in extent):
            sides = " x ".join(map(str, extent))
            raise UsageError(f"{sides} pixels do not divide into tokens of {self.stride} pixels.", where=self.name,
                             fix=f"Use sizes that are multiples of {self.stride}.")
        return tuple(side // self.stride for side in extent)

    def shown(self, x: Tensor) -> Tensor:
        """What each token shows, the target of reconstruction: (B, C, *extent) -> (B, N, shown_width) values.

        Where a token is one of a vocabulary: (B, N) int64 numbers of it, and ``shown_width`` is its size.
        """
        return patchify(x, self.stride)

    @property
    def shown_width(self) -> int:
        """Numbers it takes to predict what one token shows: stride * stride * C for images."""
        return self.channels * self.stride ** len(self.extent)

    own_error: bool = False  # what a token shows has an error of its own, see :meth:`shown_error`

    def shown_error(self, prediction: Tensor, shown: Tensor) -> Tensor:
        """Error of every token, (B, N), of predictions (B, N, shown_width); only where ``own_error``."""
        raise self._refuse("shown_error()")

    def shown_values(self, prediction: Tensor) -> Tensor:
        """Predictions (B, N, shown_width) in the terms of what tokens show, for pictures."""
        return prediction

    def shown_blank(self, shown: Tensor) -> Tensor:
        """What stands for hidden tokens in pictures, of the shape of ``shown``: zeros, the data's mean."""
        return torch.zeros_like(shown)

    place_width: int = 0  # coordinates of a token's place, 0 where the grid says it

    def places(self, x: Tensor) -> Tensor | None:
        """Where every token of these samples lies, (B, N, place_width), or None: on the grid."""
        return None

    def present(self, x: Tensor) -> Tensor | None:
        """(B, N) bool, False for tokens that only fill a sample up (padding), or None: all are real."""
        return None

    def assemble(self, shown: Tensor, x: Tensor) -> Tensor:
        """What tokens show (B, N, ...) as samples again, (B, C, *extent) like ``x``, for pictures."""
        return unpatchify(shown, self.stride, self.grid(*x.shape[2:]))

    def stem(self, x: Tensor) -> Tensor:
        """Patches (B, C, *extent) -> tokens (B, N, token_dim), without positions."""
        raise self._refuse("stem()")

    def positions(self, grid: tuple[int, ...], x: Tensor | None = None) -> Tensor:
        """Position embeddings of a grid, (1, N, token_dim), to be added to the tokens.

        Where tokens have places of their own (``place_width``), of the samples ``x``: (B, N, token_dim).
        """
        raise self._refuse("positions()")

    def trunk(self, tokens: Tensor, *, attend: Tensor | None = None,
              collect: Sequence[int] = ()) -> Tensor | tuple[Tensor, list[Tensor]]:
        """All blocks and the last norm: (B, M, D) -> (B, M, D); with ``collect`` also those blocks' outputs."""
        raise self._refuse("trunk()")

    def prefix(self, batch: int) -> Tensor:
        """Class and register tokens with their positions, (B, P, token_dim), to be put before the patches."""
        raise self._refuse("prefix()")

    def finish(self, tokens: Tensor, grid: tuple[int, ...], present: Tensor | None = None) -> Features:
        """Patch tokens with positions (B, K, token_dim) -> trunk, with the prefix -> features.

        Where ``present`` (B, K) is False nothing is looked at and nothing is pooled.
        """
        raise self._refuse("finish()")

    def make_causal(self) -> None:
        """From now on :meth:`forward` lets every token see only itself and those before it; an option like others."""
        raise self._refuse("causal attention")

    def describe(self) -> dict[str, Any]:
        """Name, number of parameters, floating-point operations of one image's forward pass, automatic choices."""
        return {"name": self.name, "params": sum(p.numel() for p in self.parameters()), "flops": self._flops(),
                "notes": list(self.notes)}

    @torch.no_grad()
    def _flops(self) -> int:
        """A multiplication and an addition count as two, as in torch's counter."""
        like = next(self.parameters())
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            with FlopCounterMode(display=False) as counter:
                self(self.example(1).to(like))
        finally:
            for module, mode in modes.items():
                module.training = mode
        return int(counter.get_total_flops())

    def _note_origin(self, pretrained: bool, name: str, commit: str, licence: Any = None) -> None:
        """Say where the weights of a foreign model come from, under which licence, and what its normalisation sees."""
        self.origin = {"name": f"{name}@{commit}" if commit else name,
                       "license": str(licence or UNKNOWN)} if pretrained else None
        self.notes.append("weights: " + ("random" if not pretrained else
                                         f"as published, commit {commit}" if commit else "as published"))
        if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.modules()):
            self.notes.append("its BatchNorm takes the statistics of each process's own share of the batch")

    def _refuse(self, what: str, fix: str = "Choose a ViT, e.g. vit_tiny.") -> UsageError:
        return UsageError(f"{self.name} does not support {what}.", where="backbone", fix=fix)

    def _check_images(self, x: Tensor) -> None:
        if x.dim() != 2 + len(self.extent) or x.shape[1] != self.channels:
            sides = {1: "samples (B, {c}, T)", 2: "images (B, {c}, H, W)", 3: "volumes (B, {c}, D, H, W)"}
            raise UsageError(f"{self.name} takes {sides[len(self.extent)].format(c=self.channels)}.",
                             where=f"shape {tuple(x.shape)}")

    def _check_mask(self, mask: Tensor, batch: int, grid: tuple[int, ...]) -> None:
        if mask.shape != (batch, math.prod(grid)) or mask.dtype != torch.bool:
            raise UsageError(f"A mask must be bool of shape ({batch}, {math.prod(grid)}), True = hidden.",
                             where=f"{mask.dtype} {tuple(mask.shape)}")


def placed_tokens(network: Backbone, x: Tensor, mask: Tensor | None,
                  mask_token: Tensor | None) -> tuple[Tensor, tuple[int, ...]]:
    """A network's stem on samples, hidden tokens replaced, then positions added: (B, N, D), and the tokens' grid."""
    tokens, grid = network.stem(x), network.grid(*x.shape[2:])
    if mask is not None:
        network._check_mask(mask, x.shape[0], grid)
        tokens = replace_hidden(tokens, mask, mask_token)
    return tokens + network.positions(grid, x), grid


def finish_some(network: Backbone, tokens: Tensor, grid: tuple[int, ...], present: Tensor) -> Features:
    """:meth:`Backbone.finish` without the tokens that no sample has; in their places zeros come back."""
    some = present.any(0)
    some[0] |= ~some.any()
    at = some.nonzero()[:, 0]
    made = network.finish(tokens[:, at], grid, present[:, at] | ~present.any(1, keepdim=True))
    out = made.tokens.new_zeros(*tokens.shape[:2], made.tokens.shape[-1]).index_copy(1, at, made.tokens)
    return Features(pooled=made.pooled, tokens=out, grid=grid, cls=made.cls)


def replace_hidden(tokens: Tensor, mask: Tensor, mask_token: Tensor | None) -> Tensor:
    """Put ``mask_token`` (D,), or zeros, where ``mask`` (B, N) is True in ``tokens`` (B, N, D)."""
    filler = tokens.new_zeros(()) if mask_token is None else mask_token.to(tokens.dtype)
    return torch.where(mask[..., None], filler, tokens)


def take_kept(tokens: Tensor, keep: Tensor) -> Tensor:
    """The tokens (B, N, D) at raster indices ``keep`` (B, K), in that order: (B, K, D)."""
    if keep.dim() != 2 or keep.shape[0] != tokens.shape[0] or keep.dtype != torch.int64 or not keep.shape[1]:
        raise UsageError("keep must be int64 of shape (B, K) with at least one token a sample.",
                         where=f"{keep.dtype} {tuple(keep.shape)}")
    return tokens.gather(1, keep[..., None].expand(-1, -1, tokens.shape[-1]))


def map_features(last: Tensor, pooled: Tensor, levels: list[Tensor]) -> Features:
    """Features of a convolutional network from its last map (B, D, h, w), pooled vector and pyramid."""
    return Features(pooled=pooled, tokens=last.flatten(2).transpose(1, 2), grid=(last.shape[2], last.shape[3]),
                    levels=levels)
