from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from osteon.core.errors import DataError, UsageError
from osteon.data import build, open_source


def test_unreadable_images_are_skipped_counted_and_listed(save, tmp_path):
    for i in range(9):
        save(f"{i}.png", i)
    (tmp_path / "4.png").write_bytes((tmp_path / "4.png").read_bytes()[:40])
    (tmp_path / "bad.jpg").write_text("no picture")
    with pytest.raises(DataError, match=r"2 of 10 images \(20.0%\).*4.png .*bad.jpg .*max_skipped=0.2"):
        open_source(tmp_path, max_skipped=0.1)
    data = open_source(tmp_path, max_skipped=0.2)
    assert data.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert data.ids == [f"{i}.png" for i in (0, 1, 2, 3, 5, 6, 7, 8)]
    assert [item.id for item in data.skipped] == ["4.png", "bad.jpg"] and all(item.reason for item in data.skipped)
    again = open_source(tmp_path, max_skipped=0.2)  # from the cache
    assert again.skipped == data.skipped and again.ids == data.ids
    with pytest.raises(DataError, match="2 of 10"):  # the cache does not make it pass
        open_source(tmp_path)


def test_one_in_a_hundred_passes_by_default(save, tmp_path):
    for i in range(99):
        save(f"{i:02d}.png", i)
    (tmp_path / "bad.png").write_bytes(b"")
    assert len(open_source(tmp_path)) == 99
    (tmp_path / "worse.png").write_bytes(b"")
    with pytest.raises(DataError, match="2 of 101"):
        open_source(tmp_path)


def test_labels_follow_their_images_when_some_are_skipped(save, tmp_path):
    save("a/1.png", 1)
    save("b/2.png", 2)
    save("c/3.png", 3)
    (tmp_path / "a/0.png").write_bytes(b"broken")
    data = open_source(tmp_path, max_skipped=0.5)
    assert data.labels.tolist() == [0, 1, 2] and data.images[:, 0, 0, 0].tolist() == [1, 2, 3]


def test_nothing_readable_and_one_image(save, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"broken")
    with pytest.raises(DataError, match="No readable image: bad.png"):
        open_source(tmp_path, max_skipped=1.0)
    (tmp_path / "bad.png").unlink()
    save("one.png", 3)
    data = open_source(tmp_path)
    assert len(data) == 1 and any("only one" in note for note in data.notes)


def test_late_failures_alone_can_leave_nothing(save, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.jpg")
    (tmp_path / "x.jpg").write_bytes((tmp_path / "x.jpg").read_bytes()[:1500])  # the header is whole
    with pytest.raises(DataError, match="No readable image: x.jpg"):
        open_source(tmp_path, max_skipped=1.0)


def test_sizes_and_channels_are_brought_to_one_rule_and_noted(save, tmp_path):
    save("1.png", 10, (40, 30))
    save("2.png", 20, (50, 45), "RGB")
    save("3.png", 30, (34, 90))
    data = open_source(tmp_path)
    assert data.images.shape == (3, 3, 32, 32)  # median shorter side 34
    assert data.images[:, 2, 5, 5].tolist() == [10, 20, 30]
    text = " ".join(data.notes)
    for words in ("sides of 30 to 90 pixels", "median shorter side 34", "repeated to RGB", "EXIF"):
        assert words in text
    assert open_source(tmp_path, size=16).images.shape == (3, 3, 16, 16)
    assert open_source(tmp_path, like=open_source("digits:test").spec).images.shape == (3, 1, 8, 8)


def test_limit_is_a_fixed_random_choice_in_order(save, tmp_path):
    for i in range(20):
        save(f"{'ab'[i // 10]}/{i:02d}.png", i)
    data = open_source(tmp_path, limit=6)
    assert len(data) == 6 and data.ids == sorted(data.ids) and set(data.labels) == {0, 1}
    assert data.ids == open_source(tmp_path, limit=6, cache=False).ids
    assert data.images[:, 0, 0, 0].tolist() == [int(name[2:4]) for name in data.ids]
    assert len(open_source(tmp_path, limit=1000)) == 20


def test_fingerprint_is_of_the_contents_and_not_the_place(save, tmp_path):
    save("x/1.png", 1)
    save("x/2.png", 2)
    here = open_source(tmp_path / "x")
    shutil.copytree(tmp_path / "x", tmp_path / "y")
    assert open_source(tmp_path / "y").fingerprint == here.fingerprint
    assert open_source(tmp_path / "x", cache=False).fingerprint == here.fingerprint
    assert open_source(tmp_path / "x", size=4).fingerprint != here.fingerprint
    save("y/2.png", 3)
    assert open_source(tmp_path / "y").fingerprint != here.fingerprint


def test_memory_and_cache_give_the_same(save, tmp_path):
    for i in range(5):
        save(f"{i}.png", 40 * i, mode="RGB")
    cached, memory = open_source(tmp_path), open_source(tmp_path, cache=False)
    np.testing.assert_array_equal(cached.images, memory.images)
    assert cached.spec == memory.spec and isinstance(cached.images, np.memmap)
    assert cached.spec.mean == pytest.approx([80 / 255] * 3)


def test_many_chunks_stay_in_order_on_several_threads(save, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "_CHUNK", 2)
    monkeypatch.setattr(build, "workers", lambda: 4)
    for i in range(50):
        save(f"{i:02d}.png", i)
    seen: list[tuple[int, int, str]] = []
    data = open_source(tmp_path, progress=lambda *args: seen.append(args))
    assert data.images[:, 0, 0, 0].tolist() == list(range(50))
    assert [done for done, _, _ in seen] == list(range(2, 51, 2)) and seen[-1] == (50, 50, "reading")
    save("00.png", 0, (9, 9))  # one that is not like the others: their headers first
    seen.clear()
    data = open_source(tmp_path, progress=lambda *args: seen.append(args))
    assert data.images[:, 0, 0, 0].tolist() == list(range(50))
    assert [done for done, _, _ in seen] == [*range(2, 51, 2)] * 2 and seen[-1] == (50, 50, "decoding")


def test_a_dataset_is_a_source():
    data = open_source("digits:test")
    assert open_source(data) is data


@pytest.mark.parametrize(("source", "words"), [("digit", "Did you mean 'digits'"), ("/no/such/place", "no file"),
                                               ("digits:tset", "no split 'tset'")])
def test_unknown_sources(source, words):
    with pytest.raises(DataError, match=words):
        open_source(source)


def test_unknown_file_and_colon_in_a_name(save, tmp_path):
    (tmp_path / "x.mp4").write_bytes(b"x")
    with pytest.raises(DataError, match=r"'\.mp4'"):
        open_source(tmp_path / "x.mp4")
    save("odd:name/1.png", 1)
    assert len(open_source(tmp_path / "odd:name")) == 1
    with pytest.raises(DataError, match="no splits"):
        open_source(f"{tmp_path / 'odd:name'}:train")


@pytest.mark.parametrize("options", [{"limit": 0}, {"max_skipped": 2}, {"max_skipped": -0.1}, {"size": 0}])
def test_options_out_of_range(options):
    with pytest.raises(UsageError):
        open_source("digits", **options)
