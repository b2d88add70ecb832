"""Forecasting a series: what is asked, forecasts that cost nothing, and ridge regression chosen on validation windows.

Letters: C channels, T steps, N origins, L steps of context, H steps ahead (the horizon), F numbers a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from osteon.core.errors import DataError, UsageError

#: What is measured of a forecast: less is better.
MSE = "MSE"
#: Penalties of ridge regression, as shares of the mean eigenvalue of X^T X.
PENALTIES = tuple(float(v) for v in np.logspace(-6, 1, 15))
#: Least autocorrelation that counts as a season.
SEASONAL = 0.2


def origins(part: tuple[int, int], context: int, horizon: int, most: int = 0) -> np.ndarray:
    """Rows at which forecasts of a part begin, (N,): targets lie inside the part, contexts may reach before it.

    Args:
        part: first row and row after the last.
        context: L.
        horizon: H.
        most: at most so many, evenly spaced; 0: every row.
    """
    first, last = max(part[0], context), part[1] - horizon
    count = last - first + 1
    if count < 1:
        raise DataError(f"Rows {part[0]:,} to {part[1]:,} hold no forecast of {horizon} steps from a context of "
                        f"{context}.", where="horizon", fix="Choose a shorter horizon or other parts.")
    hop = max(1, -(-count // most)) if most else 1
    return np.arange(first, last + 1, hop)


def cut(values: np.ndarray, rows: np.ndarray, context: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """What is known and what is asked at each origin: (C, T), (N,) -> (N, C, L), (N, C, H)."""
    window = np.lib.stride_tricks.sliding_window_view(values, context + horizon, axis=1)[:, rows - context]
    window = window.transpose(1, 0, 2)
    return window[..., :context], window[..., context:]


def last_value(context: np.ndarray, horizon: int) -> np.ndarray:
    """The last value goes on: (..., L) -> (..., H)."""
    return np.repeat(context[..., -1:], horizon, axis=-1)


def seasonal_naive(context: np.ndarray, horizon: int, period: int) -> np.ndarray:
    """The last period repeats: (..., L) -> (..., H) (Hyndman & Athanasopoulos 2021, section 5.2)."""
    if not 1 <= period <= context.shape[-1]:
        raise UsageError(f"A period of {period} does not fit into a context of {context.shape[-1]}.", where="period",
                         fix="Choose 1 up to the context.")
    return context[..., -period:][..., np.arange(horizon) % period]


def autocorrelation(values: np.ndarray, longest: int) -> np.ndarray:
    """Autocorrelation at lags 0..longest of series without their linear trend, averaged: (C, T) -> (lags,)."""
    steps = values.shape[1]
    time = np.linspace(-1, 1, steps)
    flat = values - values.mean(1, keepdims=True)
    flat = flat - (flat @ time)[:, None] / (time @ time) * time
    size = 2 ** int(np.ceil(np.log2(2 * steps)))
    power = np.abs(np.fft.rfft(flat, size, axis=1)) ** 2
    found = np.fft.irfft(power, axis=1)[:, :min(longest, steps - 1) + 1]
    return (found / np.where(found[:, :1] > 0, found[:, :1], 1)).mean(0)


def detect_period(values: np.ndarray, longest: int) -> int:
    """The lag of the highest peak of the autocorrelation, 2..longest; 1 where none reaches :data:`SEASONAL`.

    A peak is higher than both its neighbours; of peaks within 5 % of the highest the shortest is taken, so that a day
    is not found as a week.

    Args:
        values: (C, T) of the training part.
        longest: longest period.
    """
    rho = autocorrelation(values, longest + 1)
    lags = np.arange(2, len(rho) - 1)
    peaks = lags[(rho[lags] > rho[lags - 1]) & (rho[lags] >= rho[lags + 1]) & (rho[lags] >= SEASONAL)]
    return int(peaks[rho[peaks] >= 0.95 * rho[peaks].max()][0]) if len(peaks) else 1


class Ridge:
    """Linear maps from rows (n, F) to targets (n, H) for every penalty, from sums over batches of rows.

    Minimises ``|X W - Y|^2 + penalty * mean eigenvalue of X^T X * |W|^2``.
    """

    def __init__(self) -> None:
        self.xx: np.ndarray | None = None
        self.xy: np.ndarray | None = None
        self._path: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Count rows in."""
        xx, xy = (np.asarray(x.T @ v, np.float64) for v in (x, y))
        self.xx, self.xy, self._path = (xx, xy, None) if self.xx is None or self.xy is None else (
            self.xx + xx, self.xy + xy, None)

    def weight(self, penalty: float) -> np.ndarray:
        """(F, H) at one penalty."""
        if self.xx is None or self.xy is None:
            raise DataError("There are no rows to fit.", where="ridge")
        if self._path is None:
            values, basis = np.linalg.eigh(self.xx)
            self._path = values.clip(min=0), basis, basis.T @ self.xy
        values, basis, projected = self._path
        return basis @ (projected / (values + max(penalty * values.mean(), 1e-12))[:, None])


#: Rows and targets of one group of channels at origins: ``(rows of x (n, F), targets (n, H))`` in batches.
Batches = Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]


@dataclass(frozen=True)
class Chosen:
    """Ridge maps of every group at the penalty that is best on validation windows, and their mean squared error."""

    weights: list[np.ndarray]
    penalty: float
    error: float


def choose_ridge(train: Sequence[Batches], validation: Sequence[Batches],
                 penalties: Sequence[float] = PENALTIES) -> Chosen:
    """Fit every group on training windows and choose one penalty for all on validation windows.

    Args:
        train: one a group.
        validation: the same groups.
        penalties: to choose from.
    """
    maps, errors, count = [], np.zeros(len(penalties)), 0
    for fit, check in zip(train, validation, strict=True):
        ridge = Ridge()
        for x, y in fit():
            ridge.add(x, y)
        maps.append(ridge)
        weights = [ridge.weight(p).astype(np.float32) for p in penalties]
        for x, y in check():
            errors += [float(np.square(x @ w - y, dtype=np.float64).sum()) for w in weights]
            count += y.size
    best = int(errors.argmin())
    return Chosen([ridge.weight(penalties[best]) for ridge in maps], penalties[best], float(errors[best] / count))


def block_means(values: np.ndarray, block: int) -> np.ndarray:
    """Means of neighbouring values in blocks of about ``block``, (N,) -> (B,): what a block bootstrap draws.

    Neighbouring windows share most of their steps, so single windows are no independent samples; blocks that do not
    overlap nearly are (Carlstein 1986; Lahiri 2003, chapter 2). At least two blocks; their sizes differ by one at most.
    """
    if len(values) < 2:
        raise DataError("An interval needs at least two forecasts.", where="test", fix="Give a longer test part.")
    return np.array([part.mean() for part in np.array_split(np.asarray(values, np.float64),
                                                            max(2, len(values) // max(1, block)))])
