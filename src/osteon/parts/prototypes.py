"""Prototypes on the unit sphere, and codes that spread a batch evenly over them (Sinkhorn-Knopp).

Caron et al. 2020 (SwAV), arXiv:2006.09882, sec. 3.1 and appendix A; Cuturi 2013, arXiv:1306.0895.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.core.errors import UsageError


@torch.no_grad()
def sinkhorn(scores_BK: Tensor, *, eps: float = 0.05, iterations: int = 3) -> Tensor:
    """Codes: shares of each sample in each prototype, such that all prototypes are used about equally.

    Starts from ``exp(scores / eps)`` and, ``iterations`` times, gives every prototype the mass 1/K and then every
    sample the mass 1/B. Done on logarithms, so no score can overflow.

    Args:
        scores_BK: (B, K) similarity of every sample of the whole batch with every prototype.
        eps: softness; smaller = closer to one prototype a sample.
        iterations: rounds of balancing; many rounds make prototype masses equal, the paper's three nearly so.

    Returns:
        (B, K) float32 without gradient; rows sum to 1, columns to about B/K.

    Raises:
        UsageError: for ``eps`` not positive or no iterations.
    """
    if eps <= 0 or iterations < 1:
        raise UsageError(f"Balancing needs eps > 0 and at least one iteration, not {eps} and {iterations}.",
                         where="eps, iterations")
    b, k = scores_BK.shape
    log_q = scores_BK.float() / eps
    for _ in range(iterations):
        log_q = log_q - log_q.logsumexp(0, keepdim=True) - math.log(k)
        log_q = log_q - log_q.logsumexp(1, keepdim=True) - math.log(b)
    return (log_q + math.log(b)).exp()


def busiest(codes_BK: Tensor) -> Tensor:
    """Mass of the fullest prototype over the even share: 1 = balanced, K = all on one. (B, K) -> ()."""
    return codes_BK.float().mean(0).max() * codes_BK.shape[1]


def count_for(asked: int, classes: int, *, per_class: int = 10, least: int = 200, unknown: int = 300,
              most: int = 3000) -> tuple[int, str]:
    """Number of prototypes and the rule in words: what was asked, else ten a class, else 300.

    Args:
        asked: the user's wish; 0 = by the rule.
        classes: number of classes, 0 when unknown. Only the number is used, never a label.
        per_class: prototypes a class (the rule of thumb of SwAV's authors).
        least: the rule never gives fewer: with fewer prototypes than dimensions, embeddings could hide in directions
            that no prototype sees.
        unknown: number where classes are unknown.
        most: the rule never gives more (the paper's number for ImageNet).
    """
    if asked < 0 or asked == 1:
        raise UsageError(f"{asked} prototypes cannot tell samples apart.", where="--set prototypes",
                         fix="Give at least 2, or 0 for the rule.")
    if asked:
        return asked, f"prototypes = {asked}: as asked"
    if not classes:
        return unknown, f"prototypes = {unknown}: the number of classes is unknown"
    count = min(most, max(least, per_class * classes))
    return count, f"prototypes = {count}: {per_class} for each of {classes} classes, {least} to {most}"


class Prototypes(nn.Module):
    """K directions that embeddings are compared with.

    The weight's rows are scaled to unit length before use, so only their direction is learned.

    Args:
        width: width P of the embeddings.
        count: number K of prototypes.
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(count, width), dim=1))

    def forward(self, z: Tensor, *, held: bool = False) -> Tensor:
        """Products of embeddings with every unit prototype. (..., P) -> (..., K) float32.

        Args:
            z: embeddings; of unit length if cosines are wanted.
            held: keep the prototypes where they are: their gradient is zero (not absent, so that optimisers count the
                step alike on one process and on several), that of ``z`` is unchanged.
        """
        weight = self.weight.detach() + 0 * self.weight if held else self.weight
        return F.linear(z.float(), F.normalize(weight.float(), dim=1))

    @torch.no_grad()
    def renormalise(self) -> None:
        """Scale the stored rows to unit length; products do not change."""
        self.weight.copy_(F.normalize(self.weight, dim=1))
