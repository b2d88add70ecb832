"""Arrays on disk, ``.npy`` and ``.npz``: claims of headers are checked before memory is taken, and no code runs."""

from __future__ import annotations

import math
import weakref
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from osteon.core.errors import DataError

_MAGIC, _ZIP = b"\x93NUMPY", (b"PK\3\4", b"PK\5\6")
#: Arrays of an archive that have one entry a sample (or a class).
_ROWS = frozenset(("label", "labels", "y", "class_names", "group", "graph", "batch", "split", "ids"))
#: What may stand beside the samples of an archive.
BESIDE = ("label", "class_names", "group", "split")


def room() -> int:
    """Bytes of memory that can be had: what is available here, or less where the process is limited to less."""
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        import resource
    except ImportError:  # not on this platform
        return free
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    return free if most < 0 else min(free, most - int(psutil.Process().memory_info().vms))


def load(file: Path | BinaryIO, source: str, mmap_mode: Any = None) -> Any:
    """The array of an ``.npy``, or of an open file, which stays open, the array or the archive of an ``.npz``.

    One whose samples do not lie one after the other (Fortran order) is read into memory, mapped or not.

    Raises:
        DataError: neither, damaged, Python objects, or more than the file holds or memory can take.
    """
    try:
        if isinstance(file, Path):
            with file.open("rb") as opened:
                _check_head(opened, source)
                opened.seek(0)
                if opened.read(4) in _ZIP:  # numpy would open it, and leave it open where it is damaged
                    raise DataError("The file is an archive of arrays.", where=source,
                                    fix="Let its name end in .npz.")
        else:
            _check_head(file, source)
            file.seek(0)
        held = np.load(file, mmap_mode=mmap_mode, allow_pickle=False)
        if isinstance(held, np.memmap) and not held.flags.c_contiguous:
            _check_room(held.nbytes, source)
            held = np.load(file, allow_pickle=False)
        if isinstance(held, np.lib.npyio.NpzFile) and held.zip is not None:
            _check_members(held.zip, source)
    except DataError:
        raise
    except Exception as error:  # numpy raises about anything on damaged input
        raise _refused(error, source) from error
    return held


class Rows:
    """Rows of an array one by one; of one that lies in a file through reads, which say so where the file was cut short
    meanwhile: touching a mapping of what is no longer there would end the process.
    """

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.file = array, None
        base = array
        while isinstance(base.base, np.ndarray):
            base = base.base
        if isinstance(base, np.memmap):
            self.base, self.file = base, Path(str(base.filename)).open("rb")  # noqa: SIM115
            weakref.finalize(self, self.file.close)

    def __len__(self) -> int:
        return len(self.array)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, row: int) -> np.ndarray:
        view = self.array[row]
        if self.file is None:
            return view
        self.file.seek(self.base.offset + _address(view) - _address(self.base))
        span = sum((n - 1) * step for n, step in zip(view.shape, view.strides, strict=True)) + view.itemsize
        data = self.file.read(span)
        if len(data) < span:
            raise DataError("The file was cut short while it was read.", where=str(self.base.filename),
                            fix="Write it again.")
        return np.ndarray(view.shape, view.dtype, data, strides=view.strides)


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def members(parts: Any, names: Iterable[str], source: str) -> dict[str, np.ndarray]:
    """The arrays ``names`` of an archive. Raises DataError."""
    try:
        held = {name: parts[name] for name in names}
    except Exception as error:  # numpy and zipfile raise about anything on damaged input
        raise _refused(error, source) from error
    for name, array in held.items():
        if not isinstance(array, np.ndarray):
            raise DataError(f"The member '{name}' of the archive is no array.", where=source,
                            fix="Save it again with np.savez.")
        if name in _ROWS and array.ndim == 0:
            raise DataError(f"The array '{name}' is a single value.", where=source, fix="Save one entry a sample.")
    return {name: _readable(array, name, source) for name, array in held.items()}


