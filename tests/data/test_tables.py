from __future__ import annotations

import io
import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from osteon.core.errors import DataError
from osteon.data import open_source
from osteon.data.source import list_source
from osteon.data.tables import read_rows


def values(data) -> list[int]:
    return data.images[:, 0, 0, 0].tolist()


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def manifest(folder: Path, text: str, name: str = "list.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_text(text, encoding=encoding)
    return path


@pytest.fixture
def two(save, tmp_path) -> Path:
    save("pictures/a.png", 1)
    save("pictures/b.png", 2)
    return tmp_path


@pytest.mark.parametrize("column", ["path", "file", "image", "Path"])
def test_csv_paths_are_relative_to_the_manifest(two, column):
    path = manifest(two, f"{column},label,group,split\npictures/b.png,dog,g1,test\npictures/a.png,cat,g2,train\n",
                    encoding="utf-8-sig")
    data = open_source(path)
    assert data.ids == ["pictures/b.png", "pictures/a.png"] and values(data) == [2, 1]
    assert data.class_names == ["cat", "dog"] and data.labels.tolist() == [1, 0]
    assert data.groups == ["g1", "g2"] and data.split == ["test", "train"]
    assert values(open_source(f"{path}:train")) == [1]
    with pytest.raises(DataError, match="test, train.*'train'"):
        open_source(f"{path}:trian")


@pytest.mark.parametrize(("name", "separator"), [("l.tsv", "\t"), ("l.csv", ";")])
def test_other_separators(two, name, separator):
    path = manifest(two, f"path{separator}label\npictures/a.png{separator}cat\npictures/b.png{separator}dog\n", name)
    assert open_source(path).labels.tolist() == [0, 1]


def test_number_labels_are_sorted_by_value(two):
    path = manifest(two, "path,label\npictures/a.png,10\npictures/b.png,9\n")
    data = open_source(path)
    assert data.class_names == ["9", "10"] and data.labels.tolist() == [1, 0]


@pytest.mark.parametrize(("column", "a", "b"), [("label", "cat|dog", "dog"), ("labels", "dog;cat", "dog"),
                                                ("label", "dog; cat", " dog ")])
def test_several_labels(two, column, a, b):
    data = open_source(manifest(two, f"path,{column}\npictures/a.png,{a}\npictures/b.png,{b}\n"))
    assert data.labels.dtype == np.uint8 and data.labels.tolist() == [[1, 1], [0, 1]]
    assert data.spec.multi_label and data.spec.num_classes == 2
    none = open_source(manifest(two, f"path,labels\npictures/a.png,{a}\npictures/b.png,\n"))
    assert none.labels.tolist() == [[1, 1], [0, 0]]


@pytest.mark.parametrize(("text", "words"), [
    ("pth,label\nx,1\n", "pth, label.*Did you mean 'pth'"),
    ("path,label\npictures/a.png,cat\npictures/b.png\n", "Row 3 has 1 cells"),
    ("path,label\npictures/a.png,cat\n,dog\n", "Row 3 has no path"),
    ("path,label\npictures/a.png,cat\npictures/b.png,\n", "1 of 2 images have no label.*pictures/b.png"),
    ("path\n", "no rows"), ("", "empty"), ('path\n"pictures', "cannot be read")])
def test_manifest_errors_name_the_row(two, text, words):
    with pytest.raises(DataError, match=words):
        open_source(manifest(two, text))


def test_a_manifest_in_another_encoding(two):
    (two / "list.csv").write_bytes("path,label\na.png,Bär\n".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        open_source(two / "list.csv")


def test_missing_files_are_skipped_with_the_reason(two):
    path = manifest(two, "path\npictures/a.png\npictures/none.png\npictures/a.png\n")
    data = open_source(path, max_skipped=0.5)
    assert data.ids == ["pictures/a.png", "pictures/a.png#2"]
    assert [(item.id, item.reason) for item in data.skipped] == [("pictures/none.png", "file not found")]


def struct(values: list[bytes | None], paths: list[str | None]) -> pa.Array:
    return pa.array([{"bytes": v, "path": p} for v, p in zip(values, paths, strict=True)],
                    pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def hub_file(path: Path, numbers: list[int], labels: list[int] | None, metadata: dict[bytes, bytes] | None = None,
             group_size: int = 2) -> Path:
    columns = {"image": struct([png(v) for v in numbers], [f"{path.stem}-{v}.png" for v in numbers])}
    if labels is not None:
        columns["label"] = pa.array(labels)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path, row_group_size=group_size)
    return path


HUB = {b"huggingface": json.dumps({"info": {"features": {"label": {"names": ["cat", "cow", "dog"]}}}}).encode()}


@pytest.mark.parametrize("metadata", [{b"class_names": b'["cat", "cow", "dog"]'}, HUB])
def test_hub_layout(tmp_path, metadata):
    data = open_source(hub_file(tmp_path / "x.parquet", [5, 6, 7, 8, 9], [2, 0, 0, 2, 2], metadata))
    assert values(data) == [5, 6, 7, 8, 9] and data.ids[0] == "x-5.png"
    assert data.class_names == ["cat", "cow", "dog"] and data.labels.tolist() == [2, 0, 0, 2, 2]


def test_hub_folder_with_shards_and_splits(tmp_path):
    hub_file(tmp_path / "data" / "train-00000-of-00002.parquet", [1, 2, 3], [0, 1, 2], HUB)
    hub_file(tmp_path / "data" / "train-00001-of-00002.parquet", [4], [1], HUB)
    hub_file(tmp_path / "data" / "test-00000-of-00001.parquet", [7], [2], HUB)
    everything = open_source(tmp_path)
    assert values(everything) == [7, 1, 2, 3, 4] and everything.split == ["test"] + ["train"] * 4
    train = open_source(f"{tmp_path}:train")
    assert values(train) == [1, 2, 3, 4] and train.labels.tolist() == [0, 1, 2, 1]
    with pytest.raises(DataError, match="no split 'valid'"):
        open_source(f"{tmp_path}:valid")


def test_withheld_labels_are_no_labels(tmp_path):
    assert open_source(hub_file(tmp_path / "x.parquet", [1, 2], [-1, -1], HUB)).labels is None


def test_label_without_a_name(tmp_path):
    with pytest.raises(DataError, match="Label 3 has no name"):
        open_source(hub_file(tmp_path / "x.parquet", [1, 2], [0, 3], HUB))


def test_parquet_with_paths_bytes_and_lists(two):
    table = pa.table({"path": ["pictures/b.png", "pictures/a.png"], "labels": [["x"], ["x", "y"]], "group": [1, 2]})
    pq.write_table(table, two / "m.parquet")
    data = open_source(two / "m.parquet")
    assert values(data) == [2, 1] and data.labels.tolist() == [[1, 0], [1, 1]] and data.groups == ["1", "2"]
    pq.write_table(pa.table({"image": [png(4), None], "label": ["b", "a"]}), two / "b.parquet")
    data = open_source(two / "b.parquet", max_skipped=0.5)
    assert values(data) == [4] and data.ids == ["b.parquet:0"] and "empty" in data.skipped[0].reason
    path_only = pa.table({"image": struct([None], ["pictures/a.png"])})
    pq.write_table(path_only, two / "p.parquet")
    assert values(open_source(two / "p.parquet")) == [1]


def test_parquet_that_is_none(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match="cannot be read"):
        open_source(tmp_path / "x.parquet")
    pq.write_table(pa.table({"price": [1.0]}), tmp_path / "y.parquet")
    with pytest.raises(DataError, match="no column of images; it has: price"):
        open_source(tmp_path / "y.parquet")


ROOT = Path(os.environ.get("OSTEON_DATA", Path(__file__).parents[2] / "../shared/data"))


@pytest.mark.skipif(not (ROOT / "cifar10").is_dir(), reason="CIFAR-10 is not there (set OSTEON_DATA)")
def test_cifar10():
    data = open_source(f"{ROOT}/cifar10:test", limit=500)
    assert data.images.shape == (500, 3, 32, 32) and data.class_names[0] == "airplane"
    assert all(f"/{data.class_names[label]}/" in name for label, name in zip(data.labels, data.ids, strict=True))
    np.testing.assert_allclose(data.spec.mean, (0.491, 0.482, 0.447), atol=0.02)


def test_a_long_manifest_takes_little_memory(two):
    """Under 300 bytes a row at the most, of which the id takes half; rows and paths as objects took 730."""
    count = 20_000
    path = manifest(two, "path,label,group\n" + "".join(f"pictures/{i:05d}.png,{i % 9},g{i // 50}\n"
                                                        for i in range(count)))
    list_source(str(path))
    tracemalloc.start()
    listing = list_source(str(path))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 300 * count
    assert listing.payload(7) == two / "pictures/00007.png" and listing.labels[10] is listing.labels[1]


def test_rows_are_read_one_by_one(two):
    rows = read_rows(manifest(two, "path\n\na.png\n\"b\nc.png\"\nd.png,\"\n"), "x")
    assert [next(rows) for _ in range(3)] == [(1, ["path"]), (3, ["a.png"]), (5, ["b\nc.png"])]
    with pytest.raises(DataError, match="cannot be read"):
        next(rows)


def test_a_changed_file_behind_a_parquet_manifest_is_noticed(two):
    pq.write_table(pa.table({"path": ["pictures/a.png", "pictures/b.png"]}), two / "t.parquet")
    assert values(open_source(two / "t.parquet")) == [1, 2]
    (two / "pictures/a.png").write_bytes(png(9))
    os.utime(two / "pictures/a.png", ns=(1, 1))
    assert values(open_source(two / "t.parquet")) == [9, 2]
