"""Tables as sources: roles, kinds, messages, and that a model's own statistics are used again."""

from __future__ import annotations

import datetime
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from osteon.core.errors import DataError, UsageError
from osteon.data import find_duplicates, open_source
from osteon.data import source as sources
from osteon.data import table as tb
from osteon.modalities.table import columns_of


def write(folder: Path, text: str, name: str = "t.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_text(text, encoding=encoding)
    return path


def numbers(rows: int = 12, header: str = "a,b,label") -> str:
    """Rows ``i + 0.5, u/v, x/y``."""
    return header + "\n" + "".join(f"{i}.5,{'uv'[i % 2]},{'xy'[i % 3 == 0]}\n" for i in range(rows))


@pytest.fixture
def read(monkeypatch):
    """Read a table as it is asked for, the options reaching the listing too."""
    listed = sources.list_source

    def one(path, like=None, **options: Any):
        name, _, split = str(path).partition(".csv:")

        def list_source(source, **_):
            if not Path(source).suffix:
                return listed(source, modality="table")
            found = tb.list_path(Path(name + ".csv" if split else name), source, asked=True, options=options, like=like)
            return found.only(split) if split else found

        monkeypatch.setattr(sources, "list_source", list_source)
        return open_source(path, modality="table", like=like, cache=False, **options)

    return one


def traits(data) -> dict[str, Any]:
    return {c.name: c for c in columns_of(data.spec.traits)}


def test_a_table_by_hand(read, tmp_path):
    path = write(tmp_path, "id,size,colour,label\np1,1.5,red,yes\np2,,blue,no\np3,4.5,red,yes\n")
    data = read(path)
    assert data.ids == ["p1", "p2", "p3"] and data.class_names == ["no", "yes"] and data.labels.tolist() == [1, 0, 1]
    assert (data.spec.modality, data.spec.channels, data.spec.extent, data.spec.scale) == ("table", 2, (2,), 1.0)
    assert data.spec.mean == (0.0, 0.0) and data.spec.std == (1.0, 1.0)
    # size: 1.5 and 4.5 have mean 3 and deviation 1.5, so -1 and 1; the median is the lower one
    np.testing.assert_allclose(data.images, [[[-1, 0], [0, 0]], [[-1, 1], [1, 0]], [[1, 0], [0, 0]]])
    assert any("16.7% of the cells, in size" in n for n in data.notes)
    assert any("2 levels" not in n and "1 binary" in n and "colour" in n for n in data.notes)


@pytest.mark.parametrize(("name", "separator"), [("t.tsv", "\t"), ("t.csv", ";"), ("t.csv", "|"), ("t.csv", ",")])
def test_separators_quotes_and_a_byte_order_mark(read, tmp_path, name, separator):
    text = '"a,;|x",b\n1.5,"p, q"\n2.5,"say ""r"""\n\n'.replace(",b", f"{separator}b")
    text = text.replace('1.5,', f"1.5{separator}").replace('2.5,', f"2.5{separator}")
    data = read(write(tmp_path, text, name, "utf-8-sig"))
    assert [c for c in traits(data)] == ["a,;|x", "b"] and traits(data)["b"].levels == ("p, q", 'say "r"')
    assert data.ids == ["row-2", "row-3"] and data.labels is None


@pytest.mark.parametrize(("text", "words"), [
    ("", "empty"), ("a,b\n", "header and no rows"), ("a,b\n1,2\n3\n", "Row 3 has 1 cells, the header has 2"),
    ("a,b\n1,2,3\n", "Row 2 has 3 cells"), ("a,b,a\n1,2,3\n", "Two columns are called 'a'"),
    ("1.5,2.5\n1,2\n", "first row holds numbers"), ('a,b\n"1,2\n', "cannot be read"),
    ("a,b\n1,2\n1,2\n", r"No column holds anything.*'a' is left out \(constant\)"),
    ("a,label\n1.5,x\n2.5,\n", "Row 3 has no 'label'")])
def test_errors_name_the_row_and_the_column(read, tmp_path, text, words):
    with pytest.raises(DataError, match=words):
        read(write(tmp_path, text))


def test_mixed_cells_are_named_and_can_be_settled(read, tmp_path):
    path = write(tmp_path, "a,b\n" + "".join(f"{i},{'uv'[i % 2]}\n" for i in range(20)) + "abc,u\n")
    with pytest.raises(DataError, match="Row 22, column 'a': 'abc' is no number.*missing=abc.*a: categorical"):
        read(path)
    assert read(path, missing="abc").images[20, 1, 0] == 1
    column = traits(read(path, columns={"a": "categorical"}))["a"]
    assert column.kind == "categorical" and len(column.levels) == 21
    with pytest.raises(DataError, match="Row 2, column 'b': 'u' is no number"):
        read(path, missing="abc", columns="b:numeric")


@pytest.mark.parametrize("cell", ["1" + "0" * 400, "1e200", "inf"])
def test_numbers_beyond_reason(read, tmp_path, cell):
    path = write(tmp_path, "a,b\n" + "".join(f"{i},{'uv'[i % 2]}\n" for i in range(20)) + f"{cell},u\n")
    with pytest.raises(DataError, match=f"Row 22, column 'a': '{cell}' is no number that can be used"):
        read(path)


def test_huge_whole_numbers_are_numbers(read, tmp_path):
    data = read(write(tmp_path, "a,b\n" + "".join(f"{10**30 + i * 10**28},{'uv'[i % 2]}\n" for i in range(20))))
    assert traits(data)["a"].kind == "numeric" and abs(data.images[:, 0, 0].mean()) < 1e-6
    np.testing.assert_allclose(data.images[:, 0, 0].std(), 1, rtol=1e-5)


def test_encodings_and_damaged_files(read, tmp_path):
    (tmp_path / "latin.csv").write_bytes("a,b\n1.5,Bär\n".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        read(tmp_path / "latin.csv")
    (tmp_path / "p.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "p.parquet")
    with pytest.raises(DataError, match="one csv, tsv or parquet file"):
        read(tmp_path)


def test_columns_left_out_are_named(read, tmp_path):
    path = write(tmp_path, ",name,x,k,e,gone,label\n" + "".join(f"{i},n{i},{i}.5,7,,{i}.25,{'pq'[i % 2]}\n"
                                                            for i in range(25)))
    data = read(path, drop="gone")
    assert list(traits(data)) == ["x"]
    note, = (n for n in data.notes if n.startswith("left out"))
    for words in ("'column 1' (it has no name", "'name' (every cell is different)", "'k' (constant)", "'e' (empty)",
                  "'gone' (as asked)"):
        assert words in note
    assert list(traits(read(path, columns={"name": "categorical"}))) == ["name", "x", "gone"]
    for option in ("drop", "label", "columns"):
        with pytest.raises(UsageError, match="no column 'gonne'.*Did you mean 'gone'"):
            read(path, **{option: {"gonne": "numeric"} if option == "columns" else "gonne"})
    with pytest.raises(UsageError, match="'number' is no kind.*Write columns"):
        read(path, columns={"x": "number"})


def test_roles_as_asked_and_by_name(read, tmp_path):
    text = "Y,who,part,Group,x\n" + "".join(f"{'ab'[i % 2]},w{i % 3},{'trva'[i % 4]},g{i % 5},{i}.5\n"
                                            for i in range(12))
    path = write(tmp_path, text)
    data = read(path)
    assert data.class_names == ["a", "b"] and data.groups[:2] == ["g0", "g1"] and data.split is None
    assert list(traits(data)) == ["who", "part", "x"]
    data = read(path, label="who", group="none", split="part")
    assert data.class_names == ["w0", "w1", "w2"] and data.groups is None and data.split[:2] == ["t", "r"]
    assert list(traits(data)) == ["Y", "Group", "x"]
    assert read(path, label="none").labels is None
    part = read(f"{path}:t", split="part")
    assert len(part) == 3 and traits(part)["x"].mean == pytest.approx((0.5 + 4.5 + 8.5) / 3)  # of its own rows alone


def test_what_a_model_was_trained_on_is_read_the_same_way(read, tmp_path):
    rows = [f"{i}.5,{'uvw'[i % 3]},{'xy'[i % 2]}" for i in range(12)]
    train = read(write(tmp_path, "a,b,kind\n" + "\n".join(rows) + "\n"), label="kind")
    other = write(tmp_path, "b,extra,a,kind\nw,1,3.5,y\nnew,2,,x\n", "o.csv")
    data = read(other, like=train.spec)
    want = (3.5 - 6) / np.sqrt(np.mean((np.arange(12) - 5.5) ** 2))
    np.testing.assert_allclose(data.images, [[[want, 2], [0, 0]], [[traits(train)["a"].median, 3], [1, 0]]], rtol=1e-6)
    assert data.class_names == ["x", "y"] and data.spec.traits == train.spec.traits
    assert any("'extra' (unknown in training)" in n for n in data.notes)
    unlabelled = read(write(tmp_path, "a,b\n3.5,w\n", "u.csv"), like=train.spec)
    assert unlabelled.labels is None
    np.testing.assert_array_equal(unlabelled.images[0], data.images[0])
    with pytest.raises(DataError, match="no column 'b', which the model was trained on"):
        read(write(tmp_path, "a,c\n3.5,w\n", "v.csv"), like=train.spec)
    with pytest.raises(DataError, match="'a' was an input when the model was trained.*label=a"):
        read(other, like=train.spec, label="a")


def test_rows_that_do_not_fit_a_model_are_skipped_with_the_reason(read, tmp_path):
    train = read(write(tmp_path, numbers()))
    path = write(tmp_path, numbers(200) + "oops,u,x\n", "o.csv")
    data = read(path, like=train.spec)
    assert len(data) == 200 and [(s.id, s.reason) for s in data.skipped] == [
        ("row-202", "row 202, column 'a': 'oops' is no number that can be used")]


def test_numbers_as_labels(read, tmp_path):
    few = read(write(tmp_path, "x,y\n" + "".join(f"{i}.5,{i % 12}.0\n" for i in range(24))))
    assert few.class_names == [str(i) for i in range(12)] and few.labels[11] == 11
    path = write(tmp_path, "x,y\n" + "".join(f"{i % 7}.5,{i}\n" for i in range(40)), "many.csv")
    with pytest.raises(DataError, match="'y' is whole numbers with 40 levels: classes, or a number.*bins=4"):
        read(path)
    assert len(read(path, columns={"y": "categorical"}).class_names) == 40
    assert read(path, label="none").labels is None
    data = read(path, bins=4)
    assert data.class_names == ["up to 9.75", "9.75 to 19.5", "19.5 to 29.25", "above 29.25"]
    assert np.bincount(data.labels).tolist() == [10, 10, 10, 10]
    assert data.labels[[0, 9, 10, 39]].tolist() == [0, 0, 1, 3]
    other = read(write(tmp_path, "x,y\n1.5,100\n2.5,19.5\n", "o.csv"), like=data.spec)
    assert other.class_names == data.class_names and other.labels.tolist() == [3, 1]
    with pytest.raises(UsageError, match="1 bins tell nothing apart"):
        read(path, bins=1)
    with pytest.raises(UsageError, match="'y' is no number"):
        read(write(tmp_path, numbers(), "c.csv"), bins=3)


def test_parquet_holds_what_csv_holds(read, tmp_path):
    day = datetime.date(2024, 1, 1)
    table = pa.table({"n": [i / 2 for i in range(11)] + [None], "b": [True, False] * 6, "s": ["p", None, "q"] * 4,
                      "d": [day + datetime.timedelta(i) for i in range(12)], "nested": [[1]] * 12,
                      "label": list(range(6)) * 2})
    pq.write_table(table, tmp_path / "t.parquet")
    data = read(tmp_path / "t.parquet")
    kinds = {name: c.kind for name, c in traits(data).items()}
    assert kinds == {"n": "numeric", "b": "binary", "s": "binary", "d": "date"}
    assert traits(data)["d"].mean == pytest.approx((day - datetime.date(1970, 1, 1)).days + 5.5)
    assert data.images[11, 1].tolist() == [1, 0, 0, 0] and data.images[1, 1].tolist() == [0, 0, 1, 0]
    assert data.spec.num_classes == 6
    assert any("'nested' (it holds list" in n for n in data.notes)
    assert data.ids[0] == "row-1"


@pytest.mark.parametrize(("text", "is_table"), [
    (numbers(), True), (numbers(9), False), (numbers(header="path,b,label"), False),
    (numbers(header="text,b,a"), False),
    ("a,label\n" + "1.5,x\n2.5,y\n" * 6, False),  # a single column beside the label
    ("d,a,b\n" + "".join(f"2024-01-{i:02d},{i}.5,{i}.25\n" for i in range(1, 20)), False),  # a series
    ("d,a,b\n" + "".join(f"2024-01-{20 - i:02d},{i}.5,{i}.25\n" for i in range(1, 20)), True),
    ("a,f\n" + "".join(f"{i}.5,pictures/{i}.png\n" for i in range(20)), False),
    ("a,words\n" + "".join(f"{i}.5,this is a text of {i} words or so\n" for i in range(20)), False),
    ("a,b\n" + "u,v\n" * 20, False), ("a,b\n1\n", False), ("pth,label\nx,1\n", False), ("", False)])
def test_what_is_a_table_without_being_asked(tmp_path, text, is_table):
    path = write(tmp_path, text)
    found = tb.list_path(path, str(path), asked=False)
    assert (found is not None) == is_table and (found is None or found.modality == "table")


def test_what_is_never_a_table_without_being_asked(tmp_path):
    assert tb.list_path(tmp_path, "x", asked=False) is None
    for name in ("a.npy", "a.parquet", "a.png"):
        (tmp_path / name).write_bytes(b"")
        assert tb.list_path(tmp_path / name, "x", asked=False) is None


def test_the_list_of_modalities_finds_it(tmp_path):
    data = open_source(write(tmp_path, numbers()), cache=False)
    assert data.modality == "table" and data.class_names == ["x", "y"]


def test_the_cache_gives_what_reading_gives(tmp_path):
    path = write(tmp_path, numbers())
    first, second = open_source(path, cache=tmp_path / "c"), open_source(path, cache=tmp_path / "c")
    assert first.fingerprint == second.fingerprint and np.array_equal(first.images, second.images)
    assert first.spec == second.spec


@functools.cache
def pair(name: str):
    train = open_source(f"{name}:train", cache=False)
    return train, open_source(f"{name}:test", cache=False, like=train.spec)


@pytest.mark.parametrize(("name", "columns", "sizes", "classes"), [
    ("mixed", 14, (1400, 600), 4), ("iris", 4, (105, 45), 3), ("wine", 13, (125, 53), 3),
    ("breast_cancer", 30, (398, 171), 2)])
def test_embedded_sources(name, columns, sizes, classes):
    train, test = pair(name)
    assert train.images.shape[1:] == (2, columns) and (len(train), len(test)) == sizes
    assert train.spec.num_classes == classes and train.class_names == test.class_names
    assert not set(train.ids) & set(test.ids) and not len(find_duplicates(train, test))
    assert train.spec.traits == test.spec.traits
    counts = np.bincount(test.labels) / np.bincount(train.labels)
    assert name == "mixed" or (abs(counts - 0.43) < 0.06).all()  # stratified


def test_scikit_learns_values_come_back():
    from sklearn.datasets import load_iris

    train, _ = pair("iris")
    raw = load_iris().data[[int(i.split("-")[1]) for i in train.ids]]
    np.testing.assert_allclose(train.images[:, 0], (raw - raw.mean(0)) / raw.std(0), atol=1e-6)


def test_the_generated_source_has_every_kind_and_missing_cells():
    train, _ = pair("mixed")
    kinds = [c.kind for c in columns_of(train.spec.traits)]
    assert {k: kinds.count(k) for k in kinds} == {"numeric": 9, "categorical": 3, "binary": 1, "date": 1}
    shares = train.images[:, 1].mean(0)
    assert ((shares > 0.07) & (shares < 0.13)).sum() == 4 and (shares == 0).sum() == 10
    assert pair("mixed")[0].fingerprint == open_source("mixed:train", cache=False).fingerprint
