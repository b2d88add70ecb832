from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from osteon.core.errors import DataError
from osteon.data import cache, open_source, source


@pytest.fixture
def folder(save, tmp_path) -> Path:
    for i in range(30):
        save(f"in/{i:02d}.png", i, (16, 16), "RGB")
    return tmp_path / "in"


def builds(monkeypatch) -> list[int]:
    done: list[int] = []
    real = source.decode_samples
    monkeypatch.setattr(source, "decode_samples", lambda *args: (done.append(1), real(*args))[1])
    return done


def test_a_source_is_decoded_once(folder, own_cache, monkeypatch):
    done = builds(monkeypatch)
    first, second = open_source(folder), open_source(folder)
    assert len(done) == 1
    np.testing.assert_array_equal(first.images, second.images)
    assert sorted(path.suffix for path in own_cache.iterdir()) == [".json", ".lock", ".npy"]
    np.testing.assert_array_equal(np.load(next(own_cache.glob("*.npy"))), first.images)  # a plain file anybody can read


def test_a_changed_source_or_option_is_decoded_anew(folder, save, monkeypatch):
    done = builds(monkeypatch)
    open_source(folder)
    open_source(folder, size=8)
    open_source(folder, limit=3)
    assert len(done) == 3
    path = save("in/00.png", 77, (16, 16), "RGB")
    assert open_source(folder).images[0, 0, 0, 0] == 77
    os.utime(path, ns=(1, 1))
    open_source(folder)
    (folder / "01.png").unlink()
    assert len(open_source(folder)) == 29
    assert len(done) == 6


@pytest.mark.parametrize("harm", ["shorter", "longer", "zeros", "header", "json", "meta", "half", "gone"])
def test_a_damaged_cache_is_noticed_and_rebuilt(folder, own_cache, monkeypatch, harm):
    whole = np.array(open_source(folder).images)
    array, meta = next(own_cache.glob("*.npy")), next(own_cache.glob("*.json"))
    data = array.read_bytes()
    if harm == "shorter":
        array.write_bytes(data[:-1])
    elif harm == "longer":
        array.write_bytes(data + b"x")
    elif harm == "zeros":
        array.write_bytes(data[:-5000] + bytes(5000))
    elif harm == "header":
        array.write_bytes(b"\0" * 20 + data[20:])
    elif harm == "json":
        meta.write_text(meta.read_text()[:-10])
    elif harm == "half":
        meta.write_text("[]")
    elif harm == "meta":
        described = json.loads(meta.read_text())
        described["measured"][0][0] += 0.1
        meta.write_text(json.dumps(described))
    else:
        array.unlink()
    done = builds(monkeypatch)
    np.testing.assert_array_equal(open_source(folder).images, whole)
    assert len(done) == 1


def test_a_failed_build_leaves_nothing_and_an_old_one_is_cleared(folder, own_cache, monkeypatch):
    def broken(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(source, "decode_samples", broken)
        with pytest.raises(KeyboardInterrupt):
            open_source(folder)
    assert not list(own_cache.glob("*.npy")) and not list(own_cache.glob("*.tmp"))
    key = next(own_cache.glob("*.lock")).stem
    (own_cache / f"{key}.99999.npy.tmp").write_bytes(b"left by a killed process")
    open_source(folder)
    assert not list(own_cache.glob("*.tmp"))


def test_an_open_dataset_survives_a_rebuild(folder, own_cache):
    data = open_source(folder)
    next(own_cache.glob("*.json")).unlink()
    open_source(folder)
    assert data.images[29, 0, 0, 0] == 29


def test_concurrent_builders_build_once(tmp_path):
    """A file lock belongs to whoever opened the file: threads stand for processes here."""
    built, waited = [], []

    def build(path: Path) -> dict[str, object]:
        built.append(path)
        writer = cache.ArrayWriter(path, (2,), "uint8")
        time.sleep(0.3)
        writer.append(np.array([1, 2], np.uint8))
        writer.close()
        return {}

    with ThreadPoolExecutor(3) as pool:
        opened = [pool.submit(cache.load_or_build, tmp_path, "key", build, waited.append) for _ in range(3)]
    assert [future.result()[0].tolist() for future in opened] == [[[1, 2]]] * 3
    assert len(built) == 1 and waited and f"process {os.getpid()} on " in waited[-1]


def test_writer_counts_what_came(tmp_path):
    writer = cache.ArrayWriter(tmp_path / "x.npy", (1, 2, 2), "uint16")
    for value in range(12):
        writer.append(np.full((1, 2, 2), value, np.uint16))
    with pytest.raises(ValueError, match="does not fit"):
        writer.append(np.zeros((1, 2, 2), np.uint8))
    writer.close()
    assert np.load(tmp_path / "x.npy")[:, 0, 0, 0].tolist() == list(range(12))


def test_where_the_cache_is(tmp_path, monkeypatch):
    assert cache.cache_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    monkeypatch.setenv("OSTEON_CACHE", str(tmp_path / "env"))
    assert cache.cache_folder(None) == tmp_path / "env"
    monkeypatch.delenv("OSTEON_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder(None) == tmp_path / ".cache" / "osteon"
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="OSTEON_CACHE"):
        cache.cache_folder(tmp_path / "file" / "x")


def test_a_full_disk_is_told(folder, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(source, "decode_samples", full)
    with pytest.raises(DataError, match=r"No space left.*GB free.*OSTEON_CACHE"):
        open_source(folder)
