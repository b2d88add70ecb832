"""Plant every recorded fault in its method and see that the method's own tests notice: ``make faults``.

A fault is an entry of ``tests/faults/<name>.json``: text to find in ``src/osteon/<room>/<name>.py``, what to put in its
place, and why it matters. Files on disk are not touched: the changed source is given to the import system of a forked
child, which then runs the method's test file. A fault that no test notices is printed and makes the command fail.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import torch

from benchmarks.journal import Journal, mark

ROOT = Path(__file__).parents[1]
ROOMS = ("objectives", "adapters", "backbones", "evaluators", "parts", "train", "views", "selectors", "mergers",
         "compressors", "data", "report", "core", "verbs")


class _Planted(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from changed source."""

    def __init__(self, name: str, file: Path, source: str) -> None:
        self.name, self.file, self.source = name, file, source

    def find_spec(self, fullname: str, path: object, target: ModuleType | None = None) -> ModuleSpec | None:
        """Claim only the planted module."""
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.file, loader=self)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Use the default module."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Run the changed source."""
        exec(compile(self.source, str(self.file), "exec"), module.__dict__)


def caught(name: str, file: Path, source: str, test: Path) -> bool:
    """Whether the method's tests fail with this source, in a forked child."""
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        sys.meta_path.insert(0, _Planted(name, file, source))
        for loaded in [key for key in sys.modules if key.split(".")[0] == "osteon"]:
            del sys.modules[loaded]  # what keeps the journal has imported some of it as it is
        sys.dont_write_bytecode = True
        import pytest

        os._exit(int(pytest.main([str(test), "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"])))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def replay(name: str) -> tuple[int, list[str]]:
    """Plant every fault recorded for a file: how many there are, and what was not noticed."""
    torch.set_num_threads(1)
    sys.path.insert(0, str(ROOT))
    record, file, test, room = paths(name)
    source, faults, missed = file.read_text(encoding="utf-8"), json.loads(record.read_text(encoding="utf-8")), []
    for fault in faults:
        if source.count(fault["find"]) != 1:
            missed.append(f"{name}: not found exactly once: {fault['find']!r}")
        elif not caught(f"osteon.{room}.{name}", file, source.replace(fault["find"], fault["replace"]), test):
            missed.append(f"{name}: not noticed: {fault['why']}")
    return len(faults), missed


def paths(name: str) -> tuple[Path, Path, Path, str]:
    """The record of the faults of a file, the file, its tests, and the room it is in."""
    room = next(r for r in ROOMS if (ROOT / "src" / "osteon" / r / f"{name}.py").exists())
    return (ROOT / "tests" / "faults" / f"{name}.json", ROOT / "src" / "osteon" / room / f"{name}.py",
            ROOT / "tests" / room / f"test_{name}.py", room)


def main(names: list[str]) -> int:
    """Replay the faults of the named methods, or of all; 0 when every one was noticed.

    What is done is kept in ``faults.jsonl`` of the cache folder until the file, its tests or its faults change.
    """
    journal, begun = Journal("faults"), time.perf_counter()
    names_all = [record.stem for record in sorted((ROOT / "tests" / "faults").glob("*.json"))]
    wanted = [name for name in names_all if not names or name in names]
    marks = {name: mark(paths(name)[:3]) for name in wanted}
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"),
                             max_workers=len(os.sched_getaffinity(0))) as pool:
        waiting = {pool.submit(replay, name): name for name in wanted if journal.get(name, marks[name]) is None}
        for done in as_completed(waiting):
            name = waiting[done]
            journal.put(name, marks[name], done.result())
            print(line(name, *done.result()), flush=True)
    results: dict[str, tuple[int, list[str]]] = {name: journal.get(name, marks[name]) or (0, []) for name in wanted}
    missed = [text for _, texts in results.values() for text in texts]
    total = sum(count for count, _ in results.values())
    summary = f"{total - len(missed)} of {total} planted faults noticed"
    print("\n".join([*missed, summary + f", {time.perf_counter() - begun:.0f} seconds"]))
    if not names:
        page = ["# Planted faults", "", "Regenerate with `make faults`. Each line: faults planted in a file "
                "that its own tests noticed.", "", "```",
                *(line(n, *results[n]) for n in wanted), *missed, summary, "```", ""]
        (ROOT / "docs" / "evidence" / "faults.md").write_text("\n".join(page), encoding="utf-8")
    return 1 if missed else 0


def line(name: str, count: int, missed: list[str]) -> str:
    """One row of the table."""
    return f"{name:24} {count - len(missed)}/{count} noticed"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
