from __future__ import annotations

import pytest

from osteon.core.errors import UsageError
from osteon.train.schedule import Schedule, value_at


def at(steps, **options):
    return [round(value_at(s, **options), 6) for s in steps]


def test_cosine_with_warmup_by_hand():
    # 3 steps of warm-up: 1/4, 2/4, 3/4 of 8; then half a cosine from 8 to 2 over 4 steps: 5 + 3 cos(pi p).
    assert at(range(9), total=7, schedule="cosine", start=8.0, end=2.0, warmup=3) == [
        2.0, 4.0, 6.0, 8.0, round(5 + 3 * 0.5**0.5, 6), 5.0, round(5 - 3 * 0.5**0.5, 6), 2.0, 2.0]


def test_linear_by_hand():
    assert at(range(7), total=5, schedule="linear", start=1.0, end=0.0, warmup=1) == [
        0.5, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]


def test_constant_and_multistep_by_hand():
    assert at(range(4), total=3, schedule="constant", start=2.0, warmup=1) == [1.0, 2.0, 2.0, 2.0]
    assert at((0, 5, 6, 8, 9, 20), total=10, schedule="multistep", start=1.0, milestones=(0.6, 0.9)) == [
        1.0, 1.0, 0.1, 0.1, 0.01, 0.01]


def test_rises_for_a_teachers_momentum():
    values = at(range(101), total=100, start=0.996, end=1.0)
    assert values[0] == 0.996 and values[50] == 0.998 and values[100] == 1.0 and values == sorted(values)


def test_degenerate_lengths():
    assert value_at(0, total=1) == 1.0
    assert at((0, 1, 2), total=2, warmup=2, start=3.0, end=1.0) == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("options", [{"total": 0}, {"total": 5, "warmup": 6}, {"total": 5, "warmup": -1},
                                     {"total": 5, "schedule": "multistep", "milestones": (3,)}])
def test_impossible_numbers_are_refused(options):
    with pytest.raises(UsageError):
        value_at(0, **options)
    with pytest.raises(UsageError):
        value_at(-1, total=3)


def test_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="cosine"):
        value_at(0, total=1, schedule="cosin")


def test_schedule_object_is_the_function():
    lr_at = Schedule("cosine", 0.1, total=10, end=0.01, warmup=2)
    assert [lr_at(s) for s in range(12)] == [value_at(s, total=10, schedule="cosine", start=0.1, end=0.01, warmup=2)
                                             for s in range(12)]
    assert lr_at.describe() == "cosine from 0.1 to 0.01 over 10 steps after 2 of warm-up"
    assert Schedule("multistep", 1.0, total=4, milestones=(0.5,)).describe() == (
        "multistep from 1, times 0.1 at 50% over 4 steps")
    with pytest.raises(UsageError):
        Schedule("cosine", 0.1, total=0)
