"""How sure a score is: intervals over test samples, over seeds, over both, and for the difference of two methods.

Two things vary when an experiment is repeated: the test samples that happened to be drawn, and the seed. Test samples
are resampled (percentile bootstrap; Efron & Tibshirani 1993, chapter 13). Seeds are too few for that (resampling
three covers about 80 % where 95 % is promised), so their spread enters as a Student t variable on S - 1 degrees of
freedom. The part of that spread which is only noise of the test samples is taken out first, since the bootstrap has
counted it (two-way random-effects variance components; Searle, Casella & McCulloch 1992, chapter 4).

Letters: S seeds, M test samples, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from osteon.core.errors import DataError, UsageError
from osteon.parts.metrics import check_scores, metric_values
from osteon.parts.regression import stretch

#: Most numbers held at once by a block of resamples (float32: 16 MiB).
BLOCK = 2**22


@dataclass(frozen=True)
class Interval:
    """A mean with the interval that covers its true value in ``level`` of all repetitions."""

    mean: float
    low: float
    high: float
    level: float = 0.95

    def overlaps(self, other: Interval) -> bool:
        """Whether the two intervals share a value."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class Difference:
    """How much better a is than b on the same test samples.

    Args:
        mean: mean of a less mean of b.
        low: lower end of its interval.
        high: upper end.
        tie: whether the interval holds 0, so that the data do not say which is better.
        p: two-sided p-value of no difference, at least 1 / (R + 1); for :func:`holm` when several are compared.
    """

    mean: float
    low: float
    high: float
    tie: bool
    p: float = 1.0


def bootstrap_interval(values: np.ndarray, *, resamples: int = 1000, level: float = 0.95, seed: int = 0) -> Interval:
    """Interval of a mean over test samples, by the percentile bootstrap.

    Args:
        values: (M,) one number a sample, e.g. 1 where the prediction is right.
        resamples: R.
        level: share of repetitions the interval is to cover.
        seed: which resamples.

    If all values are equal, so are both ends: a resample cannot show what was never seen.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1:
        raise DataError(f"One number a sample (M,) is needed, not {values.shape}.", where="values")
    return hierarchical_interval(values[None], resamples=resamples, level=level, seed=seed)


def ratio_interval(total: np.ndarray, count: np.ndarray, *, resamples: int = 1000, level: float = 0.95,
                   seed: int = 0) -> Interval:
    """Interval of a mean over all parts of all samples, by the percentile bootstrap over samples.

    Args:
        total: (M,) sum over the parts of a sample, e.g. what its words cost.
        count: (M,) how many parts it has.
        resamples: R.
        level: share of repetitions the interval is to cover.
        seed: which resamples.
    """
    pair = _matrix(np.stack([np.asarray(total, np.float64), np.asarray(count, np.float64)]), "total, count")
    _check(resamples, level)
    if pair[1].min() < 0 or not pair[1].sum() > 0:
        raise DataError("Samples without parts have no mean.", where="count")
    tops, parts = _resampled_means(pair, resamples, seed)
    return _interval(float(pair[0].sum() / pair[1].sum()), tops[parts > 0] / parts[parts > 0], level)


def t_interval(values: Sequence[float] | np.ndarray, *, level: float = 0.95) -> Interval:
    """Interval of a mean over seeds (Student t), for the test samples at hand: ``values`` is one score a seed, (S,)."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise DataError(f"An interval over seeds needs at least two, not {values.shape}.", where="values",
                        fix="Run more seeds, or use the interval over test samples.")
    _check(1, level)
    half = float(_t_quantile(len(values) - 1, np.array([(1 + level) / 2]))[0]) * values.std(ddof=1) / len(values) ** 0.5
    return Interval(float(values.mean()), float(values.mean() - half), float(values.mean() + half), level)


def hierarchical_interval(correct: np.ndarray, *, resamples: int = 1000, level: float = 0.95,
                          seed: int = 0, targets: np.ndarray | None = None) -> Interval:
    """Interval of the mean over seeds and test samples, allowing for both.

    Args:
        correct: (S, M) one row a seed, one column a test sample (the same samples in every row).
        resamples: R.
        level: share of repetitions the interval is to cover.
        seed: which resamples.
        targets: (M,) numbers that were predicted, where ``correct`` holds shares of R2
            (:func:`osteon.parts.regression.qualities`): every resample is measured by its own variance.

    With one seed only the test samples are allowed for.
    """
    correct = _matrix(correct, "correct")
    _check(resamples, level)
    means = _resampled_means(correct, resamples, seed)
    if targets is not None:
        means = 1 - (1 - means) * _stretches(targets, resamples, seed)
    return _interval(float(correct.mean()), _draws(correct.mean(1), means, seed), level)


def compare_paired(correct_a: np.ndarray, correct_b: np.ndarray, *, resamples: int = 1000, level: float = 0.95,
                   seed: int = 0, targets: np.ndarray | None = None) -> Difference:
    """Is method a better than b? Both scored on the same test samples, seed by seed.

    What is hard for both cancels, so this tells methods apart that overlapping intervals do not.

    Args:
        correct_a: (S, M) how right each sample is under each seed.
        correct_b: (S, M) the same samples and seeds.
        resamples: R.
        level: share of repetitions the interval is to cover.
        seed: which resamples.
        targets: as of :func:`hierarchical_interval`.
    """
    a, b = _matrix(correct_a, "correct_a"), _matrix(correct_b, "correct_b")
    if a.shape != b.shape:
        raise DataError(f"Only the same seeds and test samples compare: {a.shape} and {b.shape} differ.",
                        where="compare_paired")
    _check(resamples, level)
    gap = a - b
    means = _resampled_means(gap, resamples, seed)
    if targets is not None:
        means = means * _stretches(targets, resamples, seed)
    draws = _draws(gap.mean(1), means, seed)
    found = _interval(float(gap.mean()), draws, level)
    tail = min((draws <= 0).sum(), (draws >= 0).sum())
    return Difference(found.mean, found.low, found.high, tie=bool(found.low <= 0 <= found.high),
                      p=float(min(1.0, 2 * (tail + 1) / (resamples + 1))))


