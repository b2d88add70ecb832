"""Hierarchical causal Transformer on series: each stage forecasts what the coarser ones before it left over.

Liu et al. 2024, "Generative Pretrained Hierarchical Transformer for Time Series Forecasting", section on the
architecture. A stage pools its input, reads it token by token and says what the next token holds; that forecast, moved
one token to the right, is taken from the input of the next, finer stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones._channels import ChannelwiseBackbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.positions import sincos
from osteon.parts.transformer import Block
from osteon.parts.types import Features

CARD = Card(
    kind="backbone",
    name="gpht",
    papers=("Generative Pretrained Hierarchical Transformer for Time Series Forecasting",),
    modalities=("series",),
    differs="No dropout (the authors: 0.1), pre-norm blocks and fixed sine-cosine positions. The window's "
    "normalisation and the loss belong to the objective `next_patch`. Without a patch size the largest "
    "multiple of the coarsest pooling is taken that divides the window and leaves at least 7 tokens (48 of "
    "336 steps, as in the authors' settings). Tokens, which the paper does not use, are the states of all "
    "stages one after the other, a channel each.",
    rows=(386,),
    backbones=("tokens",),
    cost="as many causal Transformers as stages, all of the same few tokens",
)

#: Name -> width, blocks of a stage, heads. gpht_base has the authors' sizes.
SIZES: dict[str, dict[str, int]] = {
    "gpht_tiny": {"dim": 32, "depth": 1, "heads": 2},
    "gpht_mini": {"dim": 64, "depth": 2, "heads": 4},
    "gpht_base": {"dim": 512, "depth": 3, "heads": 8},
}


def default_patch(steps: int, coarsest: int) -> int:
    """Steps of a token: the largest multiple of the coarsest pooling that divides the window into 7 or more."""
    fitting = [p for p in range(coarsest, steps // 7 + 1, coarsest) if steps % p == 0]
    if not fitting:
        raise UsageError(f"No multiple of the pooling by {coarsest} divides a window of {steps} steps in 7 tokens or "
                         "more.", where="patch", fix="Choose a longer window, or smaller pools, e.g. pools=2,1.")
    return fitting[-1]


class Stage(nn.Module):
    """One causal Transformer on a pooled series: (M, N * patch) -> states (M, N, D), forecasts (M, N, patch).

    Args:
        pool: steps that become one by their maximum.
        patch: steps of a token, a multiple of ``pool``.
        dim: D.
        depth: blocks.
        heads: attention heads.
    """

    def __init__(self, pool: int, patch: int, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.pool, self.patch, self.dim = pool, patch, dim
        self.embed = nn.Linear(patch // pool, dim, bias=False)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, patch)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """States, and what each says of the token after its own."""
        pooled = F.max_pool1d(x[:, None], self.pool)[:, 0]
        tokens = self.embed(pooled.unflatten(1, (-1, self.patch // self.pool)))
        count = tokens.shape[1]
        tokens = tokens + sincos((count,), self.dim).to(tokens)
        past = torch.ones(count, count, dtype=torch.bool, device=x.device).tril()
        for block in self.blocks:
            tokens = block(tokens, attend=past)
        states = self.norm(tokens)
        return states, self.head(states)


class GPHT(ChannelwiseBackbone):
    """Hierarchical causal Transformer. Channels are separate series, read by the same weights.

    A window of any whole number of tokens is read. Token n holds the states of all stages after tokens 0 to n.

    Args:
        name: the name it was built by.
        channels: number of channels.
        size: steps of the window it is meant for.
        dim: width of a stage's states.
        depth: blocks of a stage.
        heads: attention heads; must divide ``dim``.
        pools: pooling of each stage, the coarsest first; all divide the patch.
        patch: steps of a token; 0 = by the window, see :func:`default_patch`.
    """

    def __init__(self, name: str, *, channels: int, size: int | Sequence[int], dim: int, depth: int, heads: int,
                 pools: Sequence[int] = (8, 4, 2, 1), patch: int = 0) -> None:
        extent = (size, size) if isinstance(size, int) else tuple(size)
        if not pools or min(*pools, dim, depth, heads) < 1 or dim % heads or dim % 2:
            raise UsageError(f"heads ({heads}) must divide dim ({dim}), which is even; pools, dim and depth are at "
                             "least 1.", where="gpht")
        chosen = patch or default_patch(extent[0], max(pools))
        if any(chosen % pool for pool in pools):
            raise UsageError(f"Poolings {', '.join(map(str, pools))} do not all divide a token of {chosen} steps.",
                             where="pools")
        options: dict[str, Any] = {"dim": dim, "depth": depth, "heads": heads, "pools": list(pools), "patch": chosen}
        super().__init__(name, channels=channels, size=extent, dim=dim * len(pools), patch=chosen, options=options)
        self.notes.append(f"patch {chosen}, so {self.count} tokens: " + (
            "as asked" if patch else "rule: the largest that leaves 7 tokens"))
        self.stages = nn.ModuleList(Stage(pool, chosen, dim, depth, heads) for pool in pools)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def grid(self, *extent: int) -> tuple[int, ...]:
        """(N,) of any window of whole tokens."""
        if len(extent) != 1 or extent[0] < self.stride or extent[0] % self.stride:
            raise UsageError(f"{' x '.join(map(str, extent))} steps do not divide into tokens of {self.stride}.",
                             where=self.name, fix=f"Use windows that are multiples of {self.stride}.")
        return (extent[0] // self.stride,)

    def shown(self, x: Tensor) -> Tensor:
        """Values of each token: (B, C, T) -> (B, N, patch * C)."""
        return super(ChannelwiseBackbone, self).shown(x)

    def read(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """States of all stages (B, C, N, S * D), and each stage's forecast of the token after n, (B, C, N, patch)."""
        self._check_images(x)
        self.grid(*x.shape[2:])
        rest, states, forecasts = x.flatten(0, 1), list[Tensor](), list[Tensor]()
        for stage in self.stages:
            state, ahead = stage(rest)
            states.append(state)
            forecasts.append(ahead.unflatten(0, x.shape[:2]))
            rest = rest - F.pad(ahead[:, :-1], (0, 0, 1, 0)).flatten(1)
        return torch.cat(states, -1).unflatten(0, x.shape[:2]), forecasts

    def forward(self, x: Tensor, *, keep: Tensor | None = None, mask: Tensor | None = None,
                mask_token: Tensor | None = None) -> Features:
        """(B, C, T) -> Features; nothing can be hidden from it."""
        if keep is not None or mask is not None:
            raise self._refuse("hidden tokens")
        tokens = self.join(self.read(x)[0])
        return Features(pooled=tokens.mean(1), tokens=tokens, grid=self.grid(*x.shape[2:]))

    def make_causal(self) -> None:
        """It always is."""

    def positions(self, grid: tuple[int, ...], x: Tensor | None = None) -> Tensor:
        """Refused: every stage adds its own."""
        raise self._refuse("positions()")
