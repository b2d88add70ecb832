"""Columns, cells and controls of tables, by hand and by scikit-learn."""

from __future__ import annotations

import json
import math
from datetime import datetime, timezone

import numpy as np
import pytest

from osteon.data import open_source
from osteon.modalities import table as ta
from osteon.parts.types import DataSpec


def spec_of(*columns: ta.Column) -> DataSpec:
    return DataSpec("table", 2, len(columns), (0.0, 0.0), (1.0, 1.0), 1.0, shape=(len(columns),),
                    traits={"columns": [c.trait() for c in columns]})


@pytest.mark.parametrize(("text", "value"), [
    ("3", 3.0), ("-2.50", -2.5), ("+.5e-3", 0.0005), ("7.", 7.0), ("1E3", 1000.0),
    ("12345678901234567890", 1.2345678901234567e19), ("1,5", None), ("1_000", None), ("inf", None), ("nan", None),
    ("0x10", None), ("", None), ("1 2", None), ("1e200", None), ("1" + "0" * 400, None)])
def test_a_number_is_in_decimal_notation(text, value):
    assert ta.number(text) == value


@pytest.mark.parametrize(("text", "when"), [
    ("1970-01-01", (1970, 1, 1)), ("2024-02-29", (2024, 2, 29)), ("2024/3/1", (2024, 3, 1)), ("1.3.2024", (2024, 3, 1)),
    ("2024-03-01T06:30", (2024, 3, 1, 6, 30)), ("2024-03-01 06:30:15.5Z", (2024, 3, 1, 6, 30, 15, 500000)),
    ("1969-12-31 12:00:00+00:00", (1969, 12, 31, 12))])
def test_dates_are_days_since_1970(text, when):
    want = datetime(*when, tzinfo=timezone.utc).timestamp() / 86400
    assert ta.days(text) == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize("text", ["2023-02-29", "2024-13-01", "2024-1/1", "3/4/2024", "2024-01-01 25:00", "20240101",
                                  ""])
def test_what_is_no_date_or_could_be_two(text):
    assert ta.days(text) is None


@pytest.mark.parametrize(("cells", "kind"), [
    ([str(i) for i in range(11)], "numeric"), ([str(i) for i in range(10)], "categorical"), (["0.5", "1"], "numeric"),
    ([f"{i:03d}" for i in range(50)], "categorical"), (["2024-01-01", "2024-02-01"], "date"),
    (["a", "b"], "categorical"),
    ([f"name {i}" for i in range(21)], "names"), ([f"name {i}" for i in range(20)], "categorical"),
    (["1", "2", "3", "A"], "categorical"), (["1.0"] * 3 + ["2.0"], "categorical")])
def test_the_rule_of_every_kind(cells, kind):
    assert ta.guess_kind({c: cells.count(c) for c in cells}) == kind


def test_repeated_texts_are_no_names():
    assert ta.guess_kind({f"name {i}": 1 + (i == 3) for i in range(30)}) == "categorical"


def test_nearly_all_numbers_is_a_mistake_that_is_named():
    with pytest.raises(ta.Mixed) as error:
        ta.guess_kind({**{str(i): 1 for i in range(20)}, "abc": 1})
    assert error.value.args == ("abc", "numeric")
    with pytest.raises(ta.Mixed) as error:
        ta.guess_kind({**{f"2024-01-{i:02d}": 1 for i in range(1, 20)}, "soon": 1})
    assert error.value.args == ("soon", "date")
    # ten numbers and a word are ten classes and one more
    assert ta.guess_kind({**{str(i): 1 for i in range(10)}, "abc": 1}) == "categorical"


def test_numbers_by_hand():
    # 1, 1, 4 and a missing one: mean 2, deviation sqrt(2), median 1
    column = ta.fit_column("x", {"1": 2, "4": 1, "": 1}, kind="numeric")
    assert isinstance(column, ta.Column) and column.continuous and column.count == 0
    assert (column.mean, column.sd) == (2.0, pytest.approx(math.sqrt(2)))
    assert column.median == pytest.approx(-1 / math.sqrt(2)) == column.absent
    assert column.encode("4") == (pytest.approx(math.sqrt(2)), 0.0)
    assert column.encode("N/A") == (column.median, 1.0)
    assert column.encode("abc") is None
    assert column.encode("abc", frozenset(("abc",))) == (column.median, 1.0)


