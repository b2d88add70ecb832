"""Drawings: geometry that can be recomputed, degenerate data, and nothing unescaped."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from osteon.core.errors import UsageError
from osteon.report.figures import Scale, board_row, scatter, thin
from osteon.report.svg import (
    Arm,
    Axes,
    Series,
    compact,
    element,
    line_chart,
    log_ticks,
    nice_ticks,
    spread,
    styles,
)

AXES = Axes(400, 240, "step", "loss")


def parse(markup) -> ET.Element:
    return ET.fromstring(str(markup))


def test_ticks_are_round_and_inside():
    assert nice_ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert nice_ticks(0.12, 0.31) == [0.15, 0.2, 0.25, 0.3]
    assert nice_ticks(3, 3) == [3] and nice_ticks(math.nan, 1) == []
    assert log_ticks(1, 1000) == [1, 10, 100, 1000]
    assert log_ticks(10, 100) == [10, 20, 50, 100]


def test_compact_labels():
    assert [compact(v) for v in (1000, 12000, 2.5e6, 950, 1234)] == ["1k", "12k", "2.5M", "950", "1,234"]


def test_elements_escape_attributes_and_text():
    assert str(element("text", {"id": '"><script>'}, "<b>&")) == (
        '<text id="&#34;&gt;&lt;script&gt;">&lt;b&gt;&amp;</text>')


def test_a_line_passes_through_its_points():
    root = parse(line_chart([Series("a", [0, 5, 10], [0, 5, 10])], AXES, "said"))
    assert root.get("aria-label") == "said" and root.get("role") == "img"
    dots = [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter("circle")]
    (x0, y0), (x1, y1), (x2, y2) = dots
    assert x0 < x1 < x2 and y0 > y1 > y2, "larger values are drawn higher"
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.11) and y1 == pytest.approx((y0 + y2) / 2, abs=0.11)


def test_a_logarithmic_axis_spaces_powers_of_ten_evenly_and_leaves_out_what_is_not_positive():
    chart = line_chart([Series("a", [0, 1, 10, 100], [1, 1, 2, 3])], Axes(400, 240, "", "", log_x=True), "")
    xs = [float(c.get("cx")) for c in parse(chart).iter("circle")]
    assert len(xs) == 3 and xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.11)


def test_nan_breaks_the_line_and_a_lone_point_is_a_dot():
    many = list(range(30))
    y = [1.0] * 10 + [math.nan] + [2.0] * 8 + [math.nan, 3.0, math.nan] + [4.0] * 8
    root = parse(line_chart([Series("a", many, y)], AXES, ""))
    assert len(list(root.iter("path"))) == 3 and len(list(root.iter("circle"))) == 1


def test_a_band_goes_up_one_side_and_back_on_the_other():
    root = parse(line_chart([Series("a", [0, 1], [2, 2], [1, 1], [3, 3])], AXES, ""))
    (band,) = root.iter("polygon")
    corners = [tuple(map(float, p.split(","))) for p in band.get("points").split()]
    assert [c[0] for c in corners] == [corners[0][0], corners[1][0], corners[1][0], corners[0][0]]
    assert corners[0][1] == corners[1][1] < corners[2][1] == corners[3][1]


@pytest.mark.parametrize("series", [[], [Series("a", [], [])], [Series("a", [1], [math.nan])],
                                    [Series("a", [math.inf, math.nan, 1, 2], [1, 2, 3, math.inf])],
                                    [Series("a", [1], [2])], [Series("a", [1, 2], [0, 0])],
                                    [Series("a", [1, 2], [1e308, 1e308])]])
@pytest.mark.parametrize("log_x", [False, True])
def test_empty_and_flat_data_are_drawn_without_a_number_that_is_not_finite(series, log_x):
    text = str(line_chart(series, Axes(300, 200, "x", "y", log_x=log_x, end_labels=True), ""))
    assert "nan" not in text and "inf" not in text
    parse(text)


def test_controls_are_dashed_and_grey_and_recipes_have_their_own_colours():
    series = [Series(str(i), [0], [0], control=i % 2 == 1) for i in range(6)]
    looks = styles(series)
    assert [c for c, _ in looks] == ["c0", "ck", "c1", "ck", "c2", "ck"]
    assert all((dash is None) != s.control for s, (_, dash) in zip(series, looks, strict=True))
    assert len({dash for c, dash in looks if c == "ck"}) == 3
    many = styles([Series(str(i), [0], [0]) for i in range(20)])
    assert len(set(many)) == 20, "no two lines look alike"


def test_labels_are_moved_apart_and_stay_inside():
    rows = spread([10, 11, 12, 199], 15, 0, 200)
    assert all(b - a >= 15 - 1e-9 for a, b in zip(rows, rows[1:], strict=False))
    assert rows[0] == 10 and rows[-1] <= 200


def test_a_leaderboard_row_puts_the_mean_between_its_ends_and_shades_the_leader():
    best, arm = Arm("a", "recipe", 0.9, 0.88, 0.92), Arm("b<", "control", 0.8, 0.75, 0.85)
    scale = Scale([best, arm], True)
    root = parse(board_row(arm, scale, best))
    bar = next(e for e in root.iter("line") if "bar" in e.get("class"))
    dot = next(root.iter("circle"))
    low, mean, high = (float(v.rstrip("%")) for v in (bar.get("x1"), dot.get("cx"), bar.get("x2")))
    assert 0 < low < mean < high < 100 and mean == pytest.approx((low + high) / 2, abs=0.02)
    assert "hollow" in dot.get("class")
    shade = next(root.iter("rect"))
    ratio = float(shade.get("width").rstrip("%")) / (high - low)
    assert ratio == pytest.approx(0.04 / 0.10, abs=0.01)
    assert root.get("aria-label") == "b<: 80.0 % [75.0, 85.0]"


def test_the_map_keeps_one_scale_for_both_axes_and_turns_y_upwards():
    xy = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 2.0]])
    root = parse(scatter(xy, np.zeros(3, int), ["a"], ""))
    d = next(root.iter("path")).get("d")
    (x0, y0), (x1, y1), (x2, y2) = [tuple(map(float, p)) for p in re.findall(r"M([\d.]+) ([\d.]+)h0", d)]
    assert (x1 - x0) == pytest.approx(2 * (y0 - y2), abs=0.3) and y0 == y1 and x0 == x2 and y2 < y0


def test_the_map_draws_every_finite_point_and_unnamed_classes_grey():
    xy = np.array([[0, 0], [1, 1], [2, 2], [np.nan, 0]], dtype=float)
    root = parse(scatter(xy, np.array([0, -1, 9, 0]), ["only <one>"], ""))
    counts = {p.get("class").split()[1]: 0 for p in root.iter("path")}
    for p in root.iter("path"):
        counts[p.get("class").split()[1]] += p.get("d").count("h0")
    assert counts == {"c0": 1, "ck": 2}
    assert [t.text for t in root.iter("text")] == ["only <one>"]


def test_maps_of_nothing_of_one_point_and_of_the_wrong_shape():
    assert "no points" in scatter(np.zeros((0, 2)), np.zeros(0, int), [], "")
    assert "nan" not in scatter(np.zeros((1, 2)), np.zeros(1, int), ["a"], "")
    with pytest.raises(UsageError, match="N labels"):
        scatter(np.zeros((3, 2)), np.zeros(2, int), [], "")


def test_thinning_keeps_both_ends_and_order():
    rows = thin(np.zeros(100), 10)
    assert len(rows) == 10 and rows[0] == 0 and rows[-1] == 99 and (np.diff(rows) > 0).all()
    assert thin(np.zeros(5), 10).tolist() == [0, 1, 2, 3, 4]
