"""Sources of volumes: folders, manifests, arrays, what is chosen by rule, and what is told of what cannot be used."""

from __future__ import annotations

import numpy as np
import pytest
from tests.modalities.volumes import write

from osteon.core.errors import DataError, UsageError
from osteon.data import find_duplicates, open_source
from osteon.modalities.volume import decode, fit_extent, scale_window


def scan(seed: int, shape=(12, 14, 10)) -> np.ndarray:
    return np.random.default_rng(seed).integers(-900, 900, shape).astype("i2")


def scaled(mm: float) -> np.ndarray:
    return np.diag([mm, mm, mm, 1.0])[:3]


@pytest.fixture
def folder(tmp_path):
    for label in ("brain", "knee"):
        for i in range(4):
            write(tmp_path / label / f"{i}.nii.gz", scan(i + 10 * (label == "knee")), scaled(2.0))
    return tmp_path


def test_a_folder_of_scans_is_volumes_with_classes(folder):
    (folder / "brain" / "notes.tar.gz").write_bytes(b"no scan")
    data = open_source(folder, cache=False)
    assert data.modality == "volume" and data.class_names == ["brain", "knee"] and len(data) == 8
    assert data.images.shape == (8, 1, 10, 14, 12) and data.images.dtype == np.uint16
    assert data.spec.traits == {"spacing": [2.0, 2.0, 2.0], "window": []} and data.spec.scale == 65535
    want = scale_window(decode(folder / "brain" / "0.nii.gz", (2.0, 2.0, 2.0)), None)
    np.testing.assert_array_equal(data.images[0], np.rint(want * 65535))
    assert set(data.batch([0, 1])) == {"volume", "index", "label"}
    text = " ".join(data.notes)
    for rule in ("2 x 2 x 2 mm up, front, right (rule: that of all)", "10 x 14 x 12 cells (rule:", "0.5 to 99.5",
                 "1 files that are not volumes by their ending (1 .tar.gz)", "turned to up"):
        assert rule in text, rule


def test_spacing_extent_and_window_as_asked(folder):
    data = open_source(folder, cache=False, spacing=4, extent=[8, 8, 4], window=[-175, 250])
    assert data.images.shape == (8, 1, 8, 8, 4)
    assert data.spec.traits == {"spacing": [4.0] * 3, "window": [-175.0, 250.0]}
    want = fit_extent(scale_window(decode(folder / "knee" / "1.nii.gz", [4.0] * 3), [-175.0, 250.0]), (8, 8, 4))
    np.testing.assert_array_equal(data.images[5], np.rint(want * 65535))
    same = open_source(folder, cache=False, spacing="4x4x4", extent="8,8,4", window="ct")
    np.testing.assert_array_equal(same.images, data.images)
    assert same.spec == data.spec
    for wrong, name in (({"spacing": -1}, "spacing"), ({"spacing": "fine"}, "spacing"), ({"extent": [8, 8]}, "extent"),
                        ({"extent": 0.5}, "extent"), ({"window": [5, 5]}, "window"), ({"window": "mri"}, "window"),
                        ({"size": 32}, "size"), ({"spacings": 1}, "spacings")):
        with pytest.raises(UsageError, match=name):
            open_source(folder, cache=False, **wrong)


def test_mixed_spacings_and_shapes_meet_at_the_median(tmp_path):
    for i, (mm, shape) in enumerate(((1.0, (8, 8, 8)), (2.0, (8, 8, 8)), (2.0, (12, 8, 4)))):
        write(tmp_path / f"{i}.nii", scan(i, shape), scaled(mm))
    data = open_source(tmp_path, cache=False)
    assert data.spec.traits["spacing"] == [2.0, 2.0, 2.0] and data.images.shape == (3, 1, 4, 8, 8)
    text = " ".join(data.notes)
    assert "(rule: the median)" in text and "67% are cut to their middle, 33% are surrounded" in text
    assert (data.images[0, 0, :, :2] == 0).all() and data.images[0, 0, :, 2:6, 2:6].any()  # 4 cells in the middle of 8


def test_large_scans_get_coarser_until_they_fit(tmp_path):
    write(tmp_path / "a.nii", scan(0, (96, 64, 40)), scaled(1.0))
    data = open_source(tmp_path, cache=False, max_skipped=1.0)
    assert data.spec.traits["spacing"] == [1.0, 1.0, 1.5] and data.images.shape == (1, 1, 40, 64, 64)
    assert "coarser where" in " ".join(data.notes)


