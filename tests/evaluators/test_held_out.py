"""Mean costs of questions, the gap to a control, and when nothing is told."""

from __future__ import annotations

import numpy as np
import pytest

from osteon.core.errors import DataError, UsageError
from osteon.evaluators.held_out import FEWEST, HeldOut
from osteon.parts.intervals import ratio_interval


def test_the_mean_is_over_questions_not_over_samples():
    found = HeldOut()({"a": np.array([2.0, 0, 1]), "b": np.array([1.0, 1, 8])}, np.array([1.0, 1, 8]))
    assert found["a"].mean == pytest.approx(0.3) and found["b"].mean == 1
    assert (found["b"].low, found["b"].high) == (1, 1) and found["a"].low < 0.3 < found["a"].high


def test_the_interval_covers_the_mean_as_often_as_it_says():
    rng, hits = np.random.default_rng(0), 0
    for trial in range(200):
        asked = rng.integers(1, 9, 60).astype(float)
        costs = asked * 2.0 + rng.normal(size=60) * asked
        found = ratio_interval(costs, asked, resamples=300, seed=trial)
        hits += found.low <= 2.0 <= found.high
    assert 180 <= hits <= 198


def test_the_gap_is_a_paired_share_of_the_control():
    rng = np.random.default_rng(1)
    asked = np.full(FEWEST, 4.0)
    control = 40 + 10 * rng.random(FEWEST)
    gap = HeldOut().gap(0.9 * control, control, asked)
    assert gap.mean == pytest.approx(0.1) and gap.low > 0.09 and gap.answer == "pays"
    assert HeldOut().gap(1.1 * control, control, asked).answer == "does not pay"
    assert HeldOut().gap(0.995 * control, control, asked).answer == "pays"
    assert HeldOut().gap(control, control, asked).answer == "does not pay"
    noise = rng.normal(size=FEWEST)
    noisy = control * (1 + 0.2 * (noise - noise.mean()))
    assert HeldOut().gap(noisy, control, asked).answer == "cannot tell"
    assert HeldOut().gap(noisy - 1, control, asked).answer == "cannot tell"  # less, but not for sure
    assert HeldOut().gap(0.5 * control[1:], control[1:], asked[1:]).answer == "cannot tell"


def test_bad_input_is_refused():
    with pytest.raises(DataError):
        HeldOut()({}, np.ones(3))
    with pytest.raises(DataError, match="without parts"):
        HeldOut()({"a": np.zeros(3)}, np.zeros(3))
    with pytest.raises(DataError):
        HeldOut()({"a": np.array([np.nan, 1])}, np.ones(2))
    for options in ({"order": 1}, {"train_samples": 0}):
        with pytest.raises(UsageError):
            HeldOut(**options)
