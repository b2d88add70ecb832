"""Linearity of layers: how much of what a block does is one linear map.

Razzhigaev et al. 2024, "Your Transformer is Secretly Linear", arXiv:2405.12250, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from osteon.core.card import Card
from osteon.core.errors import DataError

CARD = Card(
    kind="analysis",
    name="linearity",
    papers=("Your Transformer is Secretly Linear",),
    modalities=("image", "sound", "series", "text", "table", "graph", "points", "volume", "video", "several"),
    differs="the map is fitted on one half of the positions and scored on the other, where the paper scores what it "
            "fitted; beside the paper's score stand one without the largest dimensions and one of what the block "
            "adds",
    rows=(310,),
    backbones=("tokens", "maps"),
    cost="1 forward per sample and a least-squares fit a block",
    switch="osteon analyse RUN SOURCE --only linearity",
)


@dataclass(frozen=True)
class Linear:
    """A fitted map ``y = (x - mean_x) A + mean_y``: weight A (D, E), means (D,) and (E,), all float64."""

    weight: Tensor
    mean_x: Tensor
    mean_y: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., E) in the type of ``x``: what a block is replaced by."""
        return ((x.double() - self.mean_x) @ self.weight + self.mean_y).to(x.dtype)


def fit_linear(x: Tensor, y: Tensor, cut: float = 1e-6) -> Linear:
    """Least squares from (N, D) to (N, E); directions of x weaker than ``cut`` of the strongest are left out."""
    if len(x) != len(y) or len(x) < 2:
        raise DataError(f"{len(x)} inputs and {len(y)} outputs cannot be fitted.", where="linearity")
    x, y = x.double(), y.double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    u, s, v = torch.linalg.svd(x - mean_x, full_matrices=False)
    keep = s > cut * s.max().clamp(min=1e-300)
    weight = (v[keep].T / s[keep]) @ (u[:, keep].T @ (y - mean_y))
    return Linear(weight, mean_x, mean_y)


def linearity(x: Tensor, y: Tensor, held_x: Tensor | None = None, held_y: Tensor | None = None) -> float:
    """Share of the variance of y that the best linear map of x explains: 1 for y = x A + b, (N, D), (N, E).

    With held-out pairs the map is fitted on the first and scored on the second, about their mean; without, on the same
    ones, where even noise scores about D / N.
    """
    fitted = fit_linear(x, y)
    asked, truth = (x, y) if held_x is None or held_y is None else (held_x, held_y)
    truth = truth.double()
    spread = (truth - truth.mean(0)).square().sum()
    return float(1 - (truth - fitted(asked.double())).square().sum() / spread) if spread > 0 else 1.0


def block_scores(before: Tensor, after: Tensor, *, outliers: int = 3) -> dict[str, float]:
    """Linearity of one block from tokens entering and leaving it, (N, D) each; half fit, half score.

    Returns:
        ``residual``: with the residual stream, ``alone``: of what the block adds (after - before, on before), and
        ``trimmed``: with the stream but without the ``outliers`` output dimensions of largest variance, which can
        hide all others.
    """
    half = len(before) // 2
    keep = after.double().var(0).argsort(descending=True)[min(outliers, after.shape[1] - 1):]
    out = {}
    for name, target in (("residual", after), ("alone", after - before if after.shape == before.shape else after),
                         ("trimmed", after[:, keep])):
        out[name] = linearity(before[:half], target[:half], before[half:], target[half:])
    return out


def most_linear(scores: Sequence[dict[str, float]]) -> int:
    """Number of the block with the highest score with the residual stream."""
    return max(range(len(scores)), key=lambda i: scores[i]["residual"])