def test_other_data_is_read_like_that_of_the_model(folder, tmp_path_factory):
    spec = open_source(folder, cache=False, spacing=4, extent=8, window="ct").spec
    other = tmp_path_factory.mktemp("other")
    write(other / "a.nii", scan(3, (40, 30, 20)), np.array([[0, 0.5, 0, 0], [1, 0, 0, 0], [0, 0, -3, 0]]))
    data = open_source(other, cache=False, like=spec)
    assert data.spec.traits == spec.traits and data.spec.extent == spec.extent == (8, 8, 8)
    assert data.spec.scale == spec.scale and "as in the data the model" in data.notes[0]
    colours = np.zeros((2, 3, 8, 8, 8), np.float32)
    np.savez(other / "c.npz", volume=colours)
    with pytest.raises(DataError, match="1 channels"):
        open_source(other / "c.npz", cache=False, like=spec)


def test_a_manifest_with_patients_as_groups(folder):
    (folder / "metadata.csv").write_text("path,label,group\nbrain/0.nii.gz,a,anna\nknee/1.nii.gz,b,ben\n")
    data = open_source(folder, cache=False)
    assert data.modality == "volume" and data.groups == ["anna", "ben"] and data.ids[0] == "brain/0.nii.gz"
    assert open_source(folder / "metadata.csv", cache=False).ids == data.ids


def test_arrays_are_volumes_by_name_or_when_asked(tmp_path):
    values = np.random.default_rng(0).random((6, 8, 10, 12)).astype(np.float32)
    np.savez(tmp_path / "a.npz", volume=values, label=np.array([0, 1, 0, 1, 0, 1]), group=list("aabbcc"))
    data = open_source(tmp_path / "a.npz", cache=False)
    assert data.images.shape == (6, 1, 8, 10, 12) and data.groups == list("aabbcc") and data.spec.num_classes == 2
    np.save(tmp_path / "b.npy", values[:, None].repeat(2, 1))
    assert open_source(tmp_path / "b.npy", cache=False, modality="volume").images.shape == (6, 2, 8, 10, 12)
    np.save(tmp_path / "c.npy", values)  # without asking: images, as ever
    assert open_source(tmp_path / "b.npy", cache=False, modality="volume").modality == "volume"
    for name, held, words in (("e", {"volume": values[:0]}, "empty"), ("f", {"volume": values[0]}, "float32"),
                              ("g", {"volume": values, "label": [1]}, "entries in 'label'"),
                              ("h", {"scan": values}, "no array 'volume'"),
                              ("i", {"volume": values.astype(complex)}, "complex")):
        np.savez(tmp_path / f"{name}.npz", **held)
        with pytest.raises(DataError, match=words):
            open_source(tmp_path / f"{name}.npz", cache=False, modality="volume")
    values[2, 0, 0, 0] = np.inf
    np.savez(tmp_path / "j.npz", volume=values)
    data = open_source(tmp_path / "j.npz", cache=False, max_skipped=0.5)
    assert len(data) == 5 and "NaN or infinity" in data.skipped[0].reason


def test_damaged_scans_are_skipped_with_reasons(folder):
    (folder / "brain" / "empty.nii").write_bytes(b"")
    whole = (folder / "brain" / "0.nii.gz").read_bytes()
    (folder / "brain" / "late.nii.gz").write_bytes(whole[:-500])
    write(folder / "brain" / "film.nii", np.zeros((4, 4, 4, 30), "u1"))
    write(folder / "brain" / "two.nii", np.ones((4, 4, 4, 2), "u1"))
    with pytest.raises(DataError, match="of 12 volumes"):
        open_source(folder, cache=False)
    data = open_source(folder, cache=False, max_skipped=0.5)
    reasons = {s.id: s.reason for s in data.skipped}
    assert set(reasons) == {"brain/empty.nii", "brain/late.nii.gz", "brain/film.nii", "brain/two.nii"}
    assert "truncated" in reasons["brain/late.nii.gz"] and "2 channels where 1" in reasons["brain/two.nii"]


def test_folders_of_slices_are_one_volume_each(tmp_path, monkeypatch):
    from tests.modalities.test_volume import slices

    from osteon.modalities import _dicom, volume

    def read(path, *, values):
        made = slices(len(list(path.iterdir())), gap=2.0)
        for n, one in enumerate(made):
            one.pixel_array = np.full((5, 6), n) + int(path.name[-1])
        return made[::-1]

    monkeypatch.setattr(volume, "read_slices", read)
    monkeypatch.setattr(_dicom, "read_slices", read)
    for name, count in (("a/s1", 4), ("a/s2", 4), ("b/s10", 5)):
        (tmp_path / name).mkdir(parents=True)
        for n in range(count):
            (tmp_path / name / f"{n}.dcm").write_bytes(b"x")
    data = open_source(tmp_path, cache=False)
    assert data.modality == "volume" and data.ids == ["a/s1", "a/s2", "b/s10"] and data.class_names == ["a", "b"]
    assert data.images.shape == (3, 1, 4, 6, 6) and data.spec.traits["spacing"] == [2.0, 0.5, 0.7]
    assert (np.diff(data.images[0, 0, :, 3, 3].astype(int)) > 0).all()  # slices in order of height
    (tmp_path / "loose.dcm").write_bytes(b"x")
    with pytest.raises(DataError, match="folder of its own"):
        open_source(tmp_path, cache=False)


