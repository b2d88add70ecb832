"""Losses between members of the same sets: who belongs to whom."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F


def pairs_of(count: int) -> list[tuple[int, int]]:
    """All pairs of members, the earlier first."""
    return list(combinations(range(count), 2))


def symmetric_nce(a: Tensor, b: Tensor, scale: Tensor | float, *, smoothing: float = 0.0,
                  weight: Tensor | None = None) -> Tensor:
    """Mean of the cross-entropies of picking b's partner among a, and a's among b. Radford et al. 2021, figure 3.

    Args:
        a: (B, D) on the unit sphere.
        b: (B, D) partners, row for row.
        scale: what cosines are multiplied by, an inverse temperature.
        smoothing: share of the target spread evenly over the batch (Jia et al. 2021).
        weight: (B,) of the rows as anchors; all alike when None.

    Returns:
        ().
    """
    logits = scale * a.float() @ b.float().T
    target = torch.arange(len(a), device=a.device)
    both = [F.cross_entropy(part, target, label_smoothing=smoothing, reduction="none") for part in (logits, logits.T)]
    each = (both[0] + both[1]) / 2
    if weight is None:
        return each.mean()
    return (each * weight).sum() / weight.sum().clamp(min=1e-12)