def _readable(array: np.ndarray, name: str, source: str) -> np.ndarray:
    """Bytes as the text they are in UTF-8; text as it is, where it is text."""
    if array.dtype.kind not in "SU":
        return array
    try:
        text = np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array
        "".join(text.ravel().tolist()).encode("utf-8").decode("utf-8")  # beyond Unicode it encodes, but to no text
    except (ValueError, SystemError) as error:  # numpy hands code points that no text has to Python
        raise DataError(f"The array '{name}' holds what is no text.", where=source, fix="Save it as text.") from error
    return text


def read_archive(path: Path, source: str, name: str, *, asked: bool) -> dict[str, np.ndarray] | None:
    """The array ``name`` of an ``.npz`` with its labels, class names, groups and splits, as far as it has them.

    None where it has no such array, or is damaged: whoever reads other archives says what is wrong. An error when the
    array was asked for.
    """
    with path.open("rb") as file:
        try:
            parts = load(file, source)
        except DataError:
            if asked:
                raise
            return None
        names = getattr(parts, "files", [])
        if name in names:
            return members(parts, [key for key in (name, *BESIDE) if key in names], source)
    if not asked:
        return None
    raise DataError(f"The archive has no array '{name}'; it has: {', '.join(names) or 'nothing'}.",
                    where=source, fix=f"Save it with np.savez(path, {name}=..., label=...).")


def _check_head(file: BinaryIO, source: str) -> None:
    head = file.read(len(_MAGIC))
    size = file.seek(0, 2)
    if head == _MAGIC:
        file.seek(0)
        _claimed(file, size, source, "The array")
    elif head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise _objects(source)
    elif head[:4] not in _ZIP:
        raise DataError("The file cannot be read: it does not begin as an array or an archive of arrays.", where=source,
                        fix="Save it with np.save or np.savez.")


def _check_members(archive: zipfile.ZipFile, source: str) -> None:
    """Refuse an archive whose arrays claim more than they hold, or together more than memory can take."""
    total = 0
    for member in archive.infolist():
        if member.filename.endswith(".npy"):
            with archive.open(member) as file:
                if file.read(len(_MAGIC)) != _MAGIC:
                    continue  # no array: an error only where it is asked for
            with archive.open(member) as file:
                total += _claimed(file, member.file_size, source, f"The array '{member.filename.removesuffix('.npy')}'")
    _check_room(total, source)


def _check_room(total: int, source: str) -> None:
    if total > room():
        raise DataError(f"The arrays take {total / 1e9:,.1f} GB of memory, {room() / 1e9:,.1f} GB are free.",
                        where=source, fix="Save the samples as .npy in C order (np.ascontiguousarray), which is read "
                        "from the disk as needed, or in several parts.")


def _claimed(file: Any, size: int, source: str, what: str) -> int:
    """Bytes an array's header claims, at most those that follow it."""
    version = np.lib.format.read_magic(file)
    if int.from_bytes(file.read(2 if version == (1, 0) else 4), "little") > size:
        raise ValueError("its header is longer than the file")
    file.seek(len(_MAGIC) + 2)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = read(file)
    if version not in ((1, 0), (2, 0), (3, 0)) or any(isinstance(side, bool) or side < 0 for side in shape):
        raise ValueError(f"version {version}, shape {shape}")
    if kind.hasobject:
        raise _objects(source)
    claimed, there = math.prod(shape) * max(1, kind.itemsize), size - file.tell()
    if claimed > there:
        raise DataError(f"{what} claims {claimed:,} bytes and holds {there:,}: it cannot be read.", where=source,
                        fix="Save it again with np.save or np.savez.")
    return claimed


def _objects(source: str) -> DataError:
    return DataError("The file holds Python objects, which are never loaded because loading them runs code.",
                     where=source, fix="Save plain number or text arrays.")


def _refused(error: Exception, source: str) -> DataError:
    return DataError(f"The arrays cannot be read: {str(error)[:300] or type(error).__name__}", where=source,
                     fix="Save them again with np.save or np.savez.")
