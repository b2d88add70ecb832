"""Scores of predicted numbers against values a person can recompute, and their intervals."""

from __future__ import annotations

import numpy as np
import pytest

from osteon.core.errors import DataError
from osteon.parts.intervals import compare_paired, hierarchical_interval
from osteon.parts.regression import check_numbers, qualities, scale_of, score_numbers, strata_of, stretch


def test_scores_are_those_done_by_hand():
    # errors 1, -1, 0, 2: squares 1, 1, 0, 4; the variance of 1..4 is 1.25
    found = score_numbers(np.array([2.0, 1, 3, 6]), np.array([1.0, 2, 3, 4]))
    assert found == pytest.approx({"r2": 1 - 1.5 / 1.25, "mae": 1.0, "rmse": 1.5**0.5})


def test_the_mean_reaches_nothing_and_the_truth_one():
    y = np.array([3.0, 5, 10])
    assert score_numbers(np.full(3, y.mean()), y)["r2"] == pytest.approx(0)
    assert score_numbers(y, y) == {"r2": 1.0, "mae": 0.0, "rmse": 0.0}


def test_shares_average_to_r2():
    rng = np.random.default_rng(0)
    y, told = rng.normal(7, 3, 50), rng.normal(7, 3, 50)
    assert qualities((told - y)**2, y).mean() == pytest.approx(score_numbers(told, y)["r2"])


def test_targets_that_are_all_equal_have_no_r2():
    assert np.isnan(score_numbers(np.ones(3), np.ones(3))["r2"])
    assert qualities(np.array([0.0, 1.0]), np.ones(2)).tolist() == [1.0, -np.inf]


@pytest.mark.parametrize(("told", "y"), [([1.0], [1.0, 2.0]), ([], []), ([np.nan], [1.0]), ([1.0], [np.inf]),
                                         ([[1.0]], [[1.0]])])
def test_what_cannot_be_scored_is_refused(told, y):
    with pytest.raises(DataError):
        check_numbers(np.array(told), np.array(y))


def test_stretch_is_the_ratio_of_variances():
    y = np.array([0.0, 1, 2, 5])
    weights = np.array([[2, 0, 1], [0, 4, 1], [1, 0, 1], [1, 0, 1]], float)
    drawn = np.array([0.0, 0, 2, 5])
    assert stretch(y, weights) == pytest.approx([y.var() / drawn.var(), np.inf, 1.0])
    assert stretch(y + 1e9, weights)[0] == pytest.approx(y.var() / drawn.var())  # far from 0


def test_an_interval_measures_every_resample_by_its_own_variance():
    rng = np.random.default_rng(1)
    y = rng.normal(0, 1, 60)
    mean = qualities((y.mean() - y)**2, y)[None]  # what always names the mean: R2 is 0, and at most 0 in any resample
    own, fixed = (hierarchical_interval(mean, targets=t) for t in (y, None))
    assert own.mean == pytest.approx(0) and own.low > -0.1 and own.high <= 1e-9
    assert fixed.high > 0.2  # by the variance of the whole it would seem to be worth something
    told = y + rng.normal(0, 0.5, 60)
    exact = [1 - np.mean((told[r] - y[r])**2) / np.var(y[r]) for r in rng.integers(0, 60, (4000, 60))]
    found = hierarchical_interval(qualities((told - y)**2, y)[None], targets=y, resamples=4000)
    assert (found.low, found.high) == pytest.approx(np.percentile(exact, [2.5, 97.5]), abs=0.02)


def test_a_difference_keeps_its_sign_whatever_the_variance():
    rng = np.random.default_rng(2)
    y = rng.standard_t(3, 80)
    a, b = (qualities((y + s * rng.normal(0, 1, 80) - y)**2, y)[None] for s in (0.3, 0.9))
    with_targets, without = compare_paired(a, b, targets=y), compare_paired(a, b)
    assert with_targets.mean == pytest.approx(without.mean) and with_targets.p == without.p
    assert with_targets.low > 0 and with_targets.low != without.low


def test_strata_are_even_and_keep_equals_together():
    y = np.random.default_rng(3).permutation(100).astype(float)
    assert np.bincount(strata_of(y)).tolist() == [10] * 10
    found = strata_of(np.array([0.0] * 50 + list(range(1, 51))))
    assert len(set(found[:50])) == 1 and found.max() <= 9
    assert len(set(strata_of(np.ones(7)))) == 1 and len(strata_of(np.array([4.0]))) == 1


def test_scale_is_one_where_nothing_varies():
    assert scale_of(np.array([1.0, 3.0])) == (2.0, 1.0) and scale_of(np.array([5.0])) == (5.0, 1.0)
    assert scale_of(np.full(9, 0.1)) == pytest.approx((0.1, 1.0))
