"""Files that change between listing and reading, while they are read, between runs: no old data are taken for new."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from osteon.core.errors import DataError
from osteon.data import changes, image, open_source, source
from osteon.data._archive import Rows
from osteon.data.series import open_long

Write = Callable[[Path, int], None]


def _npy(path: Path, v: int) -> None:
    np.save(path, np.full((4, 8, 8), 10 + v, np.uint8))


def _npz(path: Path, v: int) -> None:
    np.savez(path, series=np.full((3, 2, 16), 1.5 + v), label=[v, 0, 1])


def _cloud(path: Path, v: int) -> None:
    np.savez(path, points=np.random.default_rng(v).normal(size=(3, 16, 3)))


def _table(path: Path, v: int) -> None:
    path.write_text("a,b,label\n" + "".join(f"{i or 90 * v},{i % 3},{'xy'[i % 2]}\n" for i in range(12)))


def _edges(path: Path, v: int) -> None:
    path.write_text(f"source,target\n0,1\n1,2\n2,{3 + v}\n")


def _over_time(path: Path, v: int) -> None:
    path.write_text("date,x\n" + "".join(f"2020-01-{d:02d},{d * v + 0.5}\n" for d in range(1, 32)))


def _jsonl(path: Path, v: int) -> None:
    path.write_text("".join(json.dumps({"text": "word " * (v + 1) + f"number {i}"}) + "\n" for i in range(4)))


def _text(path: Path, v: int) -> None:
    path.write_text(f"line of text{' more' * v}\n" * 80)


def _ts(path: Path, v: int) -> None:
    path.write_text("@problemName x\n@classLabel true a b\n@data\n" + f"1,2,{v},4:a\n2,3,{v},5:b\n")


def _parquet(path: Path, v: int) -> None:
    picture = path.with_suffix(".png.tmp")
    Image.new("L", (8, 8), v).save(picture, format="png")
    pq.write_table(pa.table({"image": [picture.read_bytes()] * 3}), path)
    picture.unlink()


WHOLE: dict[str, tuple[Write, dict]] = {
    "x.npy": (_npy, {}), "x.npz": (_npz, {}), "clouds.npz": (_cloud, {}), "rows.csv": (_table, {"modality": "table"}),
    "edges.csv": (_edges, {}), "time.csv": (_over_time, {"modality": "series", "window": 4}), "x.jsonl": (_jsonl, {}),
    "x.txt": (_text, {"window": 8}), "x.ts": (_ts, {}), "x.parquet": (_parquet, {})}


def meanwhile(monkeypatch, name: str, act: Callable[[], object], times: int = 1) -> list[int]:
    """Do something just before ``source.NAME`` is called, so many times."""
    real, done = getattr(source, name), []

    def call(*args, **options):
        if len(done) < times:
            done.append(1)
            act()
        return real(*args, **options)

    monkeypatch.setattr(source, name, call)
    return done


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_read_as_a_whole_that_changes_is_read_again_then_refused(name, tmp_path, monkeypatch):
    write, options = WHOLE[name]
    path = tmp_path / name
    write(path, 0)
    old = open_source(path, **options).fingerprint
    write(path, 1)
    new = open_source(path, **options).fingerprint
    assert old != new
    for moment in ("check_options", "decode_samples"):  # after the listing; after the headers
        write(path, 0)
        with monkeypatch.context() as patch:
            assert meanwhile(patch, moment, lambda: write(path, 1)) == []
            assert open_source(path, **options).fingerprint == new
        assert open_source(path, **options).fingerprint == new  # from the cache
    counter = iter(range(100))
    with monkeypatch.context() as patch:
        meanwhile(patch, "decode_samples", lambda: write(path, next(counter) % 2), times=99)
        with pytest.raises(DataError, match=f"changes while it is read.*{name}.*Wait until"):
            open_source(path, cache=False, **options)
    assert next(counter) == 2
    meanwhile(monkeypatch, "decode_samples", path.unlink)
    with pytest.raises(DataError, match="There is no file"):
        open_source(path, cache=False, **options)


def test_a_list_of_ids_and_a_long_series_are_watched_too(tmp_path, monkeypatch):
    ids, path = tmp_path / "ids.csv", tmp_path / "time.csv"
    _npy(tmp_path / "x.npy", 0)
    ids.write_text("id\n0000001\n")
    meanwhile(monkeypatch, "check_options", lambda: ids.write_text("id\n0000002\n0000003\n"))
    assert open_source(f"{tmp_path / 'x.npy'}@{ids}").ids == ["0000002", "0000003"]
    _over_time(path, 1)
    real = changes.check
    monkeypatch.setattr(changes, "check", lambda: (path.write_text(path.read_text() + "2020-02-01,9\n"), real())[1])
    with pytest.raises(DataError, match="changes while it is read"):
        open_long(path)


@pytest.fixture
def folder(save, tmp_path) -> Path:
    for i in range(4):
        save(f"in/{i}.png", 10 + i, (8, 8))
    return tmp_path / "in"


def draw(path: Path, value: int) -> None:
    Image.new("L", (8, 8), value).save(path)


@pytest.mark.parametrize("moment", ["plan_samples", "decode_samples"])
def test_a_sample_that_changes_between_listing_and_reading_is_read_as_it_is_then(folder, monkeypatch, moment):
    path = folder / "2.png"
    if moment == "decode_samples":  # not all alike, so that headers are read first
        Image.new("L", (9, 9), 10).save(folder / "0.png")
    whole = path.read_bytes()
    meanwhile(monkeypatch, moment, lambda: draw(path, 99))
    found = open_source(folder, max_skipped=1)
    assert found.images[2].max() == found.images[2].min() == 99 and not found.skipped
    for act, word in ((path.unlink, "file not found"), (lambda: path.write_bytes(whole[:40]), "truncated|format"),
                      (lambda: path.write_bytes(b""), "empty"), (lambda: path.write_bytes(whole + b"more"), "")):
        path.write_bytes(whole)
        with monkeypatch.context() as patch:
            meanwhile(patch, moment, act)
            found = open_source(folder, max_skipped=1)
        assert [s.id for s in found.skipped] == (["2.png"] if word else [])
        assert not word or re.search(word, found.skipped[0].reason), found.skipped
        path.write_bytes(whole)
        assert open_source(folder, max_skipped=0).images[2].max() == 12  # and nothing of it stays in the cache


@pytest.mark.parametrize(("times", "skipped"), [(1, 0), (99, 1)])
def test_a_sample_that_changes_while_it_is_decoded_is_decoded_once_more_then_skipped(folder, monkeypatch, times,
                                                                                     skipped):
    real, done = image.decode_square, []

    def decode(payload, *size, **more):
        found = real(payload, *size, **more)
        if payload.name == "1.png" and len(done) < times:
            done.append(1)
            draw(payload, 77)
            os.utime(payload, ns=(len(done), len(done)))
        return found

    monkeypatch.setattr(image, "decode_square", decode)
    found = open_source(folder, max_skipped=1)
    assert len(found.skipped) == skipped and len(done) == min(times, 2)
    if skipped:
        assert (found.skipped[0].id, found.skipped[0].reason) == ("1.png", "changed while it was read, twice")
        assert found.ids == ["0.png", "2.png", "3.png"]
    else:
        assert [int(one.max()) for one in found.images] == [10, 77, 12, 13]


def test_between_runs_a_change_of_neither_name_nor_size_nor_time_of_writing_is_seen(folder, tmp_path):
    array = tmp_path / "x.npy"
    np.save(array, np.full((2, 8, 8), 1, np.uint8))
    for path, write in ((folder / "0.png", lambda: draw(folder / "0.png", 200)), (array, lambda: _npy_of(array, 200))):
        where = folder if path.suffix == ".png" else array
        before = path.stat()
        assert open_source(where).images[0].max() in (10, 1)
        write()
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        after = path.stat()
        assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        assert open_source(where).images[0].max() == 200


def _npy_of(path: Path, value: int) -> None:
    np.save(path, np.full((2, 8, 8), value, np.uint8))


def test_a_file_that_was_only_touched_is_the_same_data(folder):
    first = open_source(folder)
    os.utime(folder / "0.png")
    assert open_source(folder).fingerprint == first.fingerprint


def test_two_writes_within_one_tick_of_the_clock_cannot_be_confused(monkeypatch):
    now, slept = 10**18, []
    monkeypatch.setattr(changes.time, "time_ns", lambda: now)
    monkeypatch.setattr(changes.time, "sleep", slept.append)
    for newest in (now - 10**9, now + 10**9, now - changes.TICK):  # long ago; a clock that is ahead; just over
        changes.settle(newest)
    assert slept == []
    changes.settle(now - changes.TICK // 4)
    assert slept == [0.015]


def test_a_mapped_array_that_is_cut_short_is_an_error_and_no_crash(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.arange(4 * 3 * 100_000, dtype=np.float32).reshape(4, 3, 100_000))
    mapped = np.load(path, mmap_mode="r")
    rows = Rows(mapped[:, ::2].transpose(0, 2, 1))
    np.testing.assert_array_equal(rows[2], mapped[2, ::2].T)
    assert len(rows) == 4 and sum(1 for _ in rows) == 4
    os.truncate(path, 2_000_000)
    with pytest.raises(DataError, match=r"cut short.*x.npy"):
        rows[3]  # through the mapping this would end the process
    assert Rows(np.arange(3))[1] == 1


def test_samples_in_fortran_order_are_read_at_once(tmp_path):
    images = np.arange(4 * 8 * 8, dtype=np.uint8).reshape(4, 8, 8)
    np.save(tmp_path / "x.npy", np.asfortranarray(images))
    np.testing.assert_array_equal(open_source(tmp_path / "x.npy", cache=False).images[:, 0], images)
