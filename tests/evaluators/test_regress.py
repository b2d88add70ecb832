"""Evaluators that predict numbers: by hand, against scikit-learn, and where there is nothing to learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from osteon.core.errors import DataError
from osteon.evaluators._ridge import fit_numbers, within
from osteon.evaluators.knn import KNN, weighted_mean
from osteon.evaluators.linear_probe import LinearProbe
from osteon.evaluators.rfrboost import RFRBoost
from osteon.parts.rows import Rows

READERS = (KNN(k=5), KNN(tune=True), LinearProbe(), RFRBoost(layers=1, width=16, dim=8))


def task(n: int = 120, noise: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (n, 6)).astype(np.float32)
    return x, 1000 + 50 * (x @ np.array([1.0, -2, 0, 0.5, 0, 0])) + noise * rng.normal(size=n)


def test_neighbours_are_averaged_by_their_weights():
    # two neighbours at similarity 1 and 1/2: weights e^2 : e^1 at temperature 1
    told = weighted_mean(torch.tensor([[1.0, 0.5]]), torch.tensor([[[10.0], [20.0]]]), 1.0)
    e = np.exp(1)
    assert float(told) == pytest.approx((e * 10 + 20) / (e + 1))


def test_one_neighbour_gives_its_own_number():
    x = np.array([[1.0, 0], [0, 1], [-1, -1]], np.float32)
    assert KNN(k=1).regress(x, np.array([5.0, -7, 30]), x) == pytest.approx([5.0, -7, 30], rel=1e-5)


def test_ridge_is_scikit_learns_at_one_penalty():
    from sklearn.linear_model import Ridge

    x, y = task(noise=30)
    part = (x[:80] - x[:80].mean(0)) / x[:80].std(0)
    theirs = Ridge(alpha=0.5 * 80).fit(part, y[:80])  # ours is a sample's, on standardised features
    asked = (x[80:] - x[:80].mean(0)) / x[:80].std(0)
    ours = LinearProbe(strength=0.5).regress(x[:80], y[:80], x[80:])
    assert ours == pytest.approx(theirs.predict(asked), rel=1e-4)


def test_the_penalty_is_weak_for_a_clear_map_and_strong_for_noise():
    x, y = task()
    probe = LinearProbe()
    assert np.abs(probe.regress(x[:80], y[:80], x[80:]) - y[80:]).max() < 1.0
    clear = probe.chosen["strength"]
    noise = np.random.default_rng(1).normal(size=80)
    told = probe.regress(x[:80], noise, x[80:])
    assert probe.chosen["strength"] > 1000 * clear and told.std() < 0.3


def test_a_feature_that_was_rare_does_not_lead_far_out():
    cut = within(Rows(torch.tensor([[0.0], [2.0]])), Rows(torch.tensor([[-9.0], [1.0], [9.0]])))
    assert cut[:].tolist() == [[-1], [1], [3]]
    x, y = task(120)
    x[:, 5] = 0
    x[[3, 90], 5] = 0.003, 30.0  # 1e5 deviations away wherever the second is held out or asked for
    y[3] += 30
    probe = LinearProbe()
    told = probe.regress(x[:100], y[:100], x[100:])
    assert probe.chosen["strength"] < 0.1 and np.abs(told - y[100:]).max() < 15
    told = probe.regress(x[:80], y[:80], x[80:])
    assert np.abs(told - y[80:]).max() < 60


def test_every_row_is_held_out_once_and_never_fitted_then(monkeypatch):
    from osteon.evaluators import _ridge

    seen, asked, true = [], [], _ridge.RidgePath
    class Spy(true):
        def __init__(self, x, y, rows, shift, moments=None):
            super().__init__(x, y, rows, shift, moments)
            seen.append(set(rows.tolist()))

        def predict_path(self, x, strengths):
            asked.append({int(v) for v in x[:][:, 0]})
            return super().predict_path(x, strengths)

    monkeypatch.setattr(_ridge, "RidgePath", Spy)
    x = torch.arange(11.0)[:, None].repeat(1, 2) + torch.tensor([0.0, 0.5])
    fit_numbers(Rows(x), torch.randn(11, 1, generator=torch.Generator().manual_seed(0)), (0.1, 1.0), folds=5, seed=0)
    assert sorted(i for part in asked for i in part) == list(range(11))
    assert all(not fit & held and fit | held == set(range(11)) for fit, held in zip(seen, asked, strict=False))
    assert seen[-1] == set(range(11))


@pytest.mark.parametrize("reader", READERS, ids=lambda r: type(r).__name__)
def test_units_do_not_matter(reader):
    x, y = task(60)
    one = reader.regress(x[:40], y[:40], x[40:])
    other = reader.regress(x[:40], 1e-3 * y[:40] - 7, x[40:])
    assert other == pytest.approx(1e-3 * one - 7, rel=1e-3, abs=1e-4) and one.dtype == np.float64


@pytest.mark.parametrize("reader", READERS, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_labels_give_finite_numbers_and_equal_ones_themselves(reader, count):
    x, y = task(20)
    assert np.isfinite(reader.regress(x[:count], y[:count], x)).all()
    assert reader.regress(x[:count], np.full(count, 4.25), x) == pytest.approx(np.full(20, 4.25))


@pytest.mark.parametrize("bad", [np.array([1.0, np.nan, 2]), np.ones((3, 1)), np.ones(2)])
def test_targets_that_do_not_fit_are_named(bad):
    with pytest.raises(DataError, match="one finite number"):
        LinearProbe().regress(np.random.rand(3, 2), bad, np.random.rand(1, 2))
