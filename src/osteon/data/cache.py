"""Decoded images on disk: one memory-mapped array a source, written once, atomically, by one process at a time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from osteon.core import lock
from osteon.core.atomic import StorageError
from osteon.core.errors import DataError
from osteon.data.listing import raw_bytes

#: Changes whenever decoding rules or the layout of the cache change.
VERSION = 3
_HEADER = 128


def cache_folder(cache: str | Path | None) -> Path:
    """Where decoded images are kept: the argument, else ``$OSTEON_CACHE``, else ``~/.cache/osteon``."""
    folder = Path(cache or os.environ.get("OSTEON_CACHE") or Path.home() / ".cache" / "osteon").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"The cache folder cannot be made: {error.strerror or error}.", where=str(folder),
                        fix="Set OSTEON_CACHE to a folder you can write to.") from error
    return folder


class ArrayWriter:
    """Appends images to an ``.npy`` file whose length is known only at the end.

    Args:
        path: the file, made anew.
        shape: shape of one image, (C, S, S).
        dtype: value type.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str) -> None:
        self.shape, self.dtype, self.count = shape, np.dtype(dtype), 0
        self.hash = hashlib.blake2b(digest_size=16)
        self.file = path.open("wb")
        self.file.write(self._header())

    def _header(self) -> bytes:
        # Format 1.0, padded to a fixed length so that the final count can be written over the first guess.
        text = repr({"descr": self.dtype.str, "fortran_order": False, "shape": (self.count, *self.shape)}).encode()
        return b"\x93NUMPY\x01\x00" + (_HEADER - 10).to_bytes(2, "little") + text.ljust(_HEADER - 11) + b"\n"

    def append(self, image: np.ndarray) -> None:
        """Write one image, (C, S, S)."""
        if image.shape != self.shape or image.dtype != self.dtype:
            raise ValueError(f"image {image.shape} {image.dtype} does not fit {self.shape} {self.dtype}")
        data = raw_bytes(image)
        self.hash.update(data)
        self.file.write(data)
        self.count += 1

    def close(self) -> None:
        """Write the final length and make everything durable."""
        self.file.seek(0)
        self.file.write(self._header())
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()


def load(folder: Path, key: str) -> tuple[np.ndarray, dict[str, Any]] | None:
    """The cached array (memory-mapped) and its description, or None if there is none or it is damaged."""
    path, note = folder / f"{key}.npy", folder / f"{key}.json"
    try:
        meta = json.loads(note.read_text(encoding="utf-8"))
        if meta.pop("check") != _check(meta) or meta["version"] != VERSION:
            return None
        if path.stat().st_size != meta["bytes"] or _sample(path) != meta["sample"]:
            return None
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError):
        return None
    return (images, meta) if list(images.shape) == meta["shape"] and images.dtype.str == meta["dtype"] else None


def load_or_build(folder: Path, key: str, build: Callable[[Path], dict[str, Any]],
                  waiting: Callable[[str], None] = lambda _holder: None) -> tuple[np.ndarray, dict[str, Any]]:
    """The cached array and its description, built first if need be.

    Args:
        folder: cache folder.
        key: fingerprint of source and options.
        build: writes the ``.npy`` to the path it is given, durably, and returns the description.
        waiting: called, with who it is, while another process builds the same entry.
    """
    found = load(folder, key)
    if found is not None:
        return found
    try:
        with _lock(folder / f"{key}.lock", waiting):
            found = load(folder, key)
            if found is not None:
                return found
            for stale in folder.glob(f"{key}.*.tmp"):  # left by a builder that was killed: we hold the lock
                stale.unlink(missing_ok=True)
            _commit(folder, key, build)
    except (OSError, StorageError) as error:
        free = shutil.disk_usage(folder).free / 1e9
        reason = error.what if isinstance(error, StorageError) else error.strerror or error
        raise DataError(f"Decoded images cannot be written to the cache: {reason} ({free:.1f} GB free).",
                        where=str(folder), fix="Make room, or set OSTEON_CACHE to another folder.") from error
    found = load(folder, key)
    if found is None:
        raise DataError("The cache was damaged right after it was written.", where=str(folder / key),
                        fix="Check the disk, or set OSTEON_CACHE to another folder.")
    return found


def _commit(folder: Path, key: str, build: Callable[[Path], dict[str, Any]]) -> None:
    temporary, note = folder / f"{key}.{os.getpid()}.npy.tmp", folder / f"{key}.{os.getpid()}.json.tmp"
    try:
        meta = build(temporary)
        images = np.load(temporary, mmap_mode="r", allow_pickle=False)
        meta.update(version=VERSION, bytes=temporary.stat().st_size, sample=_sample(temporary),
                    shape=list(images.shape), dtype=images.dtype.str)
        with note.open("w", encoding="utf-8") as file:
            json.dump({**meta, "check": _check(meta)}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, folder / f"{key}.npy")
        os.replace(note, folder / f"{key}.json")
        with contextlib.suppress(OSError):  # some file systems cannot sync a folder
            handle = os.open(folder, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
    finally:
        temporary.unlink(missing_ok=True)
        note.unlink(missing_ok=True)


@contextlib.contextmanager
def _lock(path: Path, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold a file lock, which the system releases however its holder ends."""
    handle = lock.wait(path, waiting)
    try:
        yield
    finally:
        lock.release(handle)


def _check(meta: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(meta, sort_keys=True).encode(), digest_size=16).hexdigest()


def _sample(path: Path, blocks: int = 32, length: int = 4096) -> str:
    """Digest of blocks spread over a file: finds holes and overwritten parts without reading gigabytes."""
    size = path.stat().st_size
    mark = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        for i in range(blocks):
            file.seek(max(0, size - length) * i // (blocks - 1))
            mark.update(file.read(length))
    return mark.hexdigest()
