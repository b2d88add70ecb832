"""Cross-correlation of two views' embeddings and how far it is from the identity (Barlow Twins and its kin).

Zbontar et al. 2021, arXiv:2103.03230, eq. 1 and 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from osteon.core.errors import UsageError


def standardise(z: Tensor, eps: float = 1e-5) -> Tensor:
    """Give every feature mean 0 and (biased) variance 1 over the batch; a constant feature becomes zero.

    Args:
        z: (B, D) embeddings of the whole batch, B at least 2.
        eps: added to the variance.

    Returns:
        (B, D) float32.

    Raises:
        UsageError: for a batch of one sample, which has no correlation.
    """
    if z.shape[0] < 2:
        raise UsageError("Correlation over the batch needs at least 2 samples.", where=f"embeddings {tuple(z.shape)}",
                         fix="Use a larger batch.")
    z = z.float()
    centred = z - z.mean(0)
    return centred * torch.rsqrt(centred.square().mean(0) + eps)


def cross_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Correlation of every feature of ``a`` with every feature of ``b``, both standardised. (B, D), (B, D) -> (D, D).

    Entries lie in [-1, 1]; row i belongs to feature i of ``a``.
    """
    return a.T @ b / a.shape[0]


def distance_to_identity(c: Tensor) -> tuple[Tensor, Tensor]:
    """How far a correlation matrix is from the identity: on the diagonal and off it. (D, D) -> (), ().

    Returns:
        ``sum_i (1 - c_ii)^2`` (invariance) and ``sum_{i != j} c_ij^2`` (redundancy).
    """
    diagonal = c.diagonal()
    off = c - torch.diag(diagonal)
    return (1 - diagonal).square().sum(), off.square().sum()


def redundancy_weight(asked: float, dim: int) -> float:
    """Weight of the off-diagonal term: what was asked (not 0), else 0.0051 or, where larger, 8 / dim.

    The diagonal has ``dim`` entries and the rest ``dim * (dim - 1)``, so one weight cannot fit every width. The rule
    gives both published choices: 0.0051 at 8192 (Barlow Twins) and 1/128 at 1024 (Mixed Barlow Twins on CIFAR).

    Args:
        asked: the user's wish; 0 = by the rule.
        dim: width of the embedding.
    """
    return asked or max(0.0051, 8 / dim)


def barlow_loss(z_B2D: Tensor, redundancy: float) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and its two terms from the projections of two views, standardised over the batch here.

    Args:
        z_B2D: (B, 2, D) projections.
        redundancy: weight of the off-diagonal term (lambda in the paper).

    Returns:
        ``on + redundancy * off``, ``on = sum_i (1 - C_ii)^2`` and ``off = sum_{i != j} C_ij^2``, each ().
    """
    a, b = z_B2D.unbind(1)
    on, off = distance_to_identity(cross_correlation(standardise(a), standardise(b)))
    return on + redundancy * off, on, off
