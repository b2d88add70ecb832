"""What features look like without labels: how many dimensions they use, whether they collapsed, how they spread.

Garrido et al. 2023, "RankMe", arXiv:2210.02885, equation 1; Wang & Isola 2020, arXiv:2005.10242, sections 4.1.1-2.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from osteon.core.card import Card
from osteon.core.errors import DataError, UsageError
from osteon.evaluators._inputs import Array, features

CARD = Card(kind="evaluator", name="label_free",
            papers=("RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised Representations by "
                    "Their Rank",
                    "Understanding Contrastive Representation Learning through Alignment and Uniformity on the "
                    "Hypersphere"), modalities=("any",),
            differs="singular values come from the D x D Gram matrix in float64; uniformity uses every pair of at most "
                    "`pairs_from` samples drawn by the seed; effective_rank is the same entropy on centred features",
            cost="one D x D eigendecomposition")


def entropy_rank(singular: Tensor) -> float:
    """Exponential of the entropy of singular values scaled to sum 1: n equal ones give n, zeros count nothing.

    ``singular`` (D,), not negative. 0 if all are 0.
    """
    total = singular.sum()
    if total <= 0:
        return 0.0
    p = singular / total
    return float(torch.exp(-torch.xlogy(p, p).sum()))


def participation_ratio(variances: Tensor) -> float:
    """(sum of variances)^2 / sum of their squares, (D,) -> number of dimensions that carry variance; 0 if none does."""
    square = variances.square().sum()
    return float(variances.sum().square() / square) if square > 0 else 0.0


def alignment(a: Tensor, b: Tensor) -> float:
    """Mean squared distance of unit-length features of two views of the same samples; 0 is perfect, (N, D) twice."""
    return float((F.normalize(a.double(), dim=1) - F.normalize(b.double(), dim=1)).square().sum(1).mean())


def uniformity(x: Tensor, block: int = 1024) -> float:
    """log of the mean of exp(-2 d^2) over pairs of different samples at unit length; lower is more uniform, (N, D)."""
    z, total = F.normalize(x.double(), dim=1), 0.0
    for start in range(0, len(z), block):
        squared = (2 - 2 * z[start:start + block] @ z.T).clamp(min=0)
        kernel = torch.exp(-2 * squared)
        total += float(kernel.sum() - kernel.diagonal(start).sum())
    return float(np.log(total / (len(z) * (len(z) - 1))))


class LabelFree:
    """Describe features (N, D) by numbers that need no labels.

    Args:
        pairs_from: most samples among which uniformity takes all pairs.
    """

    needs = "features"

    def __init__(self, *, pairs_from: int = 4096) -> None:
        if pairs_from < 2:
            raise UsageError(f"Pairs need at least two samples, not {pairs_from}.", where="pairs_from")
        self.pairs_from = pairs_from

    def __call__(self, x: Array, other: Array | None = None, *, seed: int = 0) -> dict[str, float]:
        """Numbers about features.

        Args:
            x: (N, D), at least two samples.
            other: (N, D) features of a second view of the same samples; adds ``alignment``.
            seed: which samples uniformity takes where there are many.

        Returns:
            ``rankme`` and ``effective_rank``: dimensions in use, 1 to D, before and after centring;
            ``participation_ratio``: the same from variances, dominated by the largest; ``feature_std``: standard
            deviation of unit-length features times sqrt(D), 0 collapsed, about 1 spread evenly; ``uniformity``:
            at most 0, lower is more uniform; ``alignment`` in [0, 4] with ``other``.
        """
        rows = features(x, "x")
        if len(rows) < 2:
            raise DataError("Statistics of features need at least two samples.", where="x")
        mean = rows.mean(0, dtype=torch.float64)
        gram = _gram(rows, mean)  # centred: sum of (x - mean)(x - mean)^T
        raw = gram + len(rows) * mean[:, None] * mean
        variances = _eigenvalues(gram)
        unit = F.normalize(rows, dim=1)
        out = {"rankme": entropy_rank(_eigenvalues(raw).sqrt()), "effective_rank": entropy_rank(variances.sqrt()),
               "participation_ratio": participation_ratio(variances),
               "feature_std": float(unit.std(0, correction=0).mean()) * rows.shape[1] ** 0.5,
               "uniformity": uniformity(rows[self._sample(len(rows), seed)])}
        if other is not None:
            second = features(other, "other")
            if second.shape != rows.shape:
                raise DataError(f"The two views have the shapes {tuple(rows.shape)} and {tuple(second.shape)}.",
                                where="other")
            out["alignment"] = alignment(rows, second.to(rows.device))
        return out

    def _sample(self, n: int, seed: int) -> Tensor:
        if n <= self.pairs_from:
            return torch.arange(n)
        return torch.from_numpy(np.sort(np.random.default_rng(seed).choice(n, self.pairs_from, replace=False)))


def _gram(x: Tensor, mean: Tensor, block: int = 4096) -> Tensor:
    """(D, D) float64 sum of outer products about the mean, a block of rows at a time."""
    out = x.new_zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for part in x.split(block):
        centred = part.double() - mean
        out += centred.T @ centred
    return out


def _eigenvalues(gram: Tensor) -> Tensor:
    """Eigenvalues, those below rounding set to 0 (their square roots would pass for dimensions)."""
    values = torch.linalg.eigvalsh(gram).clamp(min=0)
    return torch.where(values > values.max() * len(values) * 2.3e-16, values, torch.zeros_like(values))