def test_what_is_asked_is_obeyed_and_images_stay_images(tmp_path, folder):
    from PIL import Image

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(3):
        Image.fromarray(np.full((8, 8), 50 * i, np.uint8)).save(pictures / f"{i}.png")
    write(pictures / "a.nii", scan(0))
    assert open_source(pictures, cache=False).modality == "image"
    assert len(open_source(pictures, cache=False, modality="volume", max_skipped=1.0)) == 1
    (pictures / "a.nii").unlink()
    with pytest.raises(DataError, match="no volume"):
        open_source(pictures, cache=False, modality="volume")


def test_cache_gives_the_same_and_copies_are_found(folder, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    first, again = (open_source(folder, cache=cache) for _ in range(2))
    np.testing.assert_array_equal(first.images, again.images)
    assert first.fingerprint == again.fingerprint and first.spec == again.spec
    found = find_duplicates(first.subset([0, 1, 2]), first.subset([2, 3]))
    assert found.exact == [("brain/2.nii.gz", "brain/2.nii.gz")]


def test_phantoms_are_the_same_every_time_and_a_histogram_tells_but_one_kind():
    from osteon.modalities.volume import CONTROLS

    train, test = (open_source(f"phantoms:{part}", cache=False) for part in ("train", "test"))
    assert (len(train), len(test)) == (700, 300) and train.images.shape[1:] == (1, 16, 16, 16)
    assert not set(train.ids) & set(test.ids) and len(find_duplicates(train, test)) == 0
    np.testing.assert_array_equal(open_source("phantoms:test", cache=False).images, test.images)
    x, y = CONTROLS["intensity histogram"](train.images, test.images, train.spec)
    x, y = ((v - x.mean(0)) / (x.std(0) + 1e-3) for v in (x, y))
    wanted = np.eye(6)[train.labels]
    guess = (y @ np.linalg.solve(x.T @ x + 300 * np.eye(64), x.T @ (wanted - wanted.mean(0)))).argmax(1)
    right = [float((guess == test.labels)[test.labels == k].mean()) for k in range(6)]
    assert right[5] > 0.85 and np.mean(right[:5]) < 0.4  # chance is 0.2 among five


def test_segmentations_keep_their_labels(tmp_path):
    labels = np.zeros((8, 8, 8), "i2")
    labels[2:6, :, 4:] = 7
    labels[0, 0, 0] = 300
    write(tmp_path / "a.nii", labels, scaled(1.0))
    data = open_source(tmp_path, cache=False, segments=True)
    assert data.spec.traits == {"spacing": [1.0] * 3, "window": [], "segments": True} and data.images.dtype == np.uint16
    assert sorted(np.unique(data.images)) == [0, 7, 300] and (data.images == 7).sum() == 4 * 8 * 4
    assert "values are labels" in " ".join(data.notes)
    coarse = open_source(tmp_path, cache=False, segments=True, spacing=2)
    assert sorted(np.unique(coarse.images)) == [0, 7] and (coarse.images == 7).sum() == 2 * 4 * 2
    again = open_source(tmp_path, cache=False, like=coarse.spec)
    np.testing.assert_array_equal(again.images, coarse.images)
    with pytest.raises(UsageError, match="no window"):
        open_source(tmp_path, cache=False, segments=True, window="ct")
    write(tmp_path / "b.nii", labels + 0.5, scaled(1.0))
    with pytest.raises(DataError, match="no labels"):
        open_source(tmp_path, cache=False, segments=True)


def test_generated_segmentations():
    data = open_source("label_maps:test", cache=False, limit=20)
    assert data.images.shape == (20, 1, 16, 16, 16) and data.labels is None and data.spec.traits["segments"]
    assert 3 <= np.mean([len(np.unique(v)) for v in data.images]) <= 12 and data.images.max() <= 11
    other = open_source("label_maps:train", cache=False, limit=20)
    assert len(find_duplicates(data, other).exact) == 0
    plain = open_source("label_maps:test", cache=False, limit=2, segments=False)
    assert "segments" not in plain.spec.traits and plain.images.max() == 65535
