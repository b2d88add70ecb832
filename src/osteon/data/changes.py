"""Files that change while they are read: known by size and times, noticed, read once more, then refused by name."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from osteon.core.errors import DataError
from osteon.data.listing import digest, digest_of

Result = TypeVar("Result")
#: Size, time of the last write and of the last change of any kind (which nobody can set), in ns; None: not there.
State = tuple[int, int, int] | None
#: Nanoseconds within which a file system may give two writes the same time.
TICK = 20_000_000
_FIX = "Wait until it is written, or give a copy. Files are best written under another name and then renamed."


@dataclass
class Watch:
    """Files that are read as a whole while a source is opened, with the state each had before."""

    seen: dict[Path, State] = field(default_factory=dict)

    def changed(self) -> list[Path]:
        """Files that are not as they were."""
        return [path for path, before in self.seen.items() if state(path) != before]


_current: ContextVar[Watch | None] = ContextVar("osteon_watch", default=None)


def state(path: str | Path) -> State:
    """The state of a file, or of a folder with the files in it."""
    try:
        status = os.stat(path)
        if not stat.S_ISDIR(status.st_mode):
            return status.st_size, status.st_mtime_ns, status.st_ctime_ns
        with os.scandir(path) as scan:
            inside = sorted((e.name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for e in scan for s in (e.stat(),))
        return len(inside), status.st_mtime_ns, int(digest(*inside), 16)
    except (OSError, ValueError):  # ValueError: a null byte
        return None


def states(payload: Any) -> Sequence[State]:
    """The states of the files a payload consists of: none for one that is in memory already."""
    parts = payload.values() if isinstance(payload, Mapping) else (payload,)
    return [state(part) for part in parts if isinstance(part, Path)]


def settle(newest: int) -> None:
    """Wait, 20 ms at most, until a write from now on has another time than ``newest`` (ns)."""
    young = newest + TICK - time.time_ns()
    if 0 < young <= TICK:
        time.sleep(young / 1e9)


def watch(*paths: Path) -> None:
    """Note the state of files that are about to be read as a whole, where somebody asks for it."""
    held = _current.get()
    for path in paths if held is not None else ():
        if path not in held.seen:  # type: ignore[union-attr]
            held.seen[path] = found = state(path)  # type: ignore[union-attr]
            settle(max(found[1:]) if found else 0)


def stamp(files: Iterable[str | Path], *more: object) -> str:
    """A digest of the places and states of files; of files that are watched, :func:`check` says whether it still holds.

    Args:
        files: absolute paths where they are texts: of a million files no ``Path`` is made.
        more: what else goes into the digest.
    """
    newest = 0

    def line(file: str | Path) -> str:
        nonlocal newest
        now = state(file)
        newest = max(newest, *now[1:]) if now else newest
        return f"{file if isinstance(file, str) else file.absolute()}|{now or 'missing'}"

    found = digest_of(chain(map(line, files), more))
    settle(newest)
    return found


def check() -> None:
    """Raise DataError if a file that was watched is not as it was."""
    held = _current.get()
    changed = held.changed() if held is not None else []
    if changed:
        raise DataError("The file changed while it was read.", where=str(changed[0]), fix=_FIX)


def steadily(read: Callable[[], Result]) -> Result:
    """What ``read`` gives if no file that it watches changes meanwhile; it gets a second chance.

    Raises:
        DataError: a file changed both times.
    """
    for last in (False, True):
        with _watching() as held:
            try:
                result = read()
                check()
                return result
            except Exception:  # whatever a reader raises on a file that is half written
                changed = held.changed()
                if not changed:
                    raise
                if last:
                    raise DataError("The file changes while it is read: so it did twice.", where=str(changed[0]),
                                    fix=_FIX) from None
    raise AssertionError


@contextlib.contextmanager
def _watching() -> Iterator[Watch]:
    held = Watch()
    token = _current.set(held)
    try:
        yield held
    finally:
        _current.reset(token)
