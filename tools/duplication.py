"""Fail when a run of eight or more lines of code occurs twice.

Lines are compared without indentation and comments; imports, docstrings, cards, signatures and lines of nothing but
brackets do not count, nor do class variables, which state what a class is.
Usage: ``python tools/duplication.py src [more folders]``.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeGuard

RUN = 8


class Line(NamedTuple):
    """A line that counts: its number in the file and its text without indentation or comment."""

    number: int
    text: str


class Twin(NamedTuple):
    """A run that occurs twice."""

    first: Path
    first_line: int
    second: Path
    second_line: int
    length: int


def code_lines(source: str) -> list[Line]:
    """The lines of a source text that count."""
    ignored = set(_ignored(ast.parse(source)))
    comments = {token.start[0]: token.start[1] for token in tokenize.generate_tokens(io.StringIO(source).readline)
                if token.type == tokenize.COMMENT}
    lines = []
    for number, text in enumerate(source.splitlines(), start=1):
        text = " ".join(text[:comments.get(number)].split())
        if number not in ignored and any(c.isalnum() for c in text):
            lines.append(Line(number, text))
    return lines


def _ignored(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from range(node.lineno, (node.end_lineno or node.lineno) + 1)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            yield from range(start, max(node.body[0].lineno, node.lineno + 1))
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield from range(node.lineno, (node.end_lineno or node.lineno) + 1)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CARD" or _declares(node):
            yield from range(node.lineno, (node.end_lineno or node.lineno) + 1)


def _declares(node: ast.AST) -> TypeGuard[ast.AnnAssign]:
    """``name: ClassVar[...] = ...``: a class stating what it is, much like a signature."""
    return isinstance(node, ast.AnnAssign) and "ClassVar" in ast.unparse(node.annotation)


def twins(files: dict[Path, list[Line]], run: int = RUN) -> list[Twin]:
    """Every run of at least ``run`` lines that occurs twice, as long as it goes."""
    seen: dict[tuple[str, ...], list[tuple[Path, int]]] = defaultdict(list)
    found: list[Twin] = []
    for path, lines in files.items():
        for start in range(len(lines) - run + 1):
            window = tuple(line.text for line in lines[start:start + run])
            for other, at in seen[window]:
                if other == path and start - at < run:  # a run overlapping itself: a repetitive table, say
                    continue
                before = start > 0 and at > 0 and lines[start - 1].text == files[other][at - 1].text
                if not before:
                    length = _length(files[other], at, lines, start)
                    found.append(Twin(other, files[other][at].number, path, lines[start].number, length))
            seen[window].append((path, start))
    return found


def _length(a: list[Line], i: int, b: list[Line], j: int) -> int:
    length = 0
    while i + length < len(a) and j + length < len(b) and a[i + length].text == b[j + length].text:
        length += 1
    return length


def main(folders: list[str]) -> int:
    """Print what occurs twice; 1 when anything does."""
    paths = sorted(path for folder in folders for path in Path(folder).rglob("*.py"))
    found = twins({path: code_lines(path.read_text(encoding="utf-8")) for path in paths})
    for twin in found:
        print(f"{twin.second}:{twin.second_line}: {twin.length} lines as at {twin.first}:{twin.first_line}")
    print(f"{len(paths)} files, {len(found)} duplicated runs of {RUN} lines or more")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["src"]))
