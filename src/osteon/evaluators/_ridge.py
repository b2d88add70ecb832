"""Ridge regression on standardised features in closed form: every strength from one eigendecomposition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from osteon.parts.rows import OneHot, Rows

#: Rows whose products are summed in float32 before they are added up in float64.
BLOCK = 4096
#: Columns of a strip of the Gram matrix.
COLUMNS = 128


@dataclass(frozen=True)
class Affine:
    """A linear classifier on raw features: ``scores = x @ weight + bias``; weight (D, K), bias (K,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor | Rows) -> Tensor:
        """Scores (M, K) of features (M, D)."""
        return torch.cat([block @ self.weight for block in x.split(BLOCK)]) + self.bias


@dataclass
class Moments:
    """Sums over n rows: x (D,), y (K,), x x^T (D, D), x y^T (D, K), all float64, of features less a fixed shift.

    Moments of two parts add up to the moments of both, so a fit on a part and a fit on everything share their work.
    """

    n: int
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor

    @classmethod
    def of(cls, x: Tensor | Rows, y: Tensor | OneHot, shift: Tensor, rows: Tensor) -> Moments:
        """Moments of the given rows of x (N, D) and y (N, K), a block at a time."""
        d, k = x.shape[1], y.shape[1]
        out = cls(0, *(shift.new_zeros(s, dtype=torch.float64) for s in ((d,), (k,), (d, d), (d, k))))
        for block in rows.split(BLOCK):
            xb, yb = x[block] - shift, y[block]
            out.n += len(block)
            out.x += xb.sum(0)
            out.y += yb.sum(0)
            for j in range(0, d, COLUMNS):  # the upper triangle, in strips: most of the other half is never computed
                out.xx[j:j + COLUMNS, j:] += xb[:, j:j + COLUMNS].T @ xb[:, j:]
            out.xy += xb.T @ yb
        out.xx = out.xx.triu() + out.xx.triu(1).T
        return out

    def __add__(self, other: Moments) -> Moments:
        """Moments of both parts together."""
        return Moments(self.n + other.n, self.x + other.x, self.y + other.y, self.xx + other.xx, self.xy + other.xy)

    def standardised(self, shift: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Mean (D,), 1 / std (D,), mean label (K,), and X^T X (D, D), X^T Y (D, K) of standardised features."""
        mean, label = self.x / self.n, self.y / self.n
        xx = self.xx - self.n * mean[:, None] * mean
        scale = inverse_std(xx.diagonal() / self.n, mean + shift)
        xy = self.xy - self.n * mean[:, None] * label
        return mean, scale, label, xx * scale[:, None] * scale, xy * scale[:, None]


def inverse_std(variance: Tensor, mean: Tensor) -> Tensor:
    """1 / std of each feature, 0 where it does not vary beyond rounding: such a feature says nothing about a class.

    Args:
        variance: (D,).
        mean: (D,) of the features as given. Less than 1e-5 of it is what float32 sums leave of a constant.
    """
    varies = variance > 1e-10 * mean.square() + 1e-30
    return torch.where(varies, variance.clamp(min=1e-30).rsqrt(), torch.zeros_like(variance))


class RidgePath:
    """Ridge solutions for any strength after one decomposition, of the smaller of the D x D and N x N matrices.

    Args:
        x: (N, D) features.
        y: (N, K) labels as 0 and 1.
        rows: row numbers to fit on.
        shift: (D,) something near the mean, subtracted first so that float32 products keep their digits.
        moments: moments of those rows about ``shift`` if already known (used where N >= D).
    """

    def __init__(self, x: Tensor | Rows, y: Tensor | OneHot, rows: Tensor, shift: Tensor,
                 moments: Moments | None = None) -> None:
        self.n, self.shift = len(rows), shift
        if self.n >= x.shape[1]:
            moments = moments or Moments.of(x, y, shift, rows)
            self.mean, self.scale, self.label, xx, xy = moments.standardised(shift)
            self.values, self.basis = torch.linalg.eigh(xx)
        else:
            part = (x[rows] - shift).double()
            target = y[rows].double()
            self.mean, self.label = part.mean(0), target.mean(0)
            centred = part - self.mean
            self.scale = inverse_std(centred.square().mean(0), self.mean + shift)
            z = centred * self.scale
            # Dual form: W = Z^T (Z Z^T + lambda I)^-1 Y; with Z Z^T = U S U^T, W = (Z^T U) (S + lambda)^-1 U^T Y.
            self.values, u = torch.linalg.eigh(z @ z.T)
            self.basis, xy = z.T @ u, (target - self.label)
            self.projected = u.T @ xy
            return
        self.projected = self.basis.T @ xy

    def solve(self, strength: float) -> Affine:
        """The classifier at one strength; the penalty is ``strength * N * |W|^2`` on standardised features."""
        inner = self.projected / (self.values.clamp(min=0) + strength * self.n)[:, None]
        weight = self.scale[:, None] * (self.basis @ inner)
        return Affine(weight.float(), (self.label - (self.mean + self.shift.double()) @ weight).float())

    def solve_path(self, strengths: Sequence[float]) -> Affine:
        """The classifiers of several strengths as one, whose scores (M, S K) are those of each in turn."""
        weight, bias = zip(*((c.weight, c.bias) for c in map(self.solve, strengths)), strict=True)
        return Affine(torch.cat(weight, 1), torch.cat(bias))

    def predict_path(self, x: Tensor | Rows, strengths: Sequence[float]) -> list[Tensor]:
        """Scores (V, K) of features (V, D) for every strength, with one large product for all of them."""
        return list(self.solve_path(strengths)(x).split(self.projected.shape[1], dim=1))


def fit_numbers(x: Rows, y: Tensor, strengths: Sequence[float], *, folds: int, seed: int) -> tuple[Affine, float]:
    """Ridge regression on targets, and its penalty: the one of least squared error on rows that did not fit it.

    Args:
        x: (N, D) features, N of at least 2.
        y: (N, 1) targets, standardised.
        strengths: penalties tried, as of :meth:`RidgePath.solve`; a single one is taken as it is.
        folds: parts of the training rows, each predicted from the others; 1 = a tenth of the rows from the rest.
        seed: which rows.
    """
    n, shift = len(x), x.mean()
    everything = torch.arange(n)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(n))
    parts = [order[k::folds] for k in range(folds)] if folds > 1 else [order[:max(1, n // 10)]]
    errors = torch.zeros(len(strengths), dtype=torch.float64)
    for held in parts if len(strengths) > 1 else ():
        fit = everything[~torch.isin(everything, held)]
        asked = within(x.subset(fit.numpy()), x.subset(held.numpy()))
        told = RidgePath(x, y, fit, shift).predict_path(asked, strengths)
        errors += torch.stack([(t - y[held]).double().square().sum().cpu() for t in told])
    best = strengths[int(errors.argmin())]
    return RidgePath(x, y, everything, shift).solve(best), best


def reach(seen: Rows) -> tuple[Tensor, Tensor]:
    """Least and largest value (D,) of each feature in training rows (N, D), and a deviation beyond."""
    mean = seen.mean()
    low, high = torch.full_like(mean, torch.inf), torch.full_like(mean, -torch.inf)
    square = torch.zeros_like(mean, dtype=torch.float64)
    for block in seen.split(BLOCK):
        low, high = torch.minimum(low, block.amin(0)), torch.maximum(high, block.amax(0))
        square += (block - mean).double().square().sum(0)
    beyond = (square / len(seen)).sqrt().float()
    return low - beyond, high + beyond


def within(seen: Rows, asked: Rows) -> Rows:
    """Features (M, D) cut to what was seen of each in training (N, D), and a deviation beyond.

    A feature that hardly varies in training counts much where it does later: in deviations it is far out, so is what a
    linear map predicts of it. Classes hardly notice, squared errors do.
    """
    low, high = reach(seen)
    return asked.mapped(lambda block: block.clamp(low.to(block.device), high.to(block.device)))


def solve_moments(moments: Moments, shift: Tensor, strength: float) -> Affine:
    """One strength from moments by Cholesky factorisation: cheaper than a decomposition where the strength is known."""
    mean, scale, label, xx, xy = moments.standardised(shift)
    xx.diagonal().add_(strength * moments.n)
    weight = scale[:, None] * torch.cholesky_solve(xy, torch.linalg.cholesky(xx))
    return Affine(weight.float(), (label - (mean + shift.double()) @ weight).float())
