"""Samples that are alike are decoded while their headers are read: what comes out is what two readings give."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from osteon.core.errors import DataError
from osteon.data import build, image, open_source, source
from osteon.data.dataset import Dataset
from osteon.modalities import Unlike
from osteon.modalities import image as pictures


def picture(i: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), np.uint8)
    if mode == "I;16":
        return Image.fromarray(values[..., 0].astype(np.uint16) * 257)
    return Image.fromarray(values[..., 0].astype(np.float32)) if mode == "F" else Image.fromarray(values).convert(mode)


def folder_of(path: Path, odd: dict[int, tuple[tuple[int, int], str] | bytes], count: int = 12) -> Path:
    """Pictures of 8 x 8, but for those in ``odd``: another size and mode, or the bytes of a damaged file."""
    path.mkdir()
    for i in range(count):
        other = odd.get(i, ((8, 8), "RGB"))
        if isinstance(other, bytes):
            (path / f"{i:02d}.tif").write_bytes(other)
        else:
            picture(i, *other).save(path / f"{i:02d}.tif")
    return path


def cut() -> bytes:
    """A file whose header can be read and whose pixels cannot."""
    made = io.BytesIO()
    picture(0, (8, 8)).save(made, "BMP")
    return made.getvalue()[:-9]


def told(data: Dataset) -> object:
    notes = [note for note in data.notes if not note.startswith("cache:")]
    return data.fingerprint, data.ids, data.spec, notes, data.skipped, data.images.shape, data.images.tobytes()


ODD: dict[str, dict] = {
    "none": {}, "first": {0: ((9, 9), "RGB")}, "middle": {5: ((9, 9), "RGB")}, "last": {11: ((9, 9), "RGB")},
    "wide": {i: ((12, 8), "RGB") for i in range(12)}, "large": {i: ((300, 260), "L") for i in range(12)},
    "kept though one is larger": {11: ((8, 10), "RGB")}, "grey at last": {11: ((8, 8), "L")},
    "grey at first": {i: ((8, 8), "L") for i in range(7)}, "16 bits": {i: ((8, 8), "I;16") for i in range(4, 12)},
    "a float": {3: ((8, 8), "F")}, "floats win": {i: ((8, 8), "F") for i in range(3, 12)},
    "damaged": {0: b"no picture", 4: b"", 7: cut()}, "cut": {3: cut(), 11: cut(), 5: b"II*"}}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("options", [{}, {"size": 6}, {"cache": False}])
def test_one_reading_gives_what_two_give(name, options, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "_CHUNK", 2)
    path = folder_of(tmp_path / "in", ODD[name])
    one = told(open_source(path, max_skipped=1, **options))
    monkeypatch.setattr(image, "CODEC", replace(image.CODEC, alike=None))
    monkeypatch.setenv("OSTEON_CACHE", str(tmp_path / "cache"))
    assert told(open_source(path, max_skipped=1, **options)) == one


@pytest.mark.parametrize("odd", [{}, {0: ((9, 9), "RGB")}, {0: b"no picture"}])
def test_how_often_files_are_read(odd, tmp_path, monkeypatch):
    seen: list[str] = []
    real = pictures._open
    monkeypatch.setattr(pictures, "_open", lambda path, *a, **k: (seen.append(path.name), real(path, *a, **k))[1])
    monkeypatch.setattr(build, "workers", lambda: 1)
    data = open_source(folder_of(tmp_path / "in", odd), max_skipped=1)
    first = seen.count("00.tif")
    if odd:  # each twice: those that cannot be read once more only where they might have been decoded
        assert sorted(set(seen)) == [f"{i:02d}.tif" for i in range(12)] and len(seen) >= 2 * (len(data) - 1)
    else:
        assert len(seen) == 13 and first == 2  # the first one's header says what to expect


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Names of what is decoded, in order, on one thread."""
    names: list[str] = []
    real = image.decode_square

    def decode(path: Path, size: int, **more: object) -> np.ndarray:
        names.append(path.name)
        return real(path, size, **more)

    monkeypatch.setattr(image, "decode_square", decode)
    monkeypatch.setattr(build, "workers", lambda: 1)
    return names


def test_as_soon_as_one_is_another_nothing_is_decoded_before_its_time(tmp_path, decoded):
    data = open_source(folder_of(tmp_path / "in", {4: ((8, 10), "RGB")}))
    # 4 has another header; the size is that of all the same, so what was decoded is kept
    assert decoded == [f"{i:02d}.tif" for i in (0, 1, 2, 3, 4, *range(4, 12))] and len(data) == 12


def test_too_many_that_fail_are_told_as_ever(tmp_path, monkeypatch):
    path = folder_of(tmp_path / "in", {3: b"no picture", 7: cut()})
    for allowed, words in ((0.01, "1 of 12 images .8.3%"), (0.1, "2 of 12 images .16.7%")):
        with pytest.raises(DataError, match=words):
            open_source(path, max_skipped=allowed)
    monkeypatch.setattr(source, "decode_samples", lambda *_: pytest.fail("decoded though too many failed"))
    with pytest.raises(DataError, match="1 of 12 images"):
        open_source(path, cache=False)


def test_where_too_many_fail_the_rest_is_not_decoded(tmp_path, decoded, monkeypatch):
    monkeypatch.setattr(build, "_CHUNK", 1)
    path = folder_of(tmp_path / "in", {i: b"no picture" for i in (2, 9, 11)})
    with pytest.raises(DataError, match="3 of 12 images"):
        open_source(path, max_skipped=0.05)
    assert decoded[:3] == ["00.tif", "01.tif", "02.tif"] and len(decoded) <= 5  # two chunks are on their way


@pytest.mark.parametrize("large", [False, True])
def test_bytes_and_files_of_any_size_are_the_same_picture(large, tmp_path, monkeypatch):
    if large:
        monkeypatch.setattr(pictures, "WHOLE", 10)
    path = folder_of(tmp_path / "in", {})
    table = pa.table({"image": [file.read_bytes() for file in sorted(path.iterdir())]})
    pq.write_table(table, tmp_path / "x.parquet")
    data = open_source(path)
    np.testing.assert_array_equal(data.images, open_source(tmp_path / "x.parquet").images)
    np.testing.assert_array_equal(data.images[3], np.asarray(picture(3)).transpose(2, 0, 1))
    with pytest.raises(Unlike):
        pictures.decode_square(path / "00.tif", 8, like=pictures.Header(8, 9, 3, "uint8"))
    with pytest.raises(Unlike):
        pictures.decode_square(np.zeros((8, 8), np.uint8), 8, like=pictures.Header(8, 8, 3, "uint8"))
