"""One process at a time in a folder: a lock that the operating system frees when its holder ends, however it ends."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from osteon.core.atomic import make_folder, remove_leftovers, storage_error
from osteon.core.errors import InUseError, UsageError

#: Lock handles of this process. A forked child closes its copies, or an orphan would keep a dead run locked.
_HELD: set[int] = set()


def _forget() -> None:
    for handle in _HELD:
        with suppress(OSError):
            os.close(handle)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def take(file: Path, *, what: str = "run folder", fix: str = "Wait for it to end, or choose another --out.") -> int:
    """Lock ``file`` and write into it who holds it; the descriptor returned is the lock.

    Args:
        file: the lock; its folder exists.
        what: is locked, for the message.
        fix: what somebody can do who is refused.

    Raises:
        InUseError: somebody else holds it.
        UsageError: the file system has no locks.
        StorageError: no file can be made there.
    """
    handle = _lock(file, what, fix)
    while not _is_the_one(handle, file):  # its holder deleted it while we waited for it: lock the new one
        os.close(handle)
        handle = _lock(file, what, fix)
    note = {"pid": os.getpid(), "host": socket.gethostname(), "command": " ".join(sys.argv)[:500],
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    # On a full disk the lock holds all the same, only its holder has no name.
    with suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, (json.dumps(note) + "\n").encode(), 0)
    _HELD.add(handle)
    return handle


def _is_the_one(handle: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(file))
    except FileNotFoundError:
        return False


def _lock(file: Path, what: str, fix: str) -> int:
    import fcntl

    try:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        told = storage_error(error, file.name, file.parent, "Nothing was changed.")
        raise error if told is None else told from error
    try:
        for last in (*([False] * 40), True):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # A child forked a moment before its parent was killed holds the lock until it has begun to run.
                if last or not _is_dead(file):
                    raise
                time.sleep(0.05)
    except BlockingIOError:
        found = holder(file)
        os.close(handle)
        raise InUseError(f"The {what} is in use by {found}.", where=str(file.parent), fix=fix) from None
    except OSError as error:
        os.close(handle)
        raise UsageError(f"The file system offers no locks ({error.strerror}).", where=str(file.parent),
                         fix="Choose an --out on a local disk.") from error
    return handle


def release(handle: int) -> None:
    """Free the lock; the file stays, empty."""
    if handle in _HELD:  # not in a forked child, which never had it
        _HELD.discard(handle)
        with suppress(OSError):
            os.ftruncate(handle, 0)
        os.close(handle)


@contextmanager
def alone(folder: str | os.PathLike[str], *, name: str = "lock") -> Iterator[Path]:
    """Be the only process that writes to a folder of results; the folder is made if need be.

    A lock file that was not there before is gone afterwards, as is a folder in which nothing was written: what is
    passed on holds nothing but results.

    Args:
        folder: where results go.
        name: of the lock; another one than ``lock`` stands for a single file.

    Raises:
        InUseError: another process is at it; named by number, host and start.
    """
    there = Path(folder).exists()
    place = make_folder(folder)
    file = place / name
    new = not file.exists()
    handle = take(file, what="folder" if name == "lock" else "file")
    try:
        if name == "lock":
            remove_leftovers(place)
        yield place
    finally:
        if new and handle in _HELD:
            with suppress(OSError):
                file.unlink()
        release(handle)
        if not there:
            with suppress(OSError):  # it holds something
                place.rmdir()


def wait(file: Path, told: Callable[[str], None], *, pause: float = 0.1) -> int:
    """Lock ``file`` as :func:`take` does, waiting for whoever holds it; ``told`` is called with who that is."""
    while True:
        try:
            return take(file, what="file")
        except InUseError:
            told(holder(file))
            time.sleep(pause)


def _is_dead(file: Path) -> bool:
    """Whether the process that wrote itself into the lock was one of this machine and is gone."""
    try:
        note = json.loads(file.read_text(encoding="utf-8"))
        if note["host"] != socket.gethostname():
            return False
        os.kill(int(note["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return False


def holder(file: Path) -> str:
    """Who wrote itself into a lock, in words."""
    try:
        note = json.loads(file.read_text(encoding="utf-8"))
        return f"process {note['pid']} on {note['host']} since {note['time']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
