"""Sources of clouds: folders, manifests, arrays, what is chosen by rule, and the generated shapes."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest

from osteon.core.errors import DataError, UsageError
from osteon.data import find_duplicates, open_source
from osteon.data.points import SHAPES, _shape
from osteon.modalities.points import decode


def rows(seed: int, count: int = 100, wide: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, wide)).round(4)


def text(values: np.ndarray) -> str:
    return "\n".join(" ".join(f"{v:.4f}" for v in row) for row in values)


@pytest.fixture
def folder(tmp_path):
    for label in ("chair", "table"):
        (tmp_path / label).mkdir()
        for i in range(4):
            (tmp_path / label / f"{i}.xyz").write_text(text(rows(i + 10 * (label == "table"), 90 + 10 * i)))
    return tmp_path


def test_a_folder_of_clouds_with_classes(folder):
    data = open_source(folder, cache=False)
    assert data.modality == "points" and data.class_names == ["chair", "table"] and len(data) == 8
    assert data.images.shape == (8, 3, 64) and data.images.dtype == np.float32 and data.spec.extent == (64,)
    assert data.spec.traits == {"points": 64, "features": [], "normals": False, "draw": "random", "mesh": "faces",
                                "fit": "sphere", "up": "z"}
    np.testing.assert_allclose(data.spec.mean, 0, atol=1e-6)
    np.testing.assert_allclose(data.spec.std, 1, rtol=1e-6)
    np.testing.assert_array_equal(data.images[0], decode(rows(0, 90), 64, ()))
    assert set(data.batch([0, 1])) == {"points", "index", "label"}
    notes = " ".join(data.notes)
    for rule in ("64 a cloud (rule: the power of two below the median", "90 to 120", "at distance 1", "evenly by area"):
        assert rule in notes, rule


def test_options(folder):
    data = open_source(folder, cache=False, points=96, fit="keep", draw="farthest", up="y")
    assert data.images.shape == (8, 3, 96) and data.spec.traits["up"] == "y"
    assert np.isin(data.images[0, 0].round(4), rows(0, 90)[:, 0].astype(np.float32).round(4)).all()
    assert data.spec.std[0] == data.spec.std[1] == data.spec.std[2] > 2
    for wrong, name in (({"points": 4}, "points"), ({"points": -1}, "points"), ({"draw": "first"}, "draw"),
                        ({"fit": "cube"}, "fit"), ({"mesh": "edges"}, "mesh"), ({"up": "w"}, "up"),
                        ({"features": 2}, "features"), ({"size": 32}, "size"), ({"point": 8}, "point")):
        with pytest.raises(UsageError, match=name):
            open_source(folder, cache=False, **wrong)


def test_other_clouds_are_read_like_those_of_the_model(folder, tmp_path_factory):
    spec = open_source(folder, cache=False, points=32, fit="keep").spec
    other = tmp_path_factory.mktemp("other")
    for i in range(3):
        (other / f"{i}.xyz").write_text(text(rows(i, 500, 4)))
    data = open_source(other, cache=False, like=spec)
    assert data.spec.traits == spec.traits and data.images.shape == (3, 3, 32)
    np.testing.assert_array_equal(data.images[1], decode(rows(1, 500, 4)[:, :3], 32, (), fit="keep"))


def test_further_values_are_those_all_clouds_have(tmp_path):
    normals = rows(5)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    for i in range(3):
        extra = rows(i, wide=1) if i else np.empty((100, 0))
        (tmp_path / f"{i}.xyz").write_text(text(np.concatenate([rows(i), normals.round(4), extra], 1)))
    data = open_source(tmp_path, cache=False)
    assert data.images.shape == (3, 6, 64) and data.spec.traits["normals"]
    assert "left out: column 7" in " ".join(data.notes)
    bare = open_source(tmp_path, cache=False, features=0)
    assert bare.images.shape == (3, 3, 64) and not bare.spec.traits["normals"]
    (tmp_path / "0.xyz").write_text(text(rows(0)))
    with pytest.raises(DataError, match="no 'column 4'.*others have"):
        open_source(tmp_path, cache=False, like=data.spec)
    assert open_source(tmp_path, cache=False, like=data.spec, max_skipped=0.5).ids == ["1.xyz", "2.xyz"]


def test_meshes_and_other_clouds_together(tmp_path):
    mesh = "OFF\n4 2 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1 2\n3 0 1 3\n"
    (tmp_path / "a.off").write_text(mesh)
    (tmp_path / "b.off").write_text(mesh.replace("0 0 1\n", "0 0 2\n"))
    data = open_source(tmp_path, cache=False)
    assert data.images.shape == (2, 3, 1024) and "2 are sampled on their faces" in " ".join(data.notes)
    corners = open_source(tmp_path, cache=False, mesh="corners")
    assert corners.images.shape == (2, 3, 32)  # four corners, repeated to the least number
    assert len(np.unique(corners.images[0], axis=1).T) == 4
    assert len(open_source(tmp_path / "a.off", cache=False)) == 1


def test_manifest_and_split_folders(folder):
    (folder / "metadata.csv").write_text("path,label,group\nchair/0.xyz,yes,a\ntable/1.xyz,no,b\n")
    data = open_source(folder, cache=False)
    assert data.class_names == ["no", "yes"] and data.groups == ["a", "b"] and data.modality == "points"
    assert open_source(folder / "metadata.csv", cache=False).ids == data.ids == ["chair/0.xyz", "table/1.xyz"]


def test_endings_others_use_too_count_when_asked(tmp_path):
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", rows(i))
        (tmp_path / f"{i}.txt").write_text(text(rows(10 + i)))
    data = open_source(tmp_path, cache=False, modality="points")
    assert len(data) == 6 and data.modality == "points"
    (tmp_path / "m.csv").write_text("path\n0.npy\n")
    assert len(open_source(tmp_path / "m.csv", cache=False, modality="points")) == 1
    with pytest.raises(DataError, match="no cloud"):
        (tmp_path / "none").mkdir()
        open_source(tmp_path / "none", cache=False, modality="points")


def test_archives_of_clouds(tmp_path):
    clouds = np.stack([rows(i) for i in range(6)])
    np.savez(tmp_path / "a.npz", points=clouds, label=np.array([0, 1] * 3), class_names=np.array(["p", "q"]),
             split=np.array(["train"] * 4 + ["test"] * 2), group=np.arange(6))
    data = open_source(f"{tmp_path / 'a.npz'}:train", cache=False)
    assert data.modality == "points" and len(data) == 4 and data.class_names == ["p", "q"]
    np.testing.assert_array_equal(data.images[2], decode(clouds[2], 64, ()))
    np.save(tmp_path / "b.npy", clouds)
    assert len(open_source(tmp_path / "b.npy", cache=False, modality="points")) == 6


def test_archives_that_cannot_be_used_say_why(tmp_path):
    clouds = np.stack([rows(i) for i in range(3)])
    for name, arrays, words in (
            ("a", {"points": clouds, "label": np.array([0, 1])}, "3 clouds but 2 entries in 'label'"),
            ("b", {"points": clouds[..., :2]}, "N, P, 3"), ("c", {"points": clouds[:0]}, "is empty"),
            ("d", {"cloud": clouds}, "no array 'points'; it has: cloud"), ("e", {"points": clouds > 0}, "N, P, 3")):
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(DataError, match=words):
            open_source(tmp_path / f"{name}.npz", cache=False, modality="points")
    broken = clouds.copy()
    broken[1, 5] = np.nan
    np.savez(tmp_path / "f.npz", points=broken)
    data = open_source(tmp_path / "f.npz", cache=False, max_skipped=0.5)
    assert [(s.id, s.reason) for s in data.skipped] == [("0000001", "contains NaN or infinity")]
    np.savez(tmp_path / "g.npz", points=np.array([None, 1]))
    with pytest.raises(DataError, match="Python objects"):
        open_source(tmp_path / "g.npz", cache=False, modality="points")
    (tmp_path / "h.npz").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read"):
        open_source(tmp_path / "h.npz", cache=False, modality="points")


def test_an_array_that_claims_more_than_it_holds_is_refused_before_memory_is_taken(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 50, 3), np.float32))
    header = (tmp_path / "a.npy").read_bytes()
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("points.npy", header.replace(b"(2, 50, 3), }          ", b"(99999, 99999, 3), }   "))
    with pytest.raises(DataError, match="claims 119,997,600,012 bytes and holds"):
        open_source(tmp_path / "b.npz", cache=False, modality="points")


def test_damaged_files_are_skipped_with_reasons(folder):
    (folder / "chair" / "broken.ply").write_bytes(b"ply nothing")
    (folder / "table" / "one.xyz").write_text("1 2 3\n1 2 3\n")
    with pytest.raises(DataError, match=r"1 of 10 clouds|2 of 10 clouds"):
        open_source(folder, cache=False)
    data = open_source(folder, cache=False, max_skipped=0.3)
    assert {s.id: s.reason for s in data.skipped} == {
        "chair/broken.ply": "has no PLY header", "table/one.xyz": "has all its points at one place"}


def test_cache_gives_the_same_and_copies_are_found(folder, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    first, again = (open_source(folder, cache=cache) for _ in range(2))
    np.testing.assert_array_equal(first.images, again.images)
    assert first.spec == again.spec and first.fingerprint == again.fingerprint
    found = find_duplicates(first.subset([0, 1, 2]), first.subset([2, 3]))
    assert found.exact == [("chair/2.xyz", "chair/2.xyz")]


def test_images_stay_images(folder):
    from PIL import Image

    for i in range(9):
        Image.fromarray(np.full((8, 8, 3), 20 * i, np.uint8)).save(folder / "chair" / f"{i}.png")
    assert open_source(folder, cache=False).modality == "image"
    assert len(open_source(folder, cache=False, modality="points")) == 8


def test_shapes_are_the_same_every_time_and_their_parts_are_apart():
    train, test = (open_source(f"shapes:{part}", cache=False, limit=80) for part in ("train", "test"))
    assert train.class_names == test.class_names == list(SHAPES) and train.images.shape == (80, 3, 256)
    assert not set(train.ids) & set(test.ids) and len(find_duplicates(train, test)) == 0
    np.testing.assert_array_equal(open_source("shapes:test", cache=False, limit=80).images, test.images)
    for kind in range(len(SHAPES)):
        one, other = _shape(kind, 1), _shape(kind, 2)
        assert one.shape == (256, 3) and np.isfinite(one).all() and not np.allclose(one, other)
        np.testing.assert_array_equal(_shape(kind, 1), one)
