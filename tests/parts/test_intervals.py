"""Intervals cover what they promise, by simulation, and give values that can be recomputed."""

import numpy as np
import pytest
from scipy import stats

from osteon.core.errors import DataError, UsageError
from osteon.parts.intervals import (
    Interval,
    bootstrap_interval,
    compare_paired,
    hierarchical_interval,
    holm,
    score_intervals,
    t_interval,
)
from osteon.parts.metrics import correctness, score_all

SIMULATIONS = 200


def experiment(rng: np.random.Generator, seeds: int, samples: int, seed_sd: float, item_sd: float,
               shift: float = 0.8) -> tuple[np.ndarray, float]:
    """Right-or-wrong (S, M) from a probit with seed and sample effects, and the true accuracy."""
    latent = shift + seed_sd * rng.normal(size=(seeds, 1)) + item_sd * rng.normal(size=(1, samples))
    correct = (latent + rng.normal(size=(seeds, samples)) > 0).astype(float)
    return correct, float(stats.norm.cdf(shift / np.sqrt(1 + seed_sd**2 + item_sd**2)))


def test_bootstrap_covers() -> None:
    rng, hits = np.random.default_rng(0), 0
    for i in range(SIMULATIONS):
        found = bootstrap_interval((rng.random(150) < 0.7).astype(float), resamples=400, seed=i)
        hits += found.low <= 0.7 <= found.high
    assert 0.90 <= hits / SIMULATIONS <= 0.99


def test_bootstrap_is_the_binomial_for_right_and_wrong() -> None:
    values = np.repeat([1.0, 0.0], [140, 60])  # a resampled mean is Binomial(200, 0.7) / 200
    found = bootstrap_interval(values, resamples=20_000)
    low, high = stats.binom.ppf([0.025, 0.975], 200, 0.7) / 200
    assert found.mean == 0.7
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.006)
    narrow = bootstrap_interval(values, resamples=20_000, level=0.5)
    assert found.low < narrow.low < 0.7 < narrow.high < found.high


def test_t_interval_by_hand() -> None:
    found = t_interval([1.0, 2.0, 3.0])  # standard error 1 / sqrt(3); t(0.975, 2) = 4.302653
    assert found.low == pytest.approx(2 - 4.302653 / 3**0.5, abs=1e-5)
    assert found.high == pytest.approx(2 + 4.302653 / 3**0.5, abs=1e-5)
    with pytest.raises(DataError, match="at least two"):
        t_interval([1.0])


@pytest.mark.parametrize("seed_sd, item_sd", [(0.0, 1.0), (0.0, 0.0), (0.05, 1.0), (0.3, 1.0)])
def test_hierarchical_covers(seed_sd: float, item_sd: float) -> None:
    rng, hits = np.random.default_rng(1), 0
    for i in range(SIMULATIONS):
        correct, truth = experiment(rng, 3, 200, seed_sd, item_sd)
        found = hierarchical_interval(correct, resamples=400, seed=i)
        hits += found.low <= truth <= found.high
    assert 0.90 <= hits / SIMULATIONS <= 0.99


def test_both_sources_of_chance_widen_the_interval() -> None:
    rng = np.random.default_rng(2)
    correct, _ = experiment(rng, 4, 300, 0.3, 1.0)
    both = hierarchical_interval(correct)
    samples_only = bootstrap_interval(correct.mean(0))
    assert both.high - both.low > 1.2 * (samples_only.high - samples_only.low)
    copies = hierarchical_interval(np.repeat(correct[:1], 4, axis=0))  # seeds that do not differ add nothing
    assert copies == bootstrap_interval(correct[0])


def test_only_seeds_vary() -> None:
    """With every sample of a seed alike, test samples add nothing and the Student interval remains."""
    values = np.array([0.2, 0.5, 0.6, 0.9])
    found = hierarchical_interval(np.repeat(values[:, None], 50, axis=1), resamples=4000)
    exact = t_interval(values)
    assert found.low == pytest.approx(exact.low, abs=0.01) and found.high == pytest.approx(exact.high, abs=0.01)


