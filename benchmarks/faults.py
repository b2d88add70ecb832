"""Plant every recorded fault in its method and see that the method's own tests notice: ``make faults``.

A fault is an entry of ``tests/faults/<name>.json``: text to find in ``src/osteon/<room>/<name>.py``, what to put in its
place, and why it matters. Files on disk are not touched: the changed source is given to the import system of a forked
child, which then runs the method's test file. A fault that no test notices is printed and makes the command fail.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import json
import os
import sys
import time
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import torch

ROOT = Path(__file__).parents[1]
ROOMS = ("objectives", "adapters", "backbones", "evaluators", "parts", "train", "views", "selectors", "mergers",
         "compressors")


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
        sys.dont_write_bytecode = True
        import pytest

        os._exit(int(pytest.main([str(test), "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"])))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def main(names: list[str]) -> int:
    """Replay the faults of the named methods, or of all; 0 when every one was noticed."""
    torch.set_num_threads(1)
    sys.path.insert(0, str(ROOT))
    missed, total, begun = [], 0, time.perf_counter()
    lines = []
    for record in sorted((ROOT / "tests" / "faults").glob("*.json")):
        if names and record.stem not in names:
            continue
        room = next(r for r in ROOMS if (ROOT / "src" / "osteon" / r / f"{record.stem}.py").exists())
        file = ROOT / "src" / "osteon" / room / f"{record.stem}.py"
        test = ROOT / "tests" / room / f"test_{record.stem}.py"
        source = file.read_text(encoding="utf-8")
        found = 0
        faults = json.loads(record.read_text(encoding="utf-8"))
        for fault in faults:
            if source.count(fault["find"]) != 1:
                missed.append(f"{record.stem}: not found exactly once: {fault['find']!r}")
                continue
            changed = source.replace(fault["find"], fault["replace"])
            if caught(f"osteon.{room}.{record.stem}", file, changed, test):
                found += 1
            else:
                missed.append(f"{record.stem}: not noticed: {fault['why']}")
        total += len(faults)
        lines.append(f"{record.stem:24} {found}/{len(faults)} noticed")
        print(lines[-1], flush=True)
    for line in missed:
        print(line, flush=True)
    summary = f"{total - len(missed)} of {total} planted faults noticed, {time.perf_counter() - begun:.0f} seconds"
    print(summary)
    if not names:
        page = ["# Planted faults", "", "Regenerate with `make faults`. Each line: faults planted in a method's file "
                "that its own tests noticed.", "", "```", *lines, *missed, summary, "```", ""]
        (ROOT / "docs" / "evidence" / "faults.md").write_text("\n".join(page), encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
