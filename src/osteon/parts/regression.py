"""How good predictions of numbers are: R2, mean absolute and root mean squared error, and what they rest on.

R2 is one less the mean squared error over the variance of the targets it is measured on (the coefficient of
determination): 1 is perfect, 0 is what their mean would reach, and there is no lower end. So a sample's share of it is
one less its squared error over that variance, and the mean over samples is R2 itself.

Letters: N training samples, M test samples, R sets of sample weights.
"""

from __future__ import annotations

import numpy as np

from osteon.core.errors import DataError

#: What quality is called where numbers are predicted.
R2 = "R2"
#: Strata of about equal size that targets are cut into where classes would be strata.
BINS = 10


def check_numbers(told: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and targets, (M,) float64 each, or a DataError saying what does not fit."""
    told, y = np.asarray(told, np.float64), np.asarray(y, np.float64)
    if told.ndim != 1 or told.shape != y.shape or not len(y):
        raise DataError(f"Predictions have the shape {told.shape} and targets {y.shape}; one number a sample is "
                        "needed.", where="predictions")
    if not np.isfinite(told).all() or not np.isfinite(y).all():
        raise DataError("Predictions or targets hold NaN or infinite values.", where="predictions",
                        fix="Look for NaN in the features they were made from.")
    return told, y


def qualities(squared: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Each sample's share of R2, (..., M), from squared errors (..., M) and targets (M,): their mean is R2.

    Where all targets are equal no error is a part of anything: 1 where there is none, else minus infinity.
    """
    variance = float(np.var(y))
    if variance > 0:
        return 1 - squared / variance
    return np.where(squared > 0, -np.inf, 1.0)


def stretch(y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Variance of targets (M,) over their variance under weights (M, R) that count samples: (R,); infinite for 0."""
    z = y - y.mean()
    total = weights.sum(0, dtype=np.float64)
    variance = (z**2 @ weights) / total - ((z @ weights) / total) ** 2
    whole = float(np.mean(z**2))
    return np.divide(whole, variance, out=np.full(weights.shape[1], np.inf), where=variance > 1e-12 * whole)


def score_numbers(told: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """``r2`` (NaN where all targets are equal), ``mae`` and ``rmse``, the two in the unit of the targets.

    Args:
        told: (M,) predictions.
        y: (M,) targets.
    """
    told, y = check_numbers(told, y)
    error = told - y
    spread = float(np.var(y))
    mean = float(np.mean(error**2))
    return {"r2": 1 - mean / spread if spread > 0 else float("nan"), "mae": float(np.abs(error).mean()),
            "rmse": mean**0.5}


def strata_of(y: np.ndarray, count: int = BINS) -> np.ndarray:
    """Stratum of each target, (N,) int64: ``count`` parts of about equal size by rank; equal targets stay together."""
    ordered = np.sort(np.asarray(y, np.float64))
    edges = np.unique(ordered[[len(ordered) * k // count for k in range(1, count)]])
    return np.searchsorted(edges, y, side="right").astype(np.int64)


def scale_of(y: np.ndarray) -> tuple[float, float]:
    """Mean and deviation of training targets, the deviation 1 where they are all equal: what networks learn in."""
    mean, deviation = float(np.mean(y)), float(np.std(y))
    return mean, deviation if deviation > 1e-12 * abs(mean) and deviation > 0 else 1.0
