from __future__ import annotations

import numpy as np
import pytest

from osteon.core.errors import DataError, UsageError
from osteon.parts import forecast as f


def test_origins_keep_targets_inside_the_part_and_let_contexts_reach_before_it():
    np.testing.assert_array_equal(f.origins((10, 16), 4, 3), [10, 11, 12, 13])
    np.testing.assert_array_equal(f.origins((0, 10), 4, 3), [4, 5, 6, 7])  # the context needs four rows
    np.testing.assert_array_equal(f.origins((0, 10), 4, 3, most=2), [4, 6])
    assert len(f.origins((11520, 14400), 336, 96)) == 2785  # ETTh1's test part
    with pytest.raises(DataError, match="hold no forecast of 7 steps"):
        f.origins((10, 16), 4, 7)


def test_context_ends_where_the_target_begins():
    known, future = f.cut(np.arange(20).reshape(2, 10), np.array([4, 7]), 3, 2)
    np.testing.assert_array_equal(known[:, 0], [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(future[:, 1], [[14, 15], [17, 18]])


def test_naive_forecasts():
    known = np.array([[[1, 2, 3, 4, 5]]])
    np.testing.assert_array_equal(f.last_value(known, 3), [[[5, 5, 5]]])
    np.testing.assert_array_equal(f.seasonal_naive(known, 5, 2), [[[4, 5, 4, 5, 4]]])
    wave = np.sin(2 * np.pi * np.arange(60) / 12)[None]
    np.testing.assert_allclose(f.seasonal_naive(wave[:, :36], 24, 12), wave[:, 36:], atol=1e-12)
    with pytest.raises(UsageError, match="period of 6"):
        f.seasonal_naive(known, 3, 6)


def test_a_period_is_found_under_trend_and_noise_and_noise_has_none():
    rng = np.random.default_rng(0)
    t = np.arange(1000)
    day = np.sin(2 * np.pi * t / 24) + 0.01 * t + 0.3 * rng.standard_normal(1000)
    assert f.detect_period(np.stack([day, -day]), 200) == 24
    assert f.detect_period(rng.standard_normal((1, 1000)), 200) == 1
    assert f.detect_period(np.ones((1, 50)), 20) == 1
    np.testing.assert_allclose(f.autocorrelation(rng.standard_normal((2, 300)), 5)[0], 1)


def test_ridge_is_the_textbook_solution_and_batches_add_up():
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((50, 4)), rng.standard_normal((50, 3))
    whole, parts = f.Ridge(), f.Ridge()
    whole.add(x, y)
    parts.add(x[:20], y[:20])
    parts.add(x[20:], y[20:])
    penalty = 0.3 * np.trace(x.T @ x) / 4
    want = np.linalg.solve(x.T @ x + penalty * np.eye(4), x.T @ y)
    np.testing.assert_allclose(whole.weight(0.3), want, rtol=1e-9)
    np.testing.assert_allclose(parts.weight(0.3), want, rtol=1e-9)
    np.testing.assert_allclose(whole.weight(0.0), np.linalg.lstsq(x, y, rcond=None)[0], rtol=1e-6)
    with pytest.raises(DataError, match="no rows"):
        f.Ridge().weight(1.0)


def test_the_penalty_is_chosen_on_validation_windows_alone():
    rng = np.random.default_rng(2)
    truth = rng.standard_normal((6, 2))

    def rows(noise, n, seed):
        r = np.random.default_rng(seed)
        x = r.standard_normal((n, 6))
        return [(x, x @ truth + noise * r.standard_normal((n, 2)))]

    clean = f.choose_ridge([lambda: rows(0.0, 40, 3)], [lambda: rows(0.0, 40, 4)])
    assert clean.penalty == min(f.PENALTIES) and clean.error < 1e-6
    np.testing.assert_allclose(clean.weights[0], truth, atol=1e-4)
    noisy = f.choose_ridge([lambda: rows(20.0, 8, 5)], [lambda: rows(0.0, 40, 6)])
    assert noisy.penalty > 0.1
    x, y = rows(0.0, 40, 6)[0]
    np.testing.assert_allclose(noisy.error, ((x @ noisy.weights[0] - y) ** 2).mean(), rtol=1e-4)


def test_blocks_are_neighbours_and_there_are_at_least_two():
    np.testing.assert_allclose(f.block_means(np.arange(6.0), 2), [0.5, 2.5, 4.5])
    np.testing.assert_allclose(f.block_means(np.arange(7.0), 3), [1.5, 5.0])
    np.testing.assert_allclose(f.block_means(np.arange(4.0), 100), [0.5, 2.5])
    with pytest.raises(DataError, match="at least two"):
        f.block_means(np.zeros(1), 3)