def test_of_two_middle_numbers_the_lower_is_the_median():
    column = ta.fit_column("x", {"7.5": 1, "1.5": 1})
    assert isinstance(column, ta.Column) and column.median == -1.0


def test_levels_by_hand():
    column = ta.fit_column("x", {"b": 3, "a": 3, "c": 5, "": 1})
    assert isinstance(column, ta.Column) and column.levels == ("c", "a", "b")  # by frequency, then by name
    assert column.kind == "categorical" and column.count == 5
    assert [column.encode(t) for t in ("c", "b", "new", "?")] == [(0.0, 0.0), (2.0, 0.0), (3.0, 0.0), (4.0, 1.0)]


def test_whole_numbers_with_a_fraction_of_nothing_are_one_level():
    column = ta.fit_column("x", {"1": 2, "1.0": 3, "2": 4, "+2": 0})
    assert isinstance(column, ta.Column) and column.levels == ("1", "2") and column.kind == "binary"
    assert column.encode("2.0") == (1.0, 0.0)
    assert ta.level("007") == "007" and ta.level("7.5") == "7.5" and ta.level("-3.0") == "-3"


def test_the_256th_level_counts_as_other():
    counts = {f"level {i}": 1000 - i for i in range(300)}
    column = ta.fit_column("x", counts)
    assert isinstance(column, ta.Column) and len(column.levels) == 255 and column.count == 257
    assert column.encode("level 254") == (254.0, 0.0)
    assert column.encode("level 255") == column.encode("never seen") == (255.0, 0.0)
    assert column.encode("") == (256.0, 1.0)


@pytest.mark.parametrize(("counts", "why"), [
    ({"": 3, "NA": 2}, "empty"), ({"5": 4}, "constant"), ({"5": 2, "5.0": 2}, "constant"), ({"x": 9}, "constant"),
    ({f"n{i}": 1 for i in range(30)}, "every cell is different"), ({}, "empty"), ({"a": 0, "b": 2}, "constant")])
def test_columns_without_anything_to_learn(counts, why):
    assert ta.fit_column("x", counts) == why


def test_a_constant_that_is_missing_at_times_says_something():
    column = ta.fit_column("x", {"yes": 2, "": 5})
    assert isinstance(column, ta.Column) and column.levels == ("yes",) and column.encode("") == (2.0, 1.0)
    column = ta.fit_column("x", {"0.5": 2, "": 5})
    assert isinstance(column, ta.Column) and column.sd == 1.0 and column.encode("0.5") == (0.0, 0.0)


def test_traits_are_json_and_come_back():
    columns = [ta.Column("a", "numeric", mean=3.0, sd=2.0, median=-0.5), ta.Column("b", "binary", ("x", "y"))]
    spec = spec_of(*columns)
    assert ta.columns_of(json.loads(json.dumps(dict(spec.traits)))) == columns
    assert ta.backbone_options(spec) == {"levels": [0, 4]}


def rows() -> tuple[np.ndarray, DataSpec]:
    spec = spec_of(ta.Column("a", "numeric", median=0.5), ta.Column("b", "binary", ("x", "y")))
    #                  number, level               missing
    return np.array([[[1.5, 1.0], [0.0, 0.0]], [[0.5, 3.0], [1.0, 1.0]]], np.float32), spec


def test_raw_columns_by_hand():
    samples, spec = rows()
    assert ta.raw_columns(samples, spec).tolist() == [[1.5, 0, 0, 1, 0, 0], [0.5, 1, 0, 0, 0, 1]]


def test_pictures_show_the_value_and_grey_for_missing():
    samples, spec = rows()
    drawn = ta.picture(samples, spec)
    assert drawn.shape == (2, 12, 16, 3) and drawn.dtype == np.uint8
    assert (drawn[1] == 128).all() and not (drawn[0] == 128).all(-1).any()
    red, blue = (ta.picture(np.array([[[v, 0.0], [0.0, 0.0]]], np.float32), spec)[0, 0, 0].astype(int)
                 for v in (2.5, -2.5))
    assert red[0] > red[2] + 50 and blue[2] > blue[0] + 50
    assert np.array_equal(ta.picture(samples * [[[9], [1]]], spec, like=samples)[1], drawn[1])
    wide = spec_of(*[ta.Column(f"c{j}", "numeric") for j in range(40)])
    assert ta.picture(np.zeros((3, 2, 40), np.float32), wide).shape == (3, 24, 256, 3)


