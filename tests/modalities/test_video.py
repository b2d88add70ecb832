"""Clips: which frames are taken, sizes, controls and pictures by hand, and damaged or impossible input."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from osteon.core.errors import MissingExtra
from osteon.modalities import Unreadable
from osteon.modalities import video as vi
from osteon.parts.types import DataSpec

SPEC = DataSpec("video", 1, 16, (0.0,), (1.0,), 255.0, shape=(4, 16, 16))


def frames(count: int = 6, size: int = 8, channels: int = 1) -> np.ndarray:
    """Frame t has the value 10 t everywhere."""
    shape = (count, size, size) if channels == 1 else (count, size, size, channels)
    return (10 * np.arange(count, dtype=np.uint8)).reshape(-1, *[1] * (len(shape) - 1)) * np.ones(shape, np.uint8)


def save(folder, values: np.ndarray, name: str = "f{}.png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for t, frame in enumerate(values):
        Image.fromarray(frame).save(folder / name.format(t))


def test_frames_are_taken_around_the_middle_and_the_last_one_is_repeated():
    assert vi.chosen_frames(10, 4, 1) == [3, 4, 5, 6]
    assert vi.chosen_frames(10, 4, 2) == [1, 3, 5, 7]
    assert vi.chosen_frames(10, 4, 3) == [0, 3, 6, 9]
    assert vi.chosen_frames(4, 4, 1) == [0, 1, 2, 3]
    assert vi.chosen_frames(3, 5, 1) == [0, 1, 2, 2, 2]


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_give_their_frames(channels):
    got = vi.decode(frames(6, 8, channels), vi.Shot(4, 1, 8, channels))
    assert got.shape == (channels, 4, 8, 8) and got.dtype == np.uint8
    assert got[0, :, 0, 0].tolist() == [10, 20, 30, 40]
    assert vi.read_header(frames(6, 8, channels)) == vi.Header(6, 8, 8, channels)
    assert vi.decode(frames(6, 8, channels), vi.Shot(2, 1, 4, 3)).shape == (3, 2, 4, 4)  # smaller, grey as colour
    floats = frames(6, 8, channels) / 255.0
    np.testing.assert_array_equal(vi.decode(floats, vi.Shot(4, 1, 8, channels)), got)
    np.testing.assert_array_equal(vi.decode(frames(6, 8, channels).astype(np.uint16) * 257,
                                            vi.Shot(4, 1, 8, channels)), got)


def test_a_folder_of_frames_is_a_clip_in_natural_order(tmp_path):
    save(tmp_path, frames(12))
    (tmp_path / "notes.txt").write_text("x")
    assert [f.stem for f in vi.frame_files(tmp_path)][9:] == ["f9", "f10", "f11"]
    assert vi.read_header(tmp_path) == vi.Header(12, 8, 8, 1)
    assert vi.decode(tmp_path, vi.Shot(6, 2, 8, 1))[0, :, 0, 0].tolist() == [0, 20, 40, 60, 80, 100]


def test_the_middle_square_of_wide_frames_is_resized(tmp_path):
    wide = np.zeros((3, 8, 16), np.uint8)
    wide[:, :, 4:12] = 200
    got = vi.decode(wide, vi.Shot(2, 1, 4, 1))
    assert got.shape == (1, 2, 4, 4) and (got == 200).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_an_animation_is_a_clip(channels, tmp_path):
    values = frames(6, 16, channels)
    (tmp_path / "a.gif").write_bytes(vi.animation(values))
    header = vi.read_header(tmp_path / "a.gif")
    assert (header.frames, header.height, header.width) == (6, 16, 16)
    got = vi.decode(tmp_path / "a.gif", vi.Shot(4, 1, 16, 1))
    np.testing.assert_allclose(got[0, :, 8, 8], [10, 20, 30, 40], atol=2)


def test_films_without_the_library_name_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.mp4").write_bytes(b"\0" * 100)
    with pytest.raises(MissingExtra, match=r"folders of frames.*osteon\[video\]"):
        vi.read_header(tmp_path / "a.mp4")


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi"])
def test_films_come_back_about_as_they_were(ending, tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / f"a.{ending}"
    with av.open(str(path), "w") as film:
        stream = film.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for frame in frames(20, 64, 3)[:, :32]:
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")):
                film.mux(packet)
        for packet in stream.encode():
            film.mux(packet)
    assert vi.read_header(path) == vi.Header(20, 32, 64, 3)
    got = vi.decode(path, vi.Shot(5, 4, 16, 3))
    assert got.shape == (3, 5, 16, 16)
    np.testing.assert_allclose(got.mean((0, 2, 3)), 10 * np.array([1, 5, 9, 13, 17]), atol=8)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(Unreadable):
        vi.decode(path, vi.Shot(5, 4, 16, 3))


def test_films_that_end_too_early_are_refused(monkeypatch, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    monkeypatch.setattr(vi, "_film_header", lambda path: vi.Header(20, 8, 8, 3))
    for count, enough in ((3, False), (9, True)):
        monkeypatch.setattr(vi, "_film_frames",
                            lambda path, wanted, n=count: vi._pick(iter(frames(5 + n, 8, 3)), wanted))
        if enough:
            got = vi.decode(tmp_path / "a.mp4", vi.Shot(10, 1, 8, 3))
            assert got[0, :, 0, 0].tolist() == [50, 60, 70, 80, 90, 100, 110, 120, 130, 130]
        else:
            with pytest.raises(Unreadable, match="3 of 10 frames"):
                vi.decode(tmp_path / "a.mp4", vi.Shot(10, 1, 8, 3))


def test_damaged_and_impossible_clips_are_refused_in_words(tmp_path):
    for name, content, reason in (("a.mp4", b"", "empty"), ("b.gif", b"GIF89a", "decoded"),
                                  ("c.gif", b"x" * 50, "decoded")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Unreadable, match=reason):
            vi.read_header(tmp_path / name)
    (tmp_path / "one.gif").write_bytes(vi.animation(frames(1)))
    save(tmp_path / "none", frames(0))
    with pytest.raises(Unreadable, match="1 frame; a clip"):
        vi.read_header(tmp_path / "one.gif")
    with pytest.raises(Unreadable, match="no frame"):
        vi.read_header(tmp_path / "none")
    save(tmp_path / "mixed", frames(3))
    save(tmp_path / "mixed", frames(2, 12), "g{}.png")
    with pytest.raises(Unreadable, match="different sizes: 8 x 8, 12 x 12"):
        vi.decode(tmp_path / "mixed", vi.Shot(5, 1, 8, 1))
    save(tmp_path / "broken", frames(3))
    (tmp_path / "broken" / "f1.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(Unreadable, match="known format|decoded"):
        vi.decode(tmp_path / "broken", vi.Shot(3, 1, 8, 1))
    with pytest.raises(Unreadable, match="not found"):
        vi.read_header(tmp_path / "no.mp4")


@pytest.mark.parametrize(("values", "reason"), [
    (np.zeros((4, 8), np.uint8), "shape"), (np.zeros((4, 8, 8, 2), np.uint8), "1 or 3 channels"),
    (np.zeros((1, 8, 8), np.uint8), "1 frame"), (np.zeros((4, 8, 8), np.int64), "int64"),
    (np.zeros((0, 8, 8), np.uint8), "shape"), (np.full((4, 8, 8), np.nan), "NaN"),
    (np.full((4, 8, 8), 200.0), "lie in \\[0, 1\\]")])
def test_arrays_that_are_no_clips_are_refused(values, reason):
    with pytest.raises(Unreadable, match=reason):
        vi.read_header(values)
        vi.decode(values, vi.Shot(2, 1, 8, 1))


def test_controls_by_hand():
    clip = np.zeros((1, 1, 4, 16, 16), np.uint8)
    clip[0, 0, 3, :8] = 255  # the upper half lights up at the end
    np.testing.assert_allclose(vi.mean_frame(clip)[0].reshape(16, 16)[:, 0], [0.25] * 8 + [0] * 8)
    np.testing.assert_allclose(vi.last_frame(clip)[0].reshape(16, 16)[:, 0], [1] * 8 + [0] * 8)
    change = vi.change_statistics(clip)[0]
    place, spread, rest = change[:64].reshape(8, 8), change[64:128].reshape(8, 8), change[128:]
    np.testing.assert_allclose(place[:, 0], [1 / 3] * 4 + [0] * 4, rtol=1e-6)
    np.testing.assert_allclose(spread[:, 0], [2**0.5 / 3] * 4 + [0] * 4, rtol=1e-6)
    np.testing.assert_allclose(rest, [0, 0, 0.5, 0, 0, 0.5], rtol=1e-6)
    raw = vi.raw_pixels(clip)[0].reshape(4, 16, 16)
    np.testing.assert_allclose(raw[:, 0, 0], [0, 0, 0, 1])
    assert vi.change_statistics(clip[:, :, :1]).shape == (1, 130)  # a single frame does not change
    backwards = clip[:, :, ::-1]
    assert not np.allclose(vi.last_frame(backwards), vi.last_frame(clip))
    np.testing.assert_allclose(vi.mean_frame(backwards), vi.mean_frame(clip))


def test_a_picture_is_a_strip_of_frames():
    clip = np.repeat((np.arange(16) / 15)[None, None, :, None, None], 8, 3).repeat(4, 4)
    picture = vi.picture(clip, SPEC)
    assert picture.shape == (1, 8, 8 * 4, 3)
    shown = picture[0, 0, ::4, 0].astype(int)
    assert shown[0] == 0 and shown[-1] == 255 and (np.diff(shown) > 0).all()
    assert vi.picture(np.zeros((2, 3, 2, 4, 4)), SPEC).shape == (2, 4, 8, 3)
