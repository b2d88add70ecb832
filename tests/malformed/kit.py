"""What a malformed input is held to: it loads by a stated rule, is skipped by name, or refused in one clear error."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import resource
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from osteon.core.errors import OsteonError
from osteon.data import Dataset, open_source

#: Address space a case may take beyond what the process has already: headers that claim more must be checked first.
ROOM = 3 * 2**30
#: Words of a message that show that a claim was believed and memory was asked for.
BELIEVED = ("MemoryError", "Unable to allocate", "malloc", "std::bad_alloc", "Traceback")

Make = Callable[[Path], Any]
Open = Callable[[Any], Any]


@dataclass(frozen=True)
class Loads:
    """It loads: so many samples, of this shape, and whatever else ``check`` asserts.

    Args:
        count: of samples; None where the result is no Dataset.
        shape: of one sample (C, *extent).
        check: called with what was opened.
        note: words of a note that say by which rule.
    """

    count: int | None = None
    shape: tuple[int, ...] | None = None
    check: Callable[[Any], object] | None = None
    note: str = ""

    def judge(self, made: Any, error: OsteonError | None) -> None:
        """Raise AssertionError where the rule is not kept."""
        assert error is None, f"refused: {error}"
        if self.count is not None:
            assert len(made) == self.count, (len(made), made.skipped, made.notes)
            assert not made.skipped, made.skipped
        if self.shape is not None:
            assert made.images.shape[1:] == self.shape, made.images.shape
        if self.note:
            assert any(self.note in note for note in made.notes), made.notes
        _finite(made)
        if self.check is not None:
            told = self.check(made)
            assert told is None or told is True or bool(np.all(told)), told


@dataclass(frozen=True)
class Skipped:
    """The others load and each of these is named with a reason.

    Args:
        count: of samples that load.
        reasons: part of an id -> words of its reason.
    """

    count: int
    reasons: dict[str, str]

    def judge(self, made: Any, error: OsteonError | None) -> None:
        """Raise AssertionError where the rule is not kept."""
        assert error is None, f"refused: {error}"
        told = {item.id: item.reason for item in made.skipped}
        assert len(made) == self.count, (len(made), told)
        assert len(told) == len(self.reasons), told
        for name, words in self.reasons.items():
            found = [reason for key, reason in told.items() if name in key]
            assert len(found) == 1 and words in found[0], (name, words, told)
            assert not any(word in found[0] for word in BELIEVED), found
        _finite(made)


#: Python's csv reads null bytes from 3.11 on and refuses them before.
READS_NULL = sys.version_info >= (3, 11)


@dataclass(frozen=True)
class Refused:
    """One error that says what is wrong (with these words), where, and what to do.

    Args:
        words: that the message must contain.
    """

    words: tuple[str, ...]

    def judge(self, made: Any, error: OsteonError | None) -> None:
        """Raise AssertionError where the rule is not kept."""
        assert error is not None, f"accepted in silence: {getattr(made, 'notes', made)!r:.500}"
        assert error.what and error.where and error.fix, (error.what, error.where, error.fix)
        assert error.code in (2, 3, 5), error.code
        for word in self.words:
            assert word in str(error), (word, str(error))
        assert not any(word in str(error) for word in BELIEVED), str(error)
        str(error).encode("utf-8")  # a terminal must be able to show it
        assert len(str(error)) < 4000, len(str(error))


def refused(*words: str) -> Refused:
    """One clear error with these words."""
    return Refused(words)


def skipped(count: int, **reasons: str) -> Skipped:
    """So many load; ``name="words"`` of those that are skipped."""
    return Skipped(count, reasons)


@dataclass(frozen=True)
class Case:
    """One malformed or odd input.

    Args:
        name: unique.
        make: writes files into a folder and returns what is opened (a source, or anything ``open`` takes).
        rule: what must come of it.
        open: how it is opened; by default as the verbs open a source.
        options: of opening.
    """

    name: str
    make: Make
    rule: Loads | Skipped | Refused
    open: Open | None = None
    options: dict[str, Any] = field(default_factory=dict)


def run(case: Case, folder: Path) -> None:
    """Make, open and judge a case. Any error but an OsteonError goes through: it is a defect."""
    with contextlib.chdir(folder) if hasattr(contextlib, "chdir") else contextlib.nullcontext():
        subject = case.make(folder)
        opener = case.open or read
        made, error = None, None
        with little_room():
            try:
                made = opener(subject, **case.options)
            except OsteonError as told:
                error = told
        case.rule.judge(made, error)
    assert not list(folder.rglob("executed")), "something in the file was run"


def read(source: Any, **options: Any) -> Dataset:
    """Open a source as the verbs do, but for the cache, and look at every sample."""
    data = open_source(str(source), **{"cache": False, "max_skipped": 0.9, **options})
    assert len(set(data.ids)) == len(data) == len(data.images), "an id a sample"
    assert data.labels is None or len(data.labels) == len(data)
    as_csv(data)
    return data


def as_csv(data: Dataset) -> None:
    """Ids and reasons must survive being written, as skipped.csv and lists of ids are."""
    text = io.StringIO()
    rows = [*([name, ""] for name in data.ids), *([item.id, item.reason] for item in data.skipped)]
    csv.writer(text, lineterminator="\n").writerows(rows)
    text.getvalue().encode("utf-8")
    assert list(csv.reader(io.StringIO(text.getvalue(), newline=""))) == rows


def _finite(made: Any) -> None:
    if isinstance(made, Dataset):
        values = np.asarray(made.images)
        assert values.dtype.kind in "iu" or bool(np.isfinite(values).all()), "values that are not finite"
        assert np.isfinite([*made.spec.mean, *made.spec.std]).all()


@contextlib.contextmanager
def little_room() -> Iterator[None]:
    """At most :data:`ROOM` bytes of further address space, so that a believed claim fails and is seen."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except OSError:  # no such file system here: the time limit of a case still holds
        yield
        return
    most = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most if soft < 0 else min(soft, most), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# -- files ------------------------------------------------------------------------------------------------------------

