"""Projection heads whose last layer has no bias, for losses that cannot see a common shift of all embeddings."""

from __future__ import annotations

from typing import Literal

from torch import nn

from osteon.parts.heads import mlp


def width_of(dim: int, asked: int, *, times: int, most: int) -> int:
    """Width of a head's layers: what was asked, else ``times`` the backbone's width, from 256 to ``most``.

    Args:
        dim: width of the backbone's pooled features.
        asked: the user's wish; 0 = by the rule.
        times: the papers' width over that of a ResNet-50 (2048), so that a ResNet-50 gets the papers' head.
        most: the papers' width, never exceeded by the rule.
    """
    return asked or min(most, max(256, times * dim))


def expander(widths: tuple[int, ...], *, norm: Literal["batch", "layer"] = "batch") -> nn.Sequential:
    """Linear, norm, ReLU, repeated, then a linear layer without bias (VICReg, sec. 4.2; Barlow Twins, sec. 2.2).

    A bias at the end would shift every embedding alike, which centring and differences undo: it would never be trained.

    Args:
        widths: input width, hidden widths, output width.
        norm: normalisation of the hidden layers; ``"layer"`` makes gradient accumulation exact.
    """
    head = mlp(widths, norm=norm)
    head[-1] = nn.Linear(widths[-2], widths[-1], bias=False)
    return head
