"""One process at a time in a folder: a lock that the operating system frees when its holder ends, however it ends."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

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


def take(file: Path) -> int:
    """Lock ``file`` and write into it who holds it; the descriptor returned is the lock.

    Raises:
        InUseError: somebody else holds it.
        UsageError: the file system has no locks.
    """
    import fcntl

    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
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
        holder = _holder(file)
        os.close(handle)
        raise InUseError(f"The run folder is in use by {holder}.", where=str(file.parent),
                         fix="Wait for it to end, or choose another --out.") from None
    except OSError as error:
        os.close(handle)
        raise UsageError(f"The file system offers no locks ({error.strerror}).", where=str(file.parent),
                         fix="Choose an --out on a local disk.") from error
    note = {"pid": os.getpid(), "host": socket.gethostname(), "command": " ".join(sys.argv)[:500],
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    os.ftruncate(handle, 0)
    os.pwrite(handle, (json.dumps(note) + "\n").encode(), 0)
    _HELD.add(handle)
    return handle


def release(handle: int) -> None:
    """Free the lock. The file stays, empty: deleting it would let two later processes lock two different files."""
    if handle in _HELD:  # not in a forked child, which never had it
        _HELD.discard(handle)
        os.ftruncate(handle, 0)
        os.close(handle)


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


def _holder(file: Path) -> str:
    try:
        note = json.loads(file.read_text(encoding="utf-8"))
        return f"process {note['pid']} on {note['host']} since {note['time']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
