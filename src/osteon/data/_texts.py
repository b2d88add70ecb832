"""Finding texts: long ones, folders of them, and rows of tables; nothing is cut into tokens here."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from osteon.core.errors import DataError
from osteon.data.changes import stamp, watch
from osteon.data.folders import SPLIT_NAMES, list_folder, walk
from osteon.data.listing import Listing, RawLabel, unique_ids
from osteon.data.tables import _PATHS, _split_labels, columns_of, further, read_rows
from osteon.modalities import Unreadable
from osteon.modalities.text import SAMPLES, SUFFIXES, decode_text
from osteon.parts.types import DataSpec

#: Parts of one long text by position: name and where it ends.
PARTS = (("train", 0.90), ("val", 0.95), ("test", 1.0))
_LABELS = ("label", "labels")


def list_path(path: Path, source: str, *, asked: bool, options: Mapping[str, Any] | None = None,
              like: DataSpec | None = None) -> Listing | None:
    """The texts at a path, or None when it holds none (an error when text was asked for).

    A folder counts as text when it holds more .txt or .jsonl files than others, a csv when it has a column ``text`` and
    none of paths; .txt and .jsonl files always do.
    """
    found: Listing | None = None
    suffix = path.suffix.lower()
    if path.is_dir():
        files = walk(path, SUFFIXES | {".jsonl"})
        watch(*(path.joinpath(*f) for f, _, _ in files.files))  # all are read to learn the tokens
        lines = [path.joinpath(*f) for f, _, _ in files.files if f[-1].lower().endswith(".jsonl")]
        if files.files and (asked or len(files.files) > sum(files.others.values())):
            found = _list_rows_of(lines, source, path) if lines else list_folder(path, source, suffixes=SUFFIXES,
                                                                                 samples=SAMPLES)
            found = replace(found, skipped=files.skipped) if found is not None and lines else found
            if found is not None and not lines:
                found = _by_file_names(found)
    elif suffix == ".txt":
        found = _list_long(path, source)
    elif suffix == ".jsonl":
        found = _list_rows_of([path], source, path.parent)
    elif suffix in (".csv", ".tsv"):
        columns = _columns(path)
        if "text" in columns and (asked or not columns & set(_PATHS)):
            found = _list_csv(path, source)
    if found is None and asked:
        raise DataError("The source holds no text.", where=source, fix="Text is a .txt file, a folder of them, a "
                        ".jsonl file with a field text, or a csv with a column text; label, group and split may stand "
                        "beside.")
    return None if found is None else replace(found, modality="text")


def _list_long(path: Path, source: str) -> Listing:
    """One long text in three parts by position, cut where a line, or else a word, ends."""
    text = _read(path, source)
    start, parts = 0, []
    for _, share in PARTS:
        end = aim = round(share * len(text))
        if share < 1:
            before = text.rfind("\n", start, aim) if "\n" in text[start:aim] else text.rfind(" ", start, aim)
            end = before + 1 if before >= start else aim
        parts.append(text[start:end])
        start = end
    kept = [(name, part) for (name, _), part in zip(PARTS, parts, strict=True) if part.strip()]
    if not kept:
        raise DataError("The text is empty.", where=source, fix="Give a file with text in it.")
    return Listing(source, [f"{path.name}:{name}" for name, _ in kept], lambda i: kept[i][1].encode(), stamp([path]),
                   split=[name for name, _ in kept], traits={"documents": "running", "one": True},
                   notes=["splits: by position, the first 90 % of the text are train, then 5 % val and 5 % test"])


def _by_file_names(found: Listing) -> Listing:
    """Splits from names such as ``train.txt`` and ``corpus-valid.txt``, where all files have such a name."""
    words = [re.split(r"[-_.]", name.rsplit("/", 1)[-1].lower())[-2] for name in found.ids]
    traits = {"documents": "file" if found.labels else "running"}
    if found.split is not None or found.labels or not all(word in SPLIT_NAMES for word in words):
        return replace(found, traits=traits)
    return replace(found, traits=traits, split=words, notes=[*found.notes, "splits: by the names of the files"])


def _list_csv(path: Path, source: str) -> Listing:
    _read(path, source)  # says where a file is no UTF-8
    rows = list(read_rows(path, source))
    (_, header), body = rows[0], rows[1:]
    columns = columns_of(header, source)
    for line, row in body:
        if len(row) != len(header):
            raise DataError(f"Row {line} has {len(row)} cells, the header has {len(header)}.", where=source,
                            fix="Put cells that contain the separator in double quotes.")

    def column(name: str) -> list[str] | None:
        return [row[columns[name]].strip() for _, row in body] if name in columns else None

    key = next((name for name in _LABELS if name in columns), None)
    labels = _split_labels(column(key) or [], key == "labels") if key else None
    ids = column("id") or [f"{path.name}:{line}" for line, _ in body]
    found = _rows(source, ids, column("text") or [], labels, column("group"), column("split"), stamp([path]))
    return replace(found, extra=further(columns, column))


def _list_rows_of(files: Sequence[Path], source: str, root: Path) -> Listing:
    """The objects of .jsonl files, one a line; a file's name gives the split where the rows do not."""
    rows: list[dict[str, Any]] = []
    for file in files:
        word = re.split(r"[-_.]", file.name.lower())[-2 if file.name.count(".") else -1]
        split = word if len(files) > 1 and word in SPLIT_NAMES else ""
        name = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name
        for number, line in enumerate(_read(file, source).split("\n"), 1):
            if line.strip():
                rows.append({"id": f"{name}:{number}", "split": split, **_object(line, f"{name}, line {number}")})
    if not rows:
        raise DataError("The file holds no row.", where=source, fix='Write one object a line, as {"text": "..."}.')
    labels: list[RawLabel] | None = [_label(row) for row in rows]
    groups = [str(row.get("group", "")) for row in rows]
    splits = [str(row["split"]) for row in rows]
    found = _rows(source, [str(row["id"]) for row in rows], [row["text"] for row in rows],
                  labels if any(label is not None for label in labels or ()) else None, groups if any(groups) else None,
                  splits if any(splits) else None, stamp(files))

    def field(name: str) -> list[RawLabel]:
        return [_label({"label": row.get(name)}) for row in rows]

    usual = {"text", "label", "labels", "group", "split", "id"}
    return replace(found, extra={name.lower(): partial(field, name) for name in rows[0] if name not in usual})


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"The line is not JSON: {error}", where=where, fix="Write one object a line.") from error
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise DataError("The line has no field 'text' with a string.", where=where,
                        fix='Write {"text": "...", "label": "..."}; label may be left out.')
    return _whole(row) if "\\u" in line else row  # type: ignore[no-any-return]


