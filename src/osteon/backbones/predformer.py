"""PredFormer: frames as patches, mixed by gated Transformer units over time, over space, or over both.

"PredFormer: Transformers Are Effective Spatial-Temporal Predictive Learners", Tang et al. 2024, section 3.
Shape letters: B batch, T frames, N patches of a frame, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones._base import Backbone, placed_tokens
from osteon.backbones._stem_tubes import TubeEmbed
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.positions import sincos_1d
from osteon.parts.stochastic_depth import StochasticDepth, drop_rates
from osteon.parts.transformer import Attention
from osteon.parts.types import Features

CARD = Card(
    kind="backbone",
    name="predformer",
    papers=("PredFormer: Transformers Are Effective Spatial-Temporal Predictive Learners",),
    modalities=("video",),
    differs="The network up to its last unit; the norm and the linear map to pixels belong to the objective "
    "`frame_prediction`. No dropout inside attention (0.1 for TaxiBJ in the authors' settings). Without a patch "
    "size frames up to 63 pixels are cut into patches of 4. Masks are possible, which the paper does not use.",
    rows=(51,),
    backbones=("tokens",),
    cost="units over time and units over space instead of attention over all T * N tokens",
)

#: Layout -> the units of one group: over time (T), over space (S), over both (F).
GROUPS = {"full": "F", "ts": "TS", "st": "ST", "tst": "TST", "sts": "STS", "tsst": "TSST", "stts": "STTS"}
#: Name -> width, groups, heads, layout. predformer_base has the authors' sizes for Moving MNIST.
SIZES: dict[str, dict[str, Any]] = {
    "predformer_tiny": {"dim": 64, "depth": 1, "heads": 4, "layout": "tsst"},
    "predformer_mini": {"dim": 128, "depth": 2, "heads": 4, "layout": "tsst"},
    "predformer_base": {"dim": 256, "depth": 6, "heads": 8, "layout": "tsst"},
}


def unit_order(layout: str, depth: int) -> str:
    """The letters of all units: ``depth`` groups, or of factorised layouts ``depth`` units of each kind."""
    if layout in ("factorised_ts", "factorised_st"):
        first, second = layout[-2].upper(), layout[-1].upper()
        return first * depth + second * depth
    if layout not in GROUPS:
        raise UsageError(f"There is no layout {layout!r}.", where="layout",
                         fix=f"Give {', '.join(GROUPS)}, factorised_ts or factorised_st.")
    return GROUPS[layout] * depth


class SwiGLU(nn.Module):
    """``W2 (silu(Wg x) * (Wx x))``: (..., D) -> (..., D)."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.gate, self.value, self.out = nn.Linear(dim, hidden), nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to every token."""
        return self.drop(self.out(self.drop(F.silu(self.gate(x)) * self.value(x))))


