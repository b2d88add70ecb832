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
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class DiskFullError(OsteonError):
    """There is no room left where a file was to be written."""

    code = 2


def is_full(error: BaseException) -> bool:
    """Whether an error means "no space": safetensors reports the errno only inside its text."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return any(f"os error {number})" in str(error) for number in _FULL)


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
        DiskFullError: no space left; the message says what was kept. After any failure the old file is untouched and
            the temporary one is gone.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
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
        if is_full(error):
            kept = "The previous file is complete and was kept." if target.exists() else "Nothing was left behind."
            raise DiskFullError(f"No space left to write {target.name}. {kept}", where=str(target.parent),
                                fix="Free some space there and run the same command again.") from error
        raise
    _flush_folder(target.parent)


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
