"""What a long benchmark has measured so far, kept in the cache folder, so that a run that was cut off goes on."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from osteon.data.cache import cache_folder


def mark(files: Iterable[Path]) -> str:
    """Fingerprint of the content of some files."""
    content = [path.read_bytes() for path in files]
    return hashlib.blake2b(b"".join(len(c).to_bytes(8, "big") + c for c in content), digest_size=8).hexdigest()


def needed(file: Path, package: Path) -> list[Path]:
    """A module of a package and all that it imports from it, directly or not, at its head or in a function.

    Args:
        file: the module's file.
        package: folder of the package.
    """
    found, left = set(), [file]
    while left:
        file = left.pop()
        if file in found:
            continue
        found.add(file)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = ([a.name for a in node.names] if isinstance(node, ast.Import) else
                     [f"{node.module}.{a.name}" for a in node.names] if isinstance(node, ast.ImportFrom) else [])
            for name in names:
                parts = name.split(".")
                if parts[0] != package.name:
                    continue
                for end in range(2, len(parts) + 1):  # importing a.b.c runs a.b and a.b.c; a imports nothing by itself
                    place = package.joinpath(*parts[1:end])
                    left += [f for f in (place / "__init__.py", place.with_suffix(".py")) if f.is_file()]
    return sorted(found)


class Journal:
    """Results by key; one whose mark has changed since does not count.

    Args:
        name: name of the benchmark; the file is ``name.jsonl``.
    """

    def __init__(self, name: str) -> None:
        self.path = cache_folder(None) / f"{name}.jsonl"
        self._known: dict[tuple[str, str], Any] = {}
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        for text in lines:
            try:
                key, of, result = json.loads(text)
            except ValueError:  # a line that was cut off
                continue
            self._known[key, of] = result

    def get(self, key: str, of: str) -> Any | None:
        """The result recorded for this key and mark, or None."""
        return self._known.get((key, of))

    def put(self, key: str, of: str, result: Any) -> None:
        """Record a result, at once."""
        self._known[key, of] = result
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([key, of, result]) + "\n")
