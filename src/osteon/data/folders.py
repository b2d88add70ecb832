"""Image folders: flat, a subfolder a class, or train/test folders of either."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from osteon.core.errors import DataError
from osteon.data.changes import settle
from osteon.data.listing import Listing, RawLabel, Skipped, digest_of, unique_ids
from osteon.modalities import one_of
from osteon.modalities.image import SUFFIXES

#: Folder and file names that mean a part of the data and not a class.
SPLIT_NAMES = ("train", "training", "test", "testing", "val", "valid", "validation", "dev")


@dataclass
class Walk:
    """Files under a folder, in sorted order: (relative parts, size in bytes, times of change in ns)."""

    root: Path
    files: list[tuple[tuple[str, ...], int, tuple[int, int]]] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    skipped: list[Skipped] = field(default_factory=list)
    repeated: int = 0


#: Folders gone through while one source is listed, where all files were others: their endings are known.
_LOOKS: ContextVar[dict[Path, Walk] | None] = ContextVar("osteon-looks", default=None)


@contextlib.contextmanager
def one_look() -> Iterator[None]:
    """While one source is listed, a folder is not gone through again for endings that it does not have."""
    token = _LOOKS.set({})
    try:
        yield
    finally:
        _LOOKS.reset(token)


def walk(root: Path, suffixes: frozenset[str]) -> Walk:
    """Every file with one of ``suffixes``; links are followed, but no folder is entered twice; hidden names ignored."""
    looks = _LOOKS.get()
    held = looks.get(root) if looks is not None else None
    if held is not None and not suffixes & set(held.others):
        return Walk(root, others=Counter(held.others), repeated=held.repeated)
    found = _walk(root, suffixes)
    if looks is not None and not found.files and not found.skipped:
        looks[root] = found
    return found


def _walk(root: Path, suffixes: frozenset[str]) -> Walk:
    found = Walk(root)
    seen: set[tuple[int, int]] = set()
    stack: list[tuple[str, ...]] = [()]
    while stack:
        parts = stack.pop()
        folder = root.joinpath(*parts)
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                found.repeated += 1
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as scan:
                entries = sorted((e for e in scan if not e.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            found.skipped.append(Skipped(show(parts) + "/", f"folder cannot be read: {error.strerror or error}"))
            continue
        below = []
        for entry in entries:
            path, suffix = (*parts, entry.name), ending(entry.name)
            try:
                if entry.is_dir():
                    below.append(path)
                    continue
                if suffix not in suffixes:
                    found.others[suffix or "(no ending)"] += 1
                    continue
                status = entry.stat()
                if stat.S_ISREG(status.st_mode):
                    found.files.append((path, status.st_size, (status.st_mtime_ns, status.st_ctime_ns)))
                else:  # opening a pipe would wait for ever
                    found.skipped.append(Skipped(show(path), "is not a regular file"))
            except OSError as error:
                found.skipped.append(Skipped(show(path), f"cannot be read: {error.strerror or error}"))
        stack.extend(reversed(below))
    found.files.sort()
    settle(max((max(times) for _, _, times in found.files), default=0))
    return found


def ending(name: str) -> str:
    """The ending of a file's name in lower case; of compressed files both parts, such as ``.nii.gz``."""
    stem, last = os.path.splitext(name.lower())
    return os.path.splitext(stem)[1] + last if last == ".gz" else last


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts ``frame2`` before ``frame10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def show(parts: tuple[str, ...]) -> str:
    """A relative path as an id: forward slashes, and bytes that are no UTF-8 replaced, to be written anywhere."""
    return os.fsencode("/".join(parts)).decode("utf-8", "replace")


def list_folder(root: Path, source: str, *, suffixes: frozenset[str] = SUFFIXES,
                samples: str = "images") -> Listing | None:
    """Images under a folder, or None when there is none. Subfolders are classes if no image lies beside them.

    Args:
        root: the folder.
        source: as given by the user.
        suffixes: endings of the files that count.
        samples: what they are called.
    """
    found = walk(root, suffixes)
    if not _any(found, source, samples):
        return None
    stamp = _stamp(found)
    return _named_by_place(found, [path for path, _, _ in found.files], source, samples, stamp)


def list_series(root: Path, source: str, *, suffixes: frozenset[str], samples: str) -> Listing | None:
    """Folders of files under a folder, each one sample, such as the slices of a scan; None when there is none.

    Args:
        root: the folder; it is the only sample where files lie in it and nowhere else.
        source: as given by the user.
        suffixes: endings of the files that count.
        samples: what the samples are called.
    """
    found = walk(root, suffixes)
    if not _any(found, source, samples):
        return None
    paths = sorted({path[:-1] for path, _, _ in found.files}, key=lambda path: [natural(part) for part in path])
    if () in paths and len(paths) > 1:
        raise DataError(f"Files lie in the folder itself and in its subfolders, so which of them are one of the "
                        f"{samples} is unknown.", where=source, fix=f"Give each of the {samples} a folder of its own.")
    stamp = _stamp(found)
    return _named_by_place(found, paths, source, samples, stamp)


def _stamp(found: Walk) -> str:
    lines = (f"{'/'.join(path)}|{size}|{time}" for path, size, time in found.files)
    return digest_of(chain([found.root.resolve()], lines))


def _any(found: Walk, source: str, samples: str) -> bool:
    """Whether there are files; DataError when what there is cannot be read."""
    if not found.files and found.skipped:
        first = found.skipped[0]
        raise DataError(f"No readable {one_of(samples)} in this folder; {first.id} {first.reason}.",
                        where=source, fix="Check the permissions and links.")
    return bool(found.files)


def _named_by_place(found: Walk, paths: list[tuple[str, ...]], source: str, samples: str, stamp: str) -> Listing:
    """A listing of files or folders: splits and classes by the folders they lie in."""
    root = found.root
    splits, labels, notes = by_place(paths, samples)
    if found.others:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in found.others.most_common(4))
        notes.append(f"ignored: {sum(found.others.values()):,} files that are not {samples} by their ending ({kinds})")
    if found.repeated:
        notes.append(f"links: {found.repeated} folders seen already through a link were not entered again")
    return Listing(source, unique_ids(show(path) or root.name for path in paths), lambda i: root.joinpath(*paths[i]),
                   stamp, labels=labels, split=splits,
                   skipped=found.skipped, notes=notes)


def by_place(paths: list[tuple[str, ...]],
             samples: str) -> tuple[list[str] | None, list[RawLabel] | None, list[str]]:
    """Splits and classes of relative paths by the folders they lie in, None where they are neither, and the rules."""
    splits: list[str] | None = None
    inner, notes = paths, list[str]()
    if all(len(path) > 1 and path[0].lower() in SPLIT_NAMES for path in paths):
        splits, inner = [path[0] for path in paths], [path[1:] for path in paths]
    labels: list[RawLabel] | None = None
    nested = [len(path) > 1 for path in inner]
    if all(nested):
        names = {name: show((name,)) for name in {path[0] for path in inner}}
        labels = [names[path[0]] for path in inner]
        notes.append(f"classes: the names of the subfolders (rule: {samples} lie in subfolders, none beside them)")
    elif any(nested):
        notes.append(f"classes: none (rule: {samples} lie in subfolders and beside them, so subfolders are not "
                     "classes)")
    return splits, labels, notes
