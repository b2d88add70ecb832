"""Projection heads: what features lose between the backbone and the space in which a loss compares them.

Xue et al. 2024, "Investigating the Benefits of Projection Head for Representation Learning", arXiv:2403.11391.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.evaluators.label_free import entropy_rank
from osteon.evaluators.linear_probe import LinearProbe

CARD = Card(
    kind="analysis",
    name="projection_head",
    papers=("Investigating the Benefits of Projection Head for Representation Learning",),
    modalities=("image", "sound", "series", "text", "table", "graph", "points", "volume", "video", "several"),
    differs="probes of the class and of a rotation stand for the paper's synthetic features; the reweighting head "
            "is offered as a module and not trained by the analysis; only images have the probe of the rotation",
    rows=(43,),
    backbones=("tokens", "maps"),
    labels=True,
    cost="4 forwards per image and 4 linear probes",
    switch="osteon analyse RUN SOURCE --only projection_head",
)


class FixedReweightHead(nn.Module):
    """A stand-in for a projection head: feature i is multiplied by kappa^-i, and nothing is trained (section 5).

    With kappa 1 it is the identity. The weights fall fast: at 1.05 below 1e-3 after 142 features.

    Args:
        dim: number of features D.
        kappa: at least 1; None takes the one at which the last feature has the weight ``least``.
        least: weight of the last feature, in (0, 1].
    """

    weight: Tensor

    def __init__(self, dim: int, kappa: float | None = None, *, least: float = 1e-3) -> None:
        super().__init__()
        if dim < 1 or (kappa is not None and kappa < 1) or not 0 < least <= 1:
            raise UsageError("dim and kappa are at least 1 and least lies in (0, 1].", where="FixedReweightHead")
        self.kappa = float(least ** (-1 / max(1, dim - 1))) if kappa is None else float(kappa)
        # A buffer, so that no optimiser decays it.
        self.register_buffer("weight", torch.tensor(self.kappa, dtype=torch.float64).pow(-torch.arange(dim)).float())

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return x * self.weight


def unevenness(x: np.ndarray) -> float:
    """Share of the variance in the strongest tenth of the principal directions, at least one: 0.1 is even."""
    centred = np.asarray(x, np.float64) - np.asarray(x, np.float64).mean(0)
    values = np.linalg.svd(centred, compute_uv=False) ** 2
    return float(values[:max(1, len(values) // 10)].sum() / max(values.sum(), 1e-300))


def head_report(before: np.ndarray, after: np.ndarray, labels: dict[str, np.ndarray],
                train: np.ndarray) -> dict[str, dict[str, float]]:
    """Linear probes and spread of features before and after a head.

    Args:
        before: (N, D) features of the backbone.
        after: (N, P) the head's output for the same samples.
        labels: what to ask, e.g. ``{"class": ..., "rotation": ...}``: (N,) class numbers each.
        train: (N,) bool, the samples the probes are fitted on; the others are asked.

    Returns:
        ``before``, ``after``: effective rank, unevenness and, per label, the probe's accuracy.
    """
    out: dict[str, dict[str, float]] = {}
    for name, x in (("before", np.asarray(before, np.float32)), ("after", np.asarray(after, np.float32))):
        centred = torch.from_numpy(x - x.mean(0)).double()
        row = {"effective_rank": entropy_rank(torch.linalg.svdvals(centred)), "unevenness": unevenness(x)}
        for asked, y in labels.items():
            told = LinearProbe()(x[train], y[train], x[~train], classes=int(y.max()) + 1).argmax(1)
            row[f"probe_{asked}"] = float((told == y[~train]).mean())
        out[name] = row
    return out
