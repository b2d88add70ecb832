"""Labels that are numbers to be predicted: recognised by rule, declared, read from all manifests, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from osteon.core.errors import DataError, UsageError
from osteon.data import open_source
from osteon.data.targets import in_deviations, need_spread, why_unlabelled

AGES = [round(20 + 1.7 * i, 1) for i in range(24)]


def manifest(folder: Path, columns: dict[str, list], name: str = "m.csv") -> Path:
    """A manifest of little pictures with further columns."""
    count = len(next(iter(columns.values())))
    for i in range(count):
        Image.fromarray(np.full((8, 8), 10 * i % 256, np.uint8)).save(folder / f"{i}.png")
    rows = [",".join(["path", *columns])]
    rows += [",".join([f"{i}.png", *(str(c[i]) for c in columns.values())]) for i in range(count)]
    (folder / name).write_text("\n".join(rows) + "\n")
    return folder / name


def table(folder: Path, price: list) -> Path:
    rows = ["size,rooms,price", *(f"{30 + 3.5 * i},{i % 4 + 1},{p}" for i, p in enumerate(price))]
    (folder / "t.csv").write_text("\n".join(rows) + "\n")
    return folder / "t.csv"


def test_many_numbers_that_are_not_whole_are_a_target_by_a_printed_rule(tmp_path):
    data = open_source(manifest(tmp_path, {"label": AGES}), cache=False)
    assert data.labels is None and data.class_names == [] and data.targets.tolist() == AGES
    note = next(n for n in data.notes if n.startswith("target:"))
    assert "20 to 59.1" in note and "more than 20 distinct numbers, not all of them whole" in note
    assert "--task classes" in note
    assert data.spec.num_classes == 0 and data.spec.target is None


@pytest.mark.parametrize("labels", [list(range(24)), [0.5, 1.5] * 12, AGES[:20] + AGES[:4], [f"{v}a" for v in AGES],
                                    ["a"] * 12 + AGES[:12]], ids=["whole", "two", "twenty", "texts", "half texts"])
def test_everything_else_stays_classes_unless_asked(tmp_path, labels):
    data = open_source(manifest(tmp_path, {"label": labels}), cache=False)
    assert data.targets is None and len(data.class_names) == len({str(v) for v in labels})


def test_the_task_can_be_said(tmp_path):
    source = manifest(tmp_path, {"label": list(range(24))})
    asked = open_source(source, cache=False, task="regression")
    assert asked.targets.tolist() == list(range(24)) and asked.labels is None
    other = open_source(manifest(tmp_path, {"label": AGES}), cache=False, task="classes")
    assert other.targets is None and len(other.class_names) == 24


def test_a_column_can_be_named(tmp_path):
    source = manifest(tmp_path, {"label": ["a", "b"] * 12, "Age": AGES, "weight": list(range(24))})
    plain, by_name = open_source(source, cache=False), open_source(source, cache=False, target="age")
    assert plain.class_names == ["a", "b"] and plain.targets is None
    assert by_name.targets.tolist() == AGES and by_name.labels is None
    assert open_source(source, cache=False, target="weight").targets.tolist() == list(range(24))
    assert by_name.fingerprint not in (plain.fingerprint, open_source(source, cache=False, target="weight").fingerprint)
    with pytest.raises(UsageError, match="no column 'wieght'.*Did you mean 'weight'.*label, age, weight"):
        open_source(source, cache=False, target="wieght")


def test_targets_come_from_parquet_arrays_and_lines(tmp_path):
    picture = (tmp_path / "x.png")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(picture)
    pq.write_table(pa.table({"image": [picture.read_bytes()] * 24, "age": AGES, "label": [0, 1] * 12}),
                   tmp_path / "p.parquet")
    assert open_source(tmp_path / "p.parquet", cache=False, target="age").targets.tolist() == AGES
    np.savez(tmp_path / "a.npz", image=np.zeros((24, 8, 8), np.uint8), label=np.array(AGES))
    assert open_source(tmp_path / "a.npz", cache=False).targets.tolist() == AGES
    lines = [json.dumps({"text": f"a word {i}", "stars": age}) for i, age in enumerate(AGES)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines) + "\n")
    assert open_source(tmp_path / "t.jsonl", cache=False, target="stars").targets.tolist() == AGES


def test_a_table_keeps_its_target_out_of_its_inputs(tmp_path):
    data = open_source(table(tmp_path, AGES), cache=False, target="price")
    assert data.targets.tolist() == AGES and [c["name"] for c in data.spec.traits["columns"]] == ["size", "rooms"]
    same = open_source(table(tmp_path, AGES), cache=False, label="price")
    assert same.targets.tolist() == AGES and "task" not in same.spec.traits
    as_input = open_source(table(tmp_path, AGES), cache=False, label="none")
    with pytest.raises(DataError, match="would read the answer"):
        open_source(table(tmp_path, AGES), cache=False, like=as_input.spec, target="price")


def test_whole_numbers_of_many_levels_leave_a_table_open(tmp_path):
    source = table(tmp_path, [1000 * i for i in range(24)])
    with pytest.raises(DataError, match="'price' is whole numbers with 24 levels.*columns={price: numeric}.*bins=4"):
        open_source(source, cache=False, label="price")
    said = open_source(source, cache=False, label="price", columns="price:numeric")
    assert said.targets[1] == 1000 and said.spec.traits["task"] == "regression"
    again = open_source(source, cache=False, like=said.spec)  # as in training
    assert again.targets.tolist() == said.targets.tolist()
    assert len(open_source(source, cache=False, label="price", columns="price:categorical").class_names) == 24
    assert open_source(source, cache=False, label="price", bins=3).class_names[0].startswith("up to")


def test_diabetes_says_itself_what_it_is():
    train, test = open_source("diabetes:train"), open_source("diabetes:test")
    assert (len(train), len(test)) == (309, 133) and train.targets.max() == 346
    assert any("the source says so" in n for n in train.notes)
    assert not set(train.ids) & set(test.ids)


@pytest.mark.parametrize(("cells", "what"), [
    ([*AGES[:-1], "old"], "Sample 23.png has 'old'"), ([*AGES[:-1], "nan"], "has 'nan'"),
    ([*AGES[:-1], "inf"], "has 'inf'"), ([*AGES[:-1], "1e400"], "has '1e400'"), ([*AGES[:-1], ""], "has no number")])
def test_bad_targets_are_named(tmp_path, cells, what):
    source = manifest(tmp_path, {"label": cells})
    for options in ({}, {"task": "regression"}, {"target": "label"}):
        with pytest.raises(DataError, match=what):
            open_source(source, cache=False, **options)


def test_arrays_with_a_hole_are_refused(tmp_path):
    for bad in (np.nan, np.inf):
        np.savez(tmp_path / "a.npz", image=np.zeros((24, 8, 8), np.uint8), label=np.array([*AGES[:-1], bad]))
        with pytest.raises(DataError, match="0000023 has"):
            open_source(tmp_path / "a.npz", cache=False)


def test_fractions_are_no_classes(tmp_path):
    np.savez(tmp_path / "a.npz", image=np.zeros((4, 8, 8), np.uint8), label=np.array([0.5, 1, 0.5, 1]))
    with pytest.raises(DataError, match="0.5 is no class.*--task regression"):
        open_source(tmp_path / "a.npz", cache=False)
    np.savez(tmp_path / "b.npz", image=np.zeros((4, 8, 8), np.uint8), label=np.array([3.0, 1, 3, 1]))
    assert open_source(tmp_path / "b.npz", cache=False).class_names == ["1", "3"]


def test_names_of_classes_are_no_numbers(tmp_path):
    source = manifest(tmp_path, {"label": ["cat", "dog"] * 3})
    with pytest.raises(DataError, match="has 'cat' where a number"):
        open_source(source, cache=False, task="regression")
    assert open_source("digits:test", task="regression").targets.max() == 9  # whose names are numbers


@pytest.mark.parametrize(("options", "what"), [({"task": "regresion"}, "Did you mean 'regression'"),
                                               ({"task": "classes", "target": "a"}, "not classes"),
                                               ({"target": " "}, "no name")])
def test_wrong_wishes_are_refused(options, what):
    with pytest.raises(UsageError, match=what):
        open_source("digits", **options)


def test_targets_follow_their_samples(tmp_path):
    data = open_source(manifest(tmp_path, {"label": AGES}), cache=False)
    part = data.subset([3, 1])
    assert part.targets.tolist() == [AGES[3], AGES[1]]
    batch = part.batch([1])
    assert "label" not in batch and batch["target"].tolist() == pytest.approx([AGES[1]])
    assert in_deviations(data, (20.0, 1.7)).targets[:3] == pytest.approx([0, 1, 2])
    assert "numbers to be predicted" in why_unlabelled(data)


def test_equal_targets_are_nothing_to_predict(tmp_path):
    data = open_source(manifest(tmp_path, {"label": [7.5] * 5}), cache=False, task="regression")
    with pytest.raises(DataError, match="target 7.5: there is nothing to predict"):
        need_spread(data, "--test")
    need_spread(open_source("digits:test", task="regression"), "--test")
