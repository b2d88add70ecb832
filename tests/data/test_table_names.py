"""Tables read by names: what a cell holds, which statistics count, and tables of different columns in one run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from osteon.core.errors import DataError, UsageError
from osteon.data import open_source
from osteon.data.mixture import open_mixed
from osteon.modalities import find
from osteon.modalities.table import columns_of
from osteon.parts.cells import (
    CATEGORY,
    FIRST_NAME,
    FIRST_TEXT,
    NAME,
    NOTHING,
    NUMBER,
    TEXT,
    TRUTH,
    code_of,
    exists,
    names_of,
    pieces,
    present,
)
from osteon.parts.types import Draws, Step
from osteon.verbs._labelled import open_pair
from osteon.views import make_views


def write(folder: Path, name: str, **columns: list) -> Path:
    path = folder / name
    path.write_text(",".join(columns) + "\n" + "".join(
        ",".join(str(v) for v in row) + "\n" for row in zip(*columns.values(), strict=True)))
    return path


def read(path, like=None, **options):
    return open_source(path, modality="table", like=like, cache=False, **options)


@pytest.fixture
def first(tmp_path):
    """Read by names: sizes 0.5 to 11.5, a kind with a missing cell, and a yes or no."""
    return read(write(tmp_path, "a.csv", size=[i + 0.5 for i in range(12)], kind=["Blue", "", *"uv" * 5],
                      ok=["yes", "no"] * 6, label=["x", "y"] * 6), names="cells")


@pytest.fixture
def other(tmp_path):
    """Of other columns, one by the same name."""
    return write(tmp_path, "b.csv", size=[f"s{i % 3}" for i in range(12)], weight=[100 * i for i in range(12)],
                 label=["p", "q"] * 6)


def test_cells_by_hand(first):
    x = first.images
    assert x.shape == (12, FIRST_TEXT + TEXT, 3) and first.class_names == ["x", "y"]
    assert x[0, 2].tolist() == [NUMBER, CATEGORY, TRUTH]
    sd = np.std(np.arange(12))
    np.testing.assert_allclose(x[:, 0, 0], (np.arange(12) - 5.5) / sd, rtol=1e-5)
    assert x[:2, 0, 2].tolist() == [1.0, 0.0] and x[:2, 1, 1].tolist() == [0.0, 1.0]
    for j, name in enumerate(("size", "kind", "ok")):
        assert (x[:, FIRST_NAME:FIRST_TEXT, j] == pieces(name, NAME)).all()
    assert x[0, FIRST_TEXT:, 0].tolist() == pieces("0.5", TEXT) and x[0, 3, 0] == 0
    assert x[0, FIRST_TEXT:, 1].tolist() == pieces("blue", TEXT) and x[0, 3, 1] == code_of("Blue")
    assert x[1, FIRST_TEXT:, 1].sum() == 0 and first.spec.mean == (0.0,) * x.shape[1]
    train, test = find("table").CONTROLS["raw columns"](x, x, first.spec)
    assert train.shape == (12, 2 + 5 + 4)  # a number and its mark; levels, other and missing of u, v, Blue and yes, no


def test_numbers_are_written_to_four_decimals(tmp_path):
    path = write(tmp_path, "n.csv", v=["0.123456", "1e5", *range(12)], w=["2021-03-04"] * 7 + ["2020-01-02"] * 7)
    x = read(path, names="units").images
    assert x[0, FIRST_TEXT:, 0].tolist() == pieces("0.1235", TEXT) and x[1, FIRST_TEXT:, 0].tolist() == pieces(
        "100000", TEXT)
    assert x[0, FIRST_TEXT:, 1].tolist() == pieces("2021-03-04", TEXT)


def test_a_part_of_a_known_table_keeps_its_statistics(first, tmp_path):
    """Columns in another order and one of them gone: the same numbers as in training, and the gone one is skipped."""
    part = read(write(tmp_path, "p.csv", ok=["no", "yes"], size=[0.5, 11.5]), like=first.spec)
    assert part.images.shape == (2, FIRST_TEXT + TEXT, 3)
    np.testing.assert_allclose(part.images[:, 0, 0], first.images[[0, 11], 0, 0], rtol=1e-6)
    assert present(torch.from_numpy(np.array(part.images))).tolist() == [[True, False, True]] * 2
    assert any("1 are not there" in note for note in part.notes)


def test_another_table_is_measured_on_its_own_training_rows_alone(first, other, tmp_path, monkeypatch):
    monkeypatch.setenv("OSTEON_CACHE", str(tmp_path / "cache"))
    rows = write(tmp_path, "t.csv", weight=[0, 1100], extra=[1.5, 2.5], size=["s1", "s9"], label=["q", "p"])
    train, test = open_pair(other, rows, first.spec)
    assert [c.name for c in columns_of(train.spec.traits)] == ["size", "weight"] and train.class_names == ["p", "q"]
    assert [c.kind for c in columns_of(train.spec.traits)] == ["categorical", "numeric"]  # size was a number before
    np.testing.assert_allclose(test.images[:, 0, 1], train.images[[0, 11], 0, 1], rtol=1e-6)
    assert any("'extra' (unknown in training)" in note for note in test.notes)
    assert test.images[1, FIRST_TEXT:, 0].tolist() == pieces("s9", TEXT)  # a level never seen is read as it stands
    alone = write(tmp_path, "u.csv", weight=[0], label=["q"])
    _, one = open_pair(other, alone, first.spec)
    assert np.array_equal(one.images[0][:, 1], test.images[0][:, 1]) and one.images[0, 1, 0] == 1
    with pytest.raises(DataError, match="none of the columns"):
        open_pair(other, write(tmp_path, "w.csv", height=[1.5, 2.5], label=["p", "q"]), first.spec)


def test_tables_of_different_columns_in_one_run(first, other, tmp_path):
    mixed = open_mixed(tmp_path / "a.csv", mix={str(other): 0.5}, names="cells", modality="table", cache=False)
    assert mixed.images.shape == (24, FIRST_TEXT + TEXT, 3) and mixed.spec.extent == (3,)
    x = torch.from_numpy(mixed.images[np.array([0, 23])])
    assert exists(x).tolist() == [[True] * 3, [True, True, False]] and x[1, 2, 2] == NOTHING
    np.testing.assert_array_equal(np.asarray(mixed.images[:12]), first.images)
    assert len(np.asarray(mixed.images)) == 24 and np.asarray(mixed.images).shape[2] == 3
    # Both tables are known to a network trained on the two.
    again = read(other, like=mixed.spec)
    np.testing.assert_array_equal(again.images, mixed.images[12:][:, :, :2])
    views = make_views("simclr", mixed.spec, min_scale=0.5)
    data = mixed.batch(np.arange(24))
    for view in views(data["table"], Draws.of(data, Step(0, 1))):
        assert torch.equal(names_of(view.x), names_of(data["table"]))  # no cell of another table comes in
        assert not torch.equal(view.x, data["table"])
    hidden = make_views("crop_flip", mixed.spec, min_scale=0.5)(data["table"], Draws.of(data, Step(0, 1)))[0].x
    assert (present(hidden) <= present(data["table"])).all() and present(hidden).sum() < present(data["table"]).sum()
    assert find("table").picture(np.asarray(data["table"][:3]), mixed.spec).shape[0] == 3


@pytest.mark.parametrize("asked", ["words", "Cells"])
def test_no_such_way_of_reading(tmp_path, asked):
    path = write(tmp_path, "t.csv", a=[i + 0.5 for i in range(12)], b=["u", "v"] * 6)
    with pytest.raises(UsageError, match="cells, pieces, units"):
        read(path, names=asked)


def test_a_network_that_reads_one_way_is_not_given_another(first, other):
    with pytest.raises(UsageError, match="'cells'"):
        read(other, like=first.spec, names="units")
