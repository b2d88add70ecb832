from __future__ import annotations

import sys

import numpy as np
import pytest

from osteon.core.errors import DataError, MissingExtra
from osteon.data import open_source

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(5, 8, 8), (5, 8, 8, 3), (5, 8, 8, 5), (5, 3, 8, 8)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64"])
def test_arrays_are_kept_value_by_value(tmp_path, shape, dtype):
    images = (RNG.random(shape) * 250).astype(dtype)
    np.save(tmp_path / "x.npy", images)
    data = open_source(tmp_path / "x.npy")
    first = images[:, None] if images.ndim == 3 else images if shape[1] == 3 else images.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(data.images, first.astype("float32" if dtype == "float64" else dtype))
    assert data.spec.scale == {"uint8": 255, "uint16": 65535}.get(dtype, 1)
    assert data.labels is None and len(set(data.ids)) == 5


def test_npz_with_labels_names_and_groups(tmp_path):
    images = np.zeros((3, 8, 8), np.uint8)
    np.savez(tmp_path / "x.npz", image=images, label=[1, 0, 1], class_names=["cat", "dog"], group=["a", "b", "a"])
    data = open_source(tmp_path / "x.npz")
    assert data.labels.tolist() == [1, 0, 1] and data.class_names == ["cat", "dog"] and data.groups == ["a", "b", "a"]
    np.savez_compressed(tmp_path / "y.npz", image=images, label=np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0]]))
    data = open_source(tmp_path / "y.npz")
    assert data.labels.tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0]] and data.spec.multi_label
    np.savez(tmp_path / "z.npz", image=images, label=["b", "a", "b"])
    assert open_source(tmp_path / "z.npz").labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(("arrays", "words"), [
    ({"pictures": np.zeros((2, 8, 8), np.uint8)}, "no array 'image'; it has: pictures"),
    ({"image": np.zeros((2, 8, 8), np.uint8), "label": [1]}, "2 images but 1"),
    ({"image": np.zeros((2, 8, 8), np.uint8), "label": [0.5, 1.5]}, "0.5 is no class"),
    ({"image": np.zeros((2, 8, 8), np.int64)}, "int64"), ({"image": np.zeros((8, 8), np.uint8)}, "shape"),
    ({"image": np.zeros((0, 8, 8), np.uint8)}, "no image")])
def test_refusals(tmp_path, arrays, words):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=words):
        open_source(tmp_path / "x.npz")


def test_pickles_are_never_loaded(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "y.npz", image=np.zeros((1, 8, 8), np.uint8), label=np.array([{}], dtype=object))
    for name in ("x.npy", "y.npz"):
        with pytest.raises(DataError, match="never loaded"):
            open_source(tmp_path / name)


def test_damaged_archive(tmp_path):
    np.savez(tmp_path / "x.npz", image=RNG.integers(0, 255, (4, 8, 8), dtype=np.uint8))
    whole = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        open_source(tmp_path / "x.npz")


def test_not_finite_values_are_skipped(tmp_path):
    images = np.ones((4, 8, 8), np.float32)
    images[2, 3, 3] = np.nan
    np.save(tmp_path / "x.npy", images)
    data = open_source(tmp_path / "x.npy", max_skipped=0.3)
    assert len(data) == 3 and data.ids == ["0000000", "0000001", "0000003"]
    assert "NaN" in data.skipped[0].reason


def test_digits_are_a_fixed_stratified_split():
    from sklearn.datasets import load_digits

    whole, train, test = open_source("digits"), open_source("digits:train"), open_source("digits:test")
    assert (len(whole), len(train), len(test)) == (1797, 1258, 539)
    assert set(train.ids) | set(test.ids) == set(whole.ids) and not set(train.ids) & set(test.ids)
    raw = load_digits()
    assert whole.images.shape == (1797, 1, 8, 8) and whole.images.max() == 255
    np.testing.assert_array_equal(whole.images[:, 0], np.rint(raw.images * 255 / 16))
    np.testing.assert_array_equal(whole.labels, raw.target)
    np.testing.assert_allclose(np.bincount(test.labels), np.bincount(raw.target) * 0.3, atol=1)
    assert test.ids[:3] == open_source("digits:test").ids[:3]
    with pytest.raises(DataError, match="test, train"):
        open_source("digits:val")


def test_hub_needs_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"osteon\[datasets\]"):
        open_source("hf:mnist")


def test_hub_reads_a_local_folder(save, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    save("d/train/cat/1.png", 1)
    save("d/train/dog/2.png", 2)
    save("d/test/dog/3.png", 3)
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda name: load(name, cache_dir=str(tmp_path / "hub")))
    data = open_source(f"hf:{tmp_path}/d:train")
    assert data.images[:, 0, 0, 0].tolist() == [1, 2] and data.class_names == ["cat", "dog"]
    assert data.labels.tolist() == [0, 1] and data.ids == ["train:0", "train:1"]
    assert open_source(f"hf:{tmp_path}/d").images[:, 0, 0, 0].tolist() == [1, 2, 3]
    with pytest.raises(DataError, match="cannot load"):
        open_source(f"hf:{tmp_path}/none")


@pytest.mark.parametrize(("source", "asked"), [
    ("hf:owner/data@v1:train", {"revision": "v1"}), ("hf:owner/data@refs/pr/2", {"revision": "refs/pr/2"}),
    ("hf:owner/data", {})])
def test_hub_takes_a_revision_and_notes_the_commit(save, monkeypatch, source, asked):
    datasets = pytest.importorskip("datasets")
    data, commit = save("1.png", 9).read_bytes(), "0123456789" * 4
    table = datasets.Dataset.from_dict({"image": [{"bytes": data, "path": None}] * 2},
                                       features=datasets.Features({"image": datasets.Image()}))
    table.info.download_checksums = {f"hf://datasets/owner/data@{commit}/train.parquet": {"num_bytes": 9}}
    seen = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **options: (
        seen.append((name, options)), datasets.DatasetDict({"train": table}))[1])
    found = open_source(source, cache=False)
    assert seen == [("owner/data", asked)] and found.images[:, 0, 0, 0].tolist() == [9, 9]
    assert f"commit: {commit} of owner/data" in found.notes


def test_equal_axes_are_taken_for_channels_last(tmp_path):
    images = np.arange(64, dtype=np.uint8).reshape(1, 4, 4, 4)
    np.save(tmp_path / "x.npy", images)
    np.testing.assert_array_equal(open_source(tmp_path / "x.npy").images, images.transpose(0, 3, 1, 2))
