"""Durable writes: a file is either the old one or the new one, never half of each.

The new content goes to a sibling file in the same folder (a rename across file systems is not atomic), is flushed to
the disk, renamed over the target, and the folder entry is flushed as well.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from osteon.core.errors import OsteonError

#: What a temporary sibling looks like: ``.NAME.PID.RANDOM.tmp``; safetensors in turn writes ``.tmpRANDOM`` first.
_TEMP = re.compile(r"^(\..+\.\d+\.[0-9a-f]{8}\.tmp|\.tmp[A-Za-z0-9]{6})$")
_FULL = {errno.ENOSPC: "No space left", errno.EDQUOT: "The disk quota is used up: no space left",
         errno.EFBIG: "A file may not grow so large here: no space left"}
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)


class StorageError(OsteonError):
    """A file could not be written: the folder is read-only, the disk failed or is full."""

    code = 2


class DiskFullError(StorageError):
    """There is no room left where a file was to be written."""


def storage_error(error: BaseException, name: str, where: str | os.PathLike[str], kept: str) -> StorageError | None:
    """What to tell the user about a failed write, or None when the system did not refuse it.

    Args:
        error: what was raised.
        name: of the file.
        where: its folder.
        kept: a sentence on what is still there.
    """
    number = _number(error)
    if number is None:
        return None
    if number in _FULL:
        return DiskFullError(f"{_FULL[number]} to write {name}. {kept}", where=str(where),
                             fix="Free some space there and run the same command again.")
    if number in _CLOSED:
        return StorageError(f"{name} may not be written ({os.strerror(number)}). {kept}", where=str(where),
                            fix="Make the folder writable and run the same command again, or choose another --out.")
    return StorageError(f"{name} could not be written ({os.strerror(number)}). {kept}", where=str(where),
                        fix="Check the disk and run the same command again, or choose an --out on another one.")


def _number(error: BaseException) -> int | None:
    """The system's number of an error; safetensors has it only inside its text."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_folder(folder: Path) -> None:
    # Some network file systems cannot flush a folder; the rename itself has succeeded by then.
    with suppress(OSError):
        _flush(folder)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary, empty sibling of ``path`` to write to; put it in place, durably, when the block ends well.

    Args:
        path: the file to write. Missing parent folders are created; a link is followed.

    Raises:
        StorageError: no space left, a read-only folder, a failing disk; the message says what was kept. After any
            failure the old file is untouched and the temporary one is gone.
    """
    target = Path(os.path.realpath(path))
    temporary = target.parent / f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        # Some writers make private files of their own; others are to read a shared run as any other file.
        temporary.chmod(mode)
        _flush(temporary)
        os.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        kept = "The previous file is complete and was kept." if target.exists() else "Nothing was left behind."
        told = storage_error(error, target.name, target.parent, kept)
        if told is None:
            raise
        raise told from error
    _flush_folder(target.parent)


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder with its parents, or use the one there is.

    Raises:
        StorageError: the system refuses.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        told = storage_error(error, folder.name, folder.parent, "Nothing was left behind.")
        raise error if told is None else told from error
    return folder


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path`` so that a crash leaves the old file or the new one."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8 to ``path`` so that a crash leaves the old file or the new one."""
    write_bytes(path, text.encode("utf-8"))


def remove_leftovers(folder: str | os.PathLike[str]) -> list[Path]:
    """Delete the temporary files that killed writers left in ``folder`` and return them.

    Only for a folder nobody else is writing to: hold its lock.
    """
    gone = []
    for entry in Path(folder).iterdir() if Path(folder).is_dir() else ():
        if _TEMP.match(entry.name):
            with suppress(OSError):
                entry.unlink()
                gone.append(entry)
    return gone
