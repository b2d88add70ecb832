"""Sources of clips: folders of frames, animations, manifests, arrays, rules, refusals, and the generated digits."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from osteon.core.errors import DataError, MissingExtra, UsageError
from osteon.data import find_duplicates, open_source
from osteon.data._moving_digits import MOTIONS, _path, moving
from osteon.modalities.video import animation


def clip(seed: int, count: int = 20, size: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (count, size, size)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    for n, name in enumerate(("run/c1", "run/c2", "run/c10", "walk/c1")):
        (tmp_path / name).mkdir(parents=True)
        for t, frame in enumerate(clip(n)):
            Image.fromarray(frame).save(tmp_path / name / f"{t}.png")
    return tmp_path


def test_folders_of_frames_are_clips_when_asked(folder):
    assert open_source(folder, cache=False).modality == "image"
    data = open_source(folder, cache=False, modality="video")
    assert data.modality == "video" and data.ids == ["run/c1", "run/c2", "run/c10", "walk/c1"]
    assert data.class_names == ["run", "walk"] and data.images.shape == (4, 1, 16, 12, 12)
    np.testing.assert_array_equal(data.images[3, 0], clip(3)[2:18])
    assert set(data.batch([0])) == {"video", "index", "label"} and data.spec.traits == {"stride": 1}
    text = " ".join(data.notes)
    for rule in ("16 (rule:", "one of 1 (rule:", "100% are cut to their middle", "12 x 12; kept (rule",
                 "(rule: 3 if any"):
        assert rule in text, rule


def test_options_and_rules(folder):
    data = open_source(folder, cache=False, modality="video", frames=4, stride=6, size=8)
    assert data.images.shape == (4, 1, 4, 8, 8) and data.spec.traits == {"stride": 6}
    long = np.zeros((2, 70, 150, 200), np.uint8)
    np.savez(folder / "long.npz", video=long, label=np.array([0, 1]))
    data = open_source(folder / "long.npz", cache=False)
    assert data.images.shape == (2, 1, 16, 112, 112) and data.spec.traits == {"stride": 4}
    np.savez(folder / "short.npz", video=long[:, :7, :50, :50])
    data = open_source(folder / "short.npz", cache=False)
    assert data.images.shape == (2, 1, 4, 50, 50) and data.spec.traits == {"stride": 1}
    for wrong, name in (({"frames": -1}, "frames"), ({"stride": 1.5}, "stride"), ({"size": 0}, "size"),
                        ({"frame": 1}, "frame")):
        with pytest.raises(UsageError, match=name):
            open_source(folder, cache=False, modality="video", **wrong)


def test_other_data_is_read_like_that_of_the_model(folder, tmp_path_factory):
    spec = open_source(folder, cache=False, modality="video", frames=4, stride=3, size=8).spec
    other = tmp_path_factory.mktemp("other")
    np.save(other / "a.npy", np.random.default_rng(0).integers(0, 255, (3, 40, 20, 30, 3)).astype(np.uint8))
    data = open_source(other / "a.npy", cache=False, like=spec)
    assert data.spec.traits == spec.traits and data.spec.extent == (4, 8, 8) and data.spec.channels == 1


def test_animations_and_manifests(tmp_path):
    for n in range(3):
        (tmp_path / f"{n}.gif").write_bytes(animation(clip(n, 8)))
    data = open_source(tmp_path, cache=False, modality="video")
    assert data.images.shape[2:] == (8, 12, 12) and data.ids == ["0.gif", "1.gif", "2.gif"]
    (tmp_path / "metadata.csv").write_text("video,label,group\n0.gif,a,x\n2.gif,b,y\n")
    data = open_source(tmp_path, cache=False, modality="video")
    assert data.ids == ["0.gif", "2.gif"] and data.groups == ["x", "y"]
    assert open_source(tmp_path / "metadata.csv", cache=False, modality="video").ids == data.ids


def test_films_are_recognised_and_name_the_extra(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.mp4").write_bytes(b"\0" * 64)
    with pytest.raises(MissingExtra, match="osteon\\[video\\]"):
        open_source(tmp_path, cache=False)
    (tmp_path / "m.csv").write_text("path,label\na.mp4,x\n")
    with pytest.raises(MissingExtra, match="osteon\\[video\\]"):
        open_source(tmp_path / "m.csv", cache=False)


def test_arrays_that_are_no_clips_are_refused(tmp_path):
    values = np.stack([clip(n) for n in range(4)])
    for name, held, words in (("e", {"video": values[:0]}, "empty"), ("f", {"video": values[0]}, "uint8"),
                              ("g", {"video": values, "split": ["a"]}, "entries in 'split'"),
                              ("h", {"film": values}, "no array 'video'"),
                              ("i", {"video": values.astype(np.int64)}, "int64"),
                              ("j", {"video": values / 255 + np.nan}, "NaN"),
                              ("k", {"video": values[..., None].repeat(2, -1)}, "1 or 3 channels")):
        np.savez(tmp_path / f"{name}.npz", **held)
        with pytest.raises(DataError, match=words):
            open_source(tmp_path / f"{name}.npz", cache=False, modality="video", max_skipped=1.0)
    with pytest.raises(DataError, match="no clip"):
        (tmp_path / "void").mkdir()
        open_source(tmp_path / "void", cache=False, modality="video")


def test_damaged_clips_are_skipped_with_reasons(folder):
    (folder / "run" / "c2" / "10.png").write_bytes(b"broken")
    (folder / "walk" / "c2").mkdir()
    Image.fromarray(clip(0)[0]).save(folder / "walk" / "c2" / "0.png")
    with pytest.raises(DataError, match="of 5 clips"):
        open_source(folder, cache=False, modality="video")
    data = open_source(folder, cache=False, modality="video", max_skipped=0.5)
    assert {s.id for s in data.skipped} == {"run/c2", "walk/c2"} and len(data) == 3


def test_moving_digits_are_the_same_every_time_and_share_no_digit():
    train, test = (open_source(f"moving_digits:{part}", cache=False) for part in ("train", "test"))
    assert (len(train), len(test)) == (700, 300) and train.images.shape[1:] == (1, 16, 32, 32)
    seen, held = ({number for name in data.ids for number in name.split("-")[2:]} for data in (train, test))
    assert len(seen) > 500 and len(held) > 200 and not seen & held
    assert len(find_duplicates(train, test)) == 0
    assert train.class_names == list(MOTIONS) and np.bincount(test.labels).tolist() == [60] * 5
    np.testing.assert_array_equal(open_source("moving_digits:test", cache=False).images, test.images)


def test_digits_move_as_their_class_says_and_stay_inside():
    for kind in range(5):
        for seed in range(20):
            path = _path(kind, np.random.default_rng(seed))
            assert path.shape == (16, 2) and path.min() >= 0 and path.max() <= 20
            step = np.diff(path, axis=0)
            if kind < 2:
                assert np.abs(step[:, kind]).max() < 1e-9 and np.abs(step[:, 1 - kind]).max() > 0.9
            elif kind > 2:  # the turn between steps: rows run down, so clockwise is positive
                turn = step[:-1, 1] * step[1:, 0] - step[:-1, 0] * step[1:, 1]
                assert (turn > 0).all() if kind == 3 else (turn < 0).all()
    film = moving(0, np.array([3, 4]), 7)
    assert film.shape == (16, 32, 32) and film.dtype == np.uint8 and film.max() > 200
    assert (film.reshape(16, -1).max(1) > 100).all()  # nothing ever leaves the frame