def test_paired_comparison_covers_and_rarely_sees_what_is_not_there() -> None:
    rng, hits, ties = np.random.default_rng(3), 0, 0
    for i in range(SIMULATIONS):
        latent = 0.8 + rng.normal(size=200)
        a, b = (((latent + 0.1 * rng.normal(size=(3, 1)) + rng.normal(size=(3, 200))) > 0).astype(float)
                for _ in range(2))
        found = compare_paired(a, b, resamples=400, seed=i)
        hits += found.low <= 0 <= found.high
        ties += found.tie
    assert ties == hits and 0.90 <= hits / SIMULATIONS <= 0.99


def test_pairing_sees_what_separate_intervals_hide() -> None:
    rng = np.random.default_rng(4)
    b = np.repeat(rng.random(400) < 0.5, 3).reshape(400, 3).T.astype(float)
    a = b.copy()
    a[:, np.flatnonzero(b[0] == 0)[:20]] = 1  # a is right wherever b is, and on 20 samples more
    found = compare_paired(a, b)
    assert found.mean == pytest.approx(0.05) and not found.tie and found.low > 0 and found.p < 0.01
    assert hierarchical_interval(a).overlaps(hierarchical_interval(b))
    back = compare_paired(b, a)
    assert (back.mean, back.low, back.high) == pytest.approx((-found.mean, -found.high, -found.low), abs=0.005)


def test_equal_methods_tie_exactly() -> None:
    correct = (np.random.default_rng(0).random((3, 50)) < 0.6).astype(float)
    found = compare_paired(correct, correct)
    assert (found.mean, found.low, found.high, found.tie, found.p) == (0, 0, 0, True, 1)


def test_same_seed_same_interval_whatever_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    correct, _ = experiment(np.random.default_rng(5), 3, 100, 0.2, 1.0)
    first = hierarchical_interval(correct, seed=7)
    assert first == hierarchical_interval(correct, seed=7) != hierarchical_interval(correct, seed=8)
    monkeypatch.setattr("osteon.parts.intervals.BLOCK", 900)
    small = hierarchical_interval(correct, seed=7)
    assert (small.low, small.high) == pytest.approx((first.low, first.high))


def test_score_intervals_agree_with_the_simple_ones() -> None:
    rng = np.random.default_rng(6)
    y = rng.integers(0, 3, 120)
    scores = [rng.random((120, 3)) + 0.6 * (y[:, None] == np.arange(3)) for _ in range(3)]
    found = score_intervals(scores, y, 3)
    simple = hierarchical_interval(np.stack([correctness(s, y) for s in scores]))
    assert (found["accuracy"].low, found["accuracy"].high) == pytest.approx((simple.low, simple.high))
    for name in ("macro_f1", "auroc", "balanced_accuracy"):
        assert found[name].mean == pytest.approx(np.mean([score_all(s, y, 3)[name] for s in scores]))
        assert found[name].low < found[name].mean < found[name].high
    multi = score_intervals([s / 2 for s in scores], (y[:, None] == np.arange(3)).astype(np.uint8), 3, resamples=50)
    assert multi["mean_average_precision"].low < multi["mean_average_precision"].mean


def test_undefined_metric_has_an_undefined_interval() -> None:
    found = score_intervals([np.eye(2)[[0, 0, 1]], np.eye(2)[[0, 1, 1]]], np.zeros(3, dtype=int), 2, resamples=20)
    assert np.isnan(found["auroc"].low) and found["accuracy"].mean == pytest.approx(0.5)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1, 1] and holm([0.04]).tolist() == [0.04] and len(holm([])) == 0


def test_wrong_use_is_named() -> None:
    with pytest.raises(DataError, match="differ"):
        compare_paired(np.ones((2, 5)), np.ones((2, 4)))
    with pytest.raises(DataError):
        hierarchical_interval(np.ones(5))
    with pytest.raises(DataError):
        hierarchical_interval(np.full((2, 2), np.nan))
    with pytest.raises(UsageError, match="level"):
        bootstrap_interval(np.ones(5), level=95)
    with pytest.raises(UsageError):
        compare_paired(np.ones((2, 5)), np.ones((2, 5)), resamples=0)
    assert not Interval(0.5, 0.4, 0.6).overlaps(Interval(0.8, 0.7, 0.9))