def score_intervals(scores: Sequence[np.ndarray] | np.ndarray, y: np.ndarray, classes: int, *, resamples: int = 1000,
                    level: float = 0.95, seed: int = 0) -> dict[str, Interval]:
    """Intervals of every metric of :func:`osteon.parts.metrics.score_all`, over test samples and seeds.

    Args:
        scores: S arrays (M, K), one a seed, for the same test samples.
        y: (M,) int or (M, K) multi-label.
        classes: K.
        resamples: R.
        level: share of repetitions the intervals are to cover.
        seed: which resamples.
    """
    _check(resamples, level)
    checked = [check_scores(s, y, classes) for s in scores]
    if not checked:
        raise DataError("There are no scores.", where="scores")
    ones = np.ones((len(y), 1))
    point = [metric_values(s, t, ones) for s, t in checked]
    resampled: dict[str, list[list[np.ndarray]]] = {name: [[] for _ in checked] for name in point[0]}
    for weights in _weights(len(y), resamples, seed):
        for i, (s, t) in enumerate(checked):
            for name, value in metric_values(s, t, weights).items():
                resampled[name][i].append(value)
    result = {}
    for name, rows in resampled.items():
        centre = np.array([p[name][0] for p in point])
        draws = _draws(centre, np.stack([np.concatenate(r) for r in rows]), seed)
        result[name] = _interval(float(centre.mean()), draws, level)
    return result


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """p-values adjusted for making several comparisons (Holm 1979): call those below 0.05 different, as usual.

    The smallest is multiplied by the number n of comparisons, the next by n - 1, and so on; never falling, at most 1.

    Args:
        p_values: (n,).

    Returns:
        (n,) in the same order.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def _matrix(values: np.ndarray, name: str) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or 0 in values.shape or not np.isfinite(values).all():
        raise DataError(f"Finite numbers of shape (seeds, test samples) are needed, not {values.shape}.", where=name)
    return values


def _check(resamples: int, level: float) -> None:
    if resamples < 1:
        raise UsageError(f"At least one resample is needed, not {resamples}.", where="resamples")
    if not 0 < level < 1:
        raise UsageError(f"The level {level} is not between 0 and 1.", where="level")


def _weights(m: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each sample is drawn in each resample, (M, r) float32 blocks that make up R columns."""
    rng = np.random.default_rng(seed)
    step = max(1, BLOCK // m)
    for start in range(0, resamples, step):
        r = min(step, resamples - start)
        drawn = rng.integers(0, m, (r, m)) + m * np.arange(r)[:, None]
        yield np.ascontiguousarray(np.bincount(drawn.ravel(), minlength=r * m).reshape(r, m).T, dtype=np.float32)


def _resampled_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(S, M) -> (S, R): mean of each row over each resample of the columns."""
    return np.concatenate([values @ w for w in _weights(values.shape[1], resamples, seed)], axis=1) / values.shape[1]


def _stretches(targets: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(R,): by how much a share of R2 counts in each resample, whose targets vary less or more."""
    y = np.asarray(targets, np.float64)
    return np.concatenate([stretch(y, w) for w in _weights(len(y), resamples, seed)])


def _draws(point: np.ndarray, resampled: np.ndarray, seed: int) -> np.ndarray:
    """R draws of the mean over seeds that vary with the test samples and the seeds.

    Args:
        point: (S,) score of each seed on the test samples as they are.
        resampled: (S, R) score of each seed on each resample.
        seed: which resample meets which t quantile.
    """
    resampled = resampled[:, np.isfinite(resampled).all(0)]  # a resample may lack a class altogether
    seeds, resamples = resampled.shape
    centre = resampled.mean(0)
    if seeds < 2 or resamples == 0 or not np.isfinite(point).all():
        return centre
    # Seeds also differ because each errs on its own samples; the resamples show how much, and already contain it.
    noise = (resampled - centre).var(axis=1).sum() / (seeds - 1)
    spread = np.sqrt(max(0.0, point.var(ddof=1) - noise) / seeds)
    # Evenly spaced quantiles in random order: the heavy tails of few degrees of freedom without their sampling noise.
    t = _t_quantile(seeds - 1, (np.arange(resamples) + 0.5) / resamples)
    return centre + spread * np.random.default_rng([seed, 1]).permutation(t)


def _interval(mean: float, draws: np.ndarray, level: float) -> Interval:
    if not len(draws) or not np.isfinite(mean):
        return Interval(mean, float("nan"), float("nan"), level)
    low, high = np.percentile(draws, [50 * (1 - level), 50 * (1 + level)])
    return Interval(mean, float(low), float(high), level)


def _t_quantile(freedom: int, probability: np.ndarray) -> np.ndarray:
    from scipy.special import stdtrit  # a light part of scipy, and only here

    return np.asarray(stdtrit(freedom, probability))