def _whole(value: Any) -> Any:
    """The same value with halves of surrogate pairs, which no file can hold, replaced."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, list):
        return [_whole(part) for part in value]
    return {_whole(k): _whole(v) for k, v in value.items()} if isinstance(value, dict) else value


def _label(row: dict[str, Any]) -> RawLabel:
    value = row.get("label", row.get("labels"))
    if isinstance(value, list):
        return [str(v) for v in value]
    return value if value is None or isinstance(value, (int, str)) else str(value)


def _rows(source: str, ids: Sequence[str], texts: Sequence[str], labels: list[RawLabel] | None,
          groups: list[str] | None, splits: list[str] | None, stamp: str) -> Listing:
    if not texts:
        raise DataError("The table has a header and no rows.", where=source, fix="Add a row for every text.")
    return Listing(source, unique_ids(ids), lambda i: texts[i].encode("utf-8", "replace"), stamp, labels=labels,
                   groups=groups, split=splits, traits={"documents": "file"})


def _read(path: Path, source: str) -> str:
    try:
        return decode_text(path)
    except Unreadable as reason:
        raise DataError(f"The file {reason}.", where=source if path.name in source else f"{source}: {path.name}",
                        fix="Save it as UTF-8, e.g. iconv -f latin1 -t utf-8.") from reason


def _columns(path: Path) -> set[str]:
    """Names in the head of a table, in lower case; empty where it cannot be read."""
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
            head = file.readline(65_536)
    except OSError:
        return set()
    separator = "\t" if path.suffix.lower() == ".tsv" else ";" if ";" in head and "," not in head else ","
    try:
        return {name.strip().lower() for name in next(csv.reader([head], delimiter=separator), [])}
    except csv.Error:  # a null byte, before Python 3.11
        return set()