def put(folder: Path, name: str, data: bytes | str) -> Path:
    """Write a file below a folder, making the folders between."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def one(name: str, data: bytes | str) -> Make:
    """A case that is one file, opened itself."""
    return lambda folder: put(folder, name, data)


def files(**named: bytes | str) -> Make:
    """A case that is a folder of files: ``a_png=...`` is written as ``a.png``, ``x__y_png`` as ``x/y.png``."""
    def make(folder: Path) -> Path:
        for key, data in named.items():
            stem, _, ending = key.replace("__", "/").rpartition("_")
            put(folder / "data", f"{stem}.{ending}", data)
        return folder / "data"

    return make


def among(good: dict[str, bytes], name: str, bad: bytes) -> Make:
    """A damaged file among good ones in one folder."""
    def make(folder: Path) -> Path:
        for key, data in {**good, name: bad}.items():
            put(folder / "data", key, data)
        return folder / "data"

    return make


def listed(text: bytes | str, name: str = "list.csv", **beside: bytes) -> Make:
    """A manifest with files beside it; ``a_png=...`` is ``a.png``."""
    def make(folder: Path) -> Path:
        files(**beside)(folder)
        return put(folder / "data", name, text)

    return make


def picture(seed: int = 0, size: tuple[int, int] = (8, 8), mode: str = "RGB", kind: str = "PNG", **save: Any) -> bytes:
    """An encoded image of random pixels."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    memory = io.BytesIO()
    Image.fromarray(values).convert(mode).save(memory, kind, **save)
    return memory.getvalue()


def npy(values: Any, **save: Any) -> bytes:
    """An array as ``.npy``."""
    memory = io.BytesIO()
    np.save(memory, values, **save)
    return memory.getvalue()


def npz(compressed: bool = False, **arrays: Any) -> bytes:
    """Arrays as ``.npz``."""
    memory = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(memory, **arrays)
    return memory.getvalue()


def npy_claim(shape: str, kind: str = "'|u1'", data: bytes = b"\0" * 64, version: bytes = b"\1\0") -> bytes:
    """An ``.npy`` whose header says anything at all."""
    text = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2 if version[0] == 1 else 4, "little") + text + data


def pipe(folder: Path, name: str) -> Path:
    """A named pipe nobody writes to: opening it waits for ever."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    return path


def socket_file(folder: Path, name: str) -> Path:
    """A socket in a folder."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, stat.S_IFSOCK | 0o600)
    return path


def cases(prefix: str, *given: Case, options: dict[str, Any] | None = None) -> list[Case]:
    """Cases with a common prefix and common options."""
    return [replace(case, name=f"{prefix}: {case.name}", options={**(options or {}), **case.options}) for case in given]


def scratch() -> Path:
    """A folder of its own, for examples of a property."""
    return Path(tempfile.mkdtemp())
