"""Numbers as printed: values anybody can check by eye."""

from __future__ import annotations

import math

import pytest

from osteon.report.numbers import (
    bounds,
    interval,
    is_fraction,
    leader,
    number,
    percent,
    plain,
    points,
    seconds,
    tied,
    words,
)


def test_a_score_with_its_interval():
    assert interval(0.912, 0.901, 0.923) == "91.2 % [90.1, 92.3]"
    assert interval(12.34, 10, 1500, in_percent=False) == "12.34 [10, 1,500]"
    assert interval(0.912, None, 0.923) == "91.2 %"
    assert interval(math.nan, 0.1, 0.2) == "n/a [10.0, 20.0]"
    assert bounds(math.inf, 1.0) == ""


@pytest.mark.parametrize(("value", "text"), [
    (0, "0"), (7, "7"), (1234567, "1,234,567"), (12345.6, "12,346"), (3.14159, "3.142"), (0.00123456, "0.001235"),
    (1.2e-7, "1.20e-07"), (-0.5, "-0.5"), (1999.6, "2,000"), (None, "n/a"), (math.nan, "n/a"), (math.inf, "n/a"),
    (True, "n/a"), (2.5e15, "2.50e+15")])
def test_number(value, text):
    assert number(value) == text


@pytest.mark.parametrize(("value", "text"), [
    (0.42, "0.42 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3900, "1 h 05 min"),
    (-1, "n/a"), (None, "n/a")])
def test_seconds(value, text):
    assert seconds(value) == text


def test_percent_and_points():
    assert percent(1) == "100.0 %"
    assert points(0.032) == "+3.2 points"
    assert points(-0.007) == "-0.7 points"
    assert percent(None) == points(math.nan) == "n/a"


def test_overlapping_and_touching_intervals_are_ties_and_separate_ones_are_not():
    assert tied(0.8, 0.9, 0.7, 0.85)
    assert tied(0.8, 0.9, 0.7, 0.8)
    assert not tied(0.8, 0.9, 0.7, 0.79)
    assert not tied(0.7, 0.79, 0.8, 0.9)
    assert tied(0.8, 0.9, None, None), "without an interval nothing can be told apart"
    assert tied(0.8, 0.9, math.nan, math.nan)


def test_the_leader_is_the_highest_known_mean():
    assert leader([0.1, math.nan, 0.3, 0.3, None]) == 2
    assert leader([-0.5, -0.2]) == 1
    assert leader([]) is None and leader([None, math.nan]) is None


def test_words_and_plain_values():
    assert words("best_control") == "Best control"
    assert words("knn") == "k-NN"
    assert is_fraction("accuracy") and is_fraction("label-ranking average precision") and not is_fraction("loss")
    assert plain([1, 0.5, None, True]) == "1, 0.5, –, yes"
    assert plain(20240101) == "20240101"
