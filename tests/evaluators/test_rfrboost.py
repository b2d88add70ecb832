"""RFRBoost as an evaluator: beside the contract, what it does with penalties, rare classes and several labels."""

from __future__ import annotations

import numpy as np
import pytest

from osteon.core.errors import UsageError
from osteon.evaluators.rfrboost import RFRBoost
from osteon.parts.random_feature_boosting import RIDGES, RandomFeatureBooster


def rings(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two classes on rings around one centre: no line tells them apart."""
    g = np.random.default_rng(seed)
    y = np.arange(n) % 2
    angle, radius = g.uniform(0, 2 * np.pi, n), 1 + y + 0.15 * g.standard_normal(n)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).astype(np.float32), y


@pytest.mark.parametrize("variant", ["gradient", "greedy"])
@pytest.mark.parametrize("features", ["swim", "gaussian"])
def test_rings_are_told_apart_without_touching_the_features(variant, features):
    (x, y), (test, truth) = rings(200, 0), rings(200, 1)
    reader = RFRBoost(variant=variant, features=features, width=64, dim=32)
    scores = reader(x, y, test, classes=2)
    assert (scores.argmax(1) == truth).mean() > 0.95 and np.allclose(scores.sum(1), 1)
    assert reader.chosen["ridge"] in RIDGES


def test_a_fixed_penalty_is_the_boosters():
    (x, y), (test, _) = rings(60, 0), rings(10, 1)
    reader = RFRBoost(ridge=0.02, width=16, dim=8, layers=2)
    want = RandomFeatureBooster(ridge=0.02, width=16, dim=8, layers=2, seed=4).fit(x, y).predict(test)
    np.testing.assert_allclose(reader(x, y, test, classes=2, seed=4), want)
    assert reader.chosen == {"ridge": 0.02}


def test_classes_that_do_not_occur_get_nothing_and_the_others_keep_their_columns():
    (x, y), (test, truth) = rings(120, 0), rings(60, 1)
    scores = RFRBoost(width=64, dim=32)(x, 3 - 2 * y, test, classes=5)  # classes 3 and 1
    assert not scores[:, [0, 2, 4]].any() and (scores.argmax(1) == 3 - 2 * truth).mean() > 0.9
    only = RFRBoost(width=8, dim=4)(x, np.full(120, 2), test, classes=4)
    assert (only == [0, 0, 1, 0]).all()


def test_several_labels_are_least_squares_on_each():
    (x, y), (test, truth) = rings(200, 0), rings(100, 1)
    labels, wanted = (np.stack([v, 1 - v], 1).astype(np.uint8) for v in (y, truth))
    scores = RFRBoost(width=64, dim=32)(x, labels, test, classes=2)
    assert scores.min() >= 0 and scores.max() <= 1 and ((scores > 0.5) == wanted).mean() > 0.95


@pytest.mark.parametrize("options", [{"fraction": 0.0}, {"layers": -2}, {"eta": 2.0}, {"variant": "newton"},
                                     {"ridge": -1.0}])
def test_bad_options_are_named_when_it_is_made(options):
    with pytest.raises(UsageError):
        RFRBoost(**options)