def test_boosted_trees_read_missing_cells_and_categories():
    rng = np.random.default_rng(0)
    spec = spec_of(ta.Column("a", "numeric"), ta.Column("b", "categorical", tuple("pqrs")))
    x = np.zeros((400, 2, 2), np.float32)
    x[:, 0, 0], x[:, 0, 1] = rng.standard_normal(400), rng.integers(0, 4, 400)
    x[:, 1, 0] = rng.random(400) < 0.5
    y = ((x[:, 0, 1] % 2) + 2 * x[:, 1, 0]).astype(int)  # odd level, and whether the number is missing
    for control, least in ((ta.boosted_trees, 0.99), (ta.logistic_regression, 0.99)):
        scores = control(x[:300], y[:300], x[300:], spec, classes=5)
        assert scores.shape == (100, 5) and (scores[:, 4] == 0).all()  # a class that was never seen
        np.testing.assert_allclose(scores.sum(1), 1, atol=1e-6)
        assert (scores.argmax(1) == y[300:]).mean() >= least


def test_labelled_controls_at_small_budgets():
    samples = np.repeat(rows()[0], 6, 0)
    for control in ta.LABELLED_CONTROLS.values():
        one = control(samples, np.full(12, 2), samples[:3], rows()[1], classes=3)
        assert one.tolist() == [[0, 0, 1]] * 3
        two = control(samples[5:7], np.array([0, 1]), samples[:3], rows()[1], classes=3)
        assert two.shape == (3, 3) and np.isfinite(two).all()


def test_controls_of_numbers_know_the_diabetes_table():
    train, test = open_source("diabetes:train", cache=False), open_source("diabetes:test", cache=False)
    for name, least in (("gradient-boosted trees", 0.4), ("ridge regression", 0.45),
                        ("boosted random features", 0.4)):
        fit = ta.NUMBER_CONTROLS[name]
        told = fit(train.images, train.targets, test.images, train.spec)
        assert least < 1 - np.mean((told - test.targets)**2) / np.var(test.targets) < 0.6
        for few in (1, 2):
            assert np.isfinite(fit(train.images[:few], train.targets[:few], test.images, train.spec)).all()
    assert set(ta.NUMBER_CONTROLS) == {"gradient-boosted trees", "ridge regression", "boosted random features"}


def test_more_levels_than_the_trees_take():
    spec = spec_of(ta.Column("b", "categorical", tuple(f"l{i}" for i in range(255))))
    x = np.zeros((257, 2, 1), np.float32)
    x[:, 0, 0] = np.arange(257)
    x[256, 1] = 1
    scores = ta.boosted_trees(x, (np.arange(257) > 128).astype(int), x, spec, classes=2)
    assert np.isfinite(scores).all()


def test_the_generated_source_needs_more_than_a_line():
    train, test = open_source("mixed:train", cache=False), open_source("mixed:test", cache=False)
    fits = {name: (f(train.images, train.labels, test.images, train.spec, classes=4).argmax(1) == test.labels).mean()
            for name, f in ta.LABELLED_CONTROLS.items()}
    assert fits["gradient-boosted trees"] > fits["logistic regression"] + 0.1 > 0.45


def test_random_leaves_are_one_a_tree_and_fitted_on_the_training_part():
    samples, spec = np.random.default_rng(0).standard_normal((60, 2, 3)).astype(np.float32), spec_of(
        *[ta.Column(f"c{j}", "numeric") for j in range(3)])
    first, second = ta.random_leaves(samples[:40], samples[40:], spec)
    assert (first.sum(1) == 64).all() and (second.sum(1) == 64).all()
    again = ta.random_leaves(samples[:40], samples[40:] + 5, spec)[0]
    assert np.array_equal(again, first)