class GatedUnit(nn.Module):
    """x + attention(norm x), then x + SwiGLU(norm x), then a norm, along one part of the grid.

    Args:
        over: ``"T"``: the frames at each place; ``"S"``: the places of each frame; ``"F"``: all tokens.
        dim: D.
        heads: of the attention.
        hidden: hidden width of the SwiGLU.
        dropout: of both branches.
        drop: rate of stochastic depth.
    """

    def __init__(self, over: str, dim: int, heads: int, hidden: int, dropout: float, drop: float) -> None:
        super().__init__()
        self.over = over
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.attn, self.mlp = Attention(dim, heads), SwiGLU(dim, hidden, dropout)
        self.drop, self.drop_path = nn.Dropout(dropout), StochasticDepth(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, N, D) -> (B, T, N, D)."""
        b, t, n, d = x.shape
        if self.over == "T":
            return self._unit(x.transpose(1, 2).reshape(b * n, t, d)).view(b, n, t, d).transpose(1, 2)
        return self._unit(x.reshape(b * t, n, d) if self.over == "S" else x.reshape(b, t * n, d)).view(b, t, n, d)

    def _unit(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.drop(self.attn(self.norm1(x))))
        return self.norm3(x + self.drop_path(self.mlp(self.norm2(x))))


class PredFormer(Backbone):
    """Gated Transformer over the patches of every frame.

    Fixed sine-cosine positions count all T * N tokens one after the other and are added once.

    Args:
        name: the name it was built by.
        channels: number of channels.
        size: (frames, height, width); clips of other lengths are read too.
        dim: D.
        depth: how often the group of units is repeated.
        heads: attention heads.
        layout: order of units: interleaved (ts, st, tst, sts, tsst, stts), factorised_ts or factorised_st (all of one
            kind, then all of the other), or full.
        patch: pixels of a patch; 0 = 4 below 64 pixels, then 8, 16 from 112.
        mlp_ratio: hidden width of the gated perceptron over D.
        dropout: rate of dropout of both branches.
        drop_path: rate of stochastic depth at the last unit, growing linearly from 0 at the first.
    """

    kind = "tokens"

    def __init__(self, name: str, *, channels: int, size: int | Sequence[int], dim: int, depth: int, heads: int,
                 layout: Literal["full", "ts", "st", "tst", "sts", "tsst", "stts", "factorised_ts",
                                 "factorised_st"] = "tsst",
                 patch: int = 0, mlp_ratio: float = 4.0, dropout: float = 0.0, drop_path: float = 0.0) -> None:
        extent = (size, size) if isinstance(size, int) else tuple(size)
        if len(extent) != 3:
            raise UsageError(f"{name} takes clips (frames, height, width), not {' x '.join(map(str, extent))}.",
                             where="backbone", fix="Choose a ViT, e.g. vit_tiny.")
        if min(dim, depth, heads) < 1 or dim % heads or dim % 2 or mlp_ratio <= 0 or not 0 <= dropout < 1:
            raise UsageError(f"heads ({heads}) must divide dim ({dim}), which is even; depth is at least 1, mlp_ratio "
                             "positive and dropout in [0, 1).", where="predformer")
        order = unit_order(layout, depth)
        stem = TubeEmbed(channels, extent, dim, time=1, side=patch)
        options = {"dim": dim, "depth": depth, "heads": heads, "layout": layout, "patch": stem.stride,
                   "mlp_ratio": mlp_ratio, "dropout": dropout, "drop_path": drop_path}
        super().__init__(name, channels=channels, size=extent, options=options)
        self.dim = self.token_dim = dim
        self.stride, self.patch_embed = stem.stride, stem
        self.places_a_frame = math.prod(stem.grid(*extent)[1:])
        self.blocks = nn.ModuleList(GatedUnit(over, dim, heads, int(dim * mlp_ratio), dropout, rate)
                                    for over, rate in zip(order, drop_rates(drop_path, len(order)), strict=True))
        self.notes.append(f"{stem.note()}; {len(order)} units over {order}")
        for module in self.modules():  # the authors' code, SwiGLU's gates included
            if isinstance(module, nn.Linear | nn.Conv3d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(cast(Tensor, module.bias))

    def grid(self, *extent: int) -> tuple[int, ...]:
        """(frames, rows, columns)."""
        return self.patch_embed.grid(*extent)

    @property
    def shown_width(self) -> int:
        """Pixels of a patch of one frame."""
        return self.patch_embed.shown_width

    def shown(self, x: Tensor) -> Tensor:
        """The pixels of every patch; see :meth:`Backbone.shown`."""
        return self.patch_embed.shown(x)

    def assemble(self, shown: Tensor, x: Tensor) -> Tensor:
        """Patches as frames again; see :meth:`Backbone.assemble`."""
        return self.patch_embed.assemble(shown, x)

    def stem(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> tokens (B, T * N, D) without positions."""
        self._check_images(x)
        self.grid(*x.shape[2:])
        return self.patch_embed(x)

    def positions(self, grid: tuple[int, ...], x: Tensor | None = None) -> Tensor:
        """(1, T * N, D): sine-cosine of the number of each token."""
        like = self.patch_embed.proj.weight
        return sincos_1d(torch.arange(math.prod(grid), device=like.device), self.token_dim)[None].to(like.dtype)

    def prefix(self, batch: int) -> Tensor:
        """No class or register tokens: (B, 0, D)."""
        return self.patch_embed.proj.weight.new_zeros(batch, 0, self.token_dim)

    def trunk(self, tokens: Tensor, *, attend: Tensor | None = None,
              collect: Sequence[int] = ()) -> Tensor | tuple[Tensor, list[Tensor]]:
        """All units on all tokens of clips of the size it was built for; ``attend`` is refused.

        Args:
            tokens: (B, T * N, D), positions added.
            attend: None: each unit knows what it attends to.
            collect: unit numbers (negative: from the end) whose outputs are returned too.
        """
        if attend is not None:
            raise self._refuse("attend: its units look along time or space")
        if tokens.shape[1] % self.places_a_frame:
            raise self._refuse(f"{tokens.shape[1]} tokens: it computes whole frames of {self.places_a_frame}")
        return self._units(tokens, self.places_a_frame, collect)

    def _units(self, tokens: Tensor, places: int, collect: Sequence[int] = ()) -> Tensor | tuple[Tensor, list[Tensor]]:
        x, seen = tokens.unflatten(1, (-1, places)), list[Tensor]()
        for unit in self.blocks:
            x = unit(x)
            seen.append(x.flatten(1, 2))
        return (seen[-1], [seen[i] for i in collect]) if collect else seen[-1]

    def forward(self, x: Tensor, *, keep: Tensor | None = None, mask: Tensor | None = None,
                mask_token: Tensor | None = None) -> Features:
        """(B, C, T, H, W) -> Features; see :meth:`Backbone.forward`. Tokens cannot be left out (``keep``)."""
        if keep is not None:
            raise self._refuse("keep: it computes all tokens of a clip together", "Use mask, or a ViT.")
        return self.finish(*placed_tokens(self, x, mask, mask_token))

    def finish(self, tokens: Tensor, grid: tuple[int, ...], present: Tensor | None = None) -> Features:
        """Tokens of a grid -> units -> Features, pooled by the mean."""
        out = cast(Tensor, self._units(tokens, math.prod(grid[1:])))
        return Features(pooled=out.mean(1), tokens=out, grid=grid)
