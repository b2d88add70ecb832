"""Tables of images: manifests (csv, tsv, parquet) and parquet in the Hugging Face image layout, one file or many."""

from __future__ import annotations

import bisect
import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from osteon.core.errors import DataError, nearest
from osteon.data.changes import stamp, watch
from osteon.data.folders import SPLIT_NAMES, ending, walk
from osteon.data.listing import Listing, RawLabel, share_equal, shown, unique_ids
from osteon.modalities import Payload

_PATHS = ("path", "file", "file_name", "filename", "image", "sound", "video")
_IMAGES = ("image", "img", "bytes", "path", "file", "file_name", "filename")
_LABELS = ("label", "labels")
_READ = frozenset((*_PATHS, *_IMAGES, *_LABELS, "group", "speaker", "split", "id", "text"))
_COLUMNS = "path (or file, image, bytes), and where known label (or labels), group, split"


def list_csv(path: Path, source: str) -> Listing:
    """A csv or tsv manifest, one row an image; paths are relative to the manifest."""
    watch(path)
    rows = read_rows(path, source)
    _, header = next(rows)
    columns = columns_of(header, source)
    key = next((name for name in _PATHS if name in columns), None)
    if key is None:
        raise DataError(f"The manifest has no column of paths; it has: {', '.join(header)}.", where=source,
                        fix=f"Columns are {_COLUMNS}.{nearest('path', columns)}")
    label = next((name for name in _LABELS if name in columns), None)
    cells: dict[str, list[str]] = {name: [] for name in (key, label, "group", "speaker", "split") if name in columns}
    takers = [(columns[name], values.append) for name, values in cells.items()]
    known: dict[str, str] = {}  # equal cells are one object: a column of few names takes a pointer a row
    place, width = columns[key], len(header)
    for line, row in rows:
        if len(row) != width:
            raise DataError(f"Row {line} has {len(row)} cells, the header has {width}.", where=source,
                            fix="Put cells that contain the separator in double quotes.")
        if not row[place].strip():
            raise DataError(f"Row {line} has no {key}.", where=source, fix="Fill it in or remove the row.")
        for column, take in takers:
            cell = row[column].strip()
            take(known.setdefault(cell, cell))
    names = cells[key]
    if not names:
        raise DataError("The manifest has a header and no rows.", where=source, fix="Add a row for every image.")
    folder = path.parent
    return Listing(source, unique_ids(names if os.sep == "/" else [name.replace(os.sep, "/") for name in names]),
                   lambda i: folder / names[i], stamp(chain([path], _below(folder, names))),
                   labels=_split_labels(cells[label], label == "labels") if label else None,
                   groups=cells.get("group") or cells.get("speaker"), split=cells.get("split"),
                   extra=further(columns, partial(_cells, path, source, columns)))


def _cells(path: Path, source: str, columns: Mapping[str, int], name: str) -> list[str]:
    """One more column of a csv manifest that has been found to be whole."""
    rows = read_rows(path, source)
    next(rows)
    try:
        return share_equal(row[columns[name]].strip() for _, row in rows)
    except IndexError:
        raise DataError("The manifest changed while it was read.", where=source, fix="Try again.") from None


def further(columns: Iterable[str],
            column: Callable[[str], list[str] | None]) -> dict[str, Callable[[], list[RawLabel]]]:
    """The columns of a manifest that have no role of their own, each read when it is asked for."""
    def read(name: str) -> list[RawLabel]:
        return [cell or None for cell in column(name) or ()]

    return {name: partial(read, name) for name in columns if name and name not in _READ}


def columns_of(header: Sequence[str], source: str) -> dict[str, int]:
    """Name of a column in lower case -> its place. Raises DataError where one that is read occurs twice."""
    columns: dict[str, int] = {}
    for i, cell in enumerate(header):
        name = cell.strip().lower()
        if columns.setdefault(name, i) != i and name in _READ:
            raise DataError(f"The column '{name}' occurs twice.", where=source, fix="Rename or remove one of them.")
    return columns


def path_suffixes(path: Path) -> set[str]:
    """Ending of the first file a manifest names, in lower case; empty where the manifest names none or is damaged."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            head, first = file.readline(), file.readline()
    except (OSError, UnicodeDecodeError):
        return set()
    separator = "\t" if "\t" in head else ";" if ";" in head and "," not in head else ","
    try:
        names, cells = (next(csv.reader([line], delimiter=separator), []) for line in (head, first))
    except csv.Error:
        return set()
    columns = [name.strip().lower() for name in names]
    key = next((columns.index(name) for name in _PATHS if name in columns), None)
    return set() if key is None or key >= len(cells) else {ending(cells[key].strip())}


def list_parquet(files: Sequence[Path], source: str, root: Path) -> Listing:
    """One parquet file or several of one kind: image bytes or paths, labels, group, split."""
    watch(*files)
    parts = [_ParquetPart(file, source) for file in files]
    kinds = {part.column for part in parts}
    if len(kinds) > 1:
        raise DataError(f"The parquet files keep their images in different columns: {', '.join(sorted(kinds))}.",
                        where=source, fix="Name one file.")
    ids: list[str] = []
    labels: list[RawLabel] = []
    groups: list[str] = []
    split: list[str] = []
    for part in parts:
        place = part.file.relative_to(root).as_posix() if part.file.is_relative_to(root) else part.file.name
        ids += part.ids(place)
        labels += part.labels()
        groups += part.text("group") or []
        split += part.text("split") or [split_of(part.file, root) if len(files) > 1 else ""] * part.rows
    names = next((part.class_names for part in parts if part.class_names), None)
    if any(part.class_names not in (None, names) for part in parts):
        raise DataError("The parquet files name their classes differently.", where=source, fix="Name one file.")
    named = (_below(part.file.parent, part.ids("")) for part in parts if part.of_paths)
    return Listing(source, unique_ids(ids), _Rows(parts), stamp(chain(files, *named)), labels=labels,
                   class_names=names, groups=groups if groups and len(groups) == len(ids) else None,
                   split=split if any(split) else None,
                   extra={name: partial(_numbers_of, parts, name) for name in parts[0].single()
                          if all(name in part.known for part in parts)})


def _numbers_of(parts: Sequence[_ParquetPart], name: str) -> list[RawLabel]:
    return [value for part in parts for value in part.values(name)]


def parquet_files(folder: Path) -> list[Path]:
    """Parquet files under a folder, sorted, hidden ones ignored."""
    return [folder.joinpath(*path) for path, _, _ in walk(folder, frozenset((".parquet",))).files]


class _ParquetPart:
    """One parquet file: where its images are, and its small columns."""

    def __init__(self, file: Path, source: str) -> None:
        self.file, self.source = file, source
        try:
            with pq.ParquetFile(file) as table:
                self.schema = table.schema_arrow
                self.sizes = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"The parquet file cannot be read: {error}", where=str(file),
                            fix="Write it again.") from error
        self.rows = sum(self.sizes)
        known = {name.lower(): name for name in self.schema.names}
        self.known = known
        names = [name.lower() for name in self.schema.names]
        twice = next((name for name in known if name in _READ and names.count(name) > 1), None)
        if twice is not None:
            raise DataError(f"The column '{twice}' occurs twice.", where=str(file), fix="Rename one of them.")
        column = next((known[name] for name in _IMAGES if name in known and self._holds_images(known[name])), None)
        if column is None:
            raise DataError(f"The parquet file has no column of images; it has: {', '.join(self.schema.names)}.",
                            where=str(file), fix=f"Columns are {_COLUMNS}; image may be struct(bytes, path) or bytes.")
        self.column = column
        self.class_names = _class_names(self.schema.metadata or {}, next((known[n] for n in _LABELS if n in known), ""))

    def _holds_images(self, name: str) -> bool:
        kind = self.schema.field(name).type
        fields = {kind.field(i).name for i in range(kind.num_fields)} if pa.types.is_struct(kind) else set()
        return bool(fields & {"bytes", "path"}) or _is_text(kind) or _is_binary(kind)

    def _read(self, column: str) -> list[Any]:
        with pq.ParquetFile(self.file) as table:
            return table.read(columns=[column]).column(0).to_pylist()

    @property
    def of_paths(self) -> bool:
        """Whether the rows name files."""
        return _is_text(self.schema.field(self.column).type)

    def ids(self, place: str) -> list[str]:
        kind = self.schema.field(self.column).type
        if self.of_paths:
            return [str(value) for value in self._read(self.column)]
        names: list[str | None] = [None] * self.rows
        if pa.types.is_struct(kind) and kind.get_field_index("path") >= 0:
            names = [(value or {}).get("path") for value in self._read(f"{self.column}.path")]
        return [name or f"{place}:{row}" for row, name in enumerate(names)]

    def text(self, name: str) -> list[str] | None:
        if name not in self.known:
            return None
        return share_equal("" if v is None else str(v) for v in self._read(self.known[name]))

    def single(self) -> list[str]:
        """Columns of single numbers or texts that have no role, by name in lower case."""
        kinds = {name: self.schema.field(given).type for name, given in self.known.items()}
        return [name for name, kind in kinds.items() if name not in _READ and self.known[name] != self.column
                and (_is_text(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind))]

    def values(self, name: str) -> list[RawLabel]:
        """What a column of :meth:`single` holds."""
        return self._read(self.known[name])

    def labels(self) -> list[RawLabel]:
        name = next((name for name in _LABELS if name in self.known), None)
        if name is None:
            return [None] * self.rows
        values = self._read(self.known[name])
        if any(isinstance(value, str) for value in values):
            return _split_labels(["" if value is None else value for value in values], name == "labels")
        return [self._label(value, row) for row, value in enumerate(values)]

    def _label(self, value: Any, row: int) -> RawLabel:
        if isinstance(value, list) and not any(isinstance(v, (list, dict)) for v in value):
            return [v if isinstance(v, int) else str(v) for v in value]  # type: ignore[misc]
        if value is None or value != value or value == -1:  # NaN, and -1: what the Hub writes for a withheld label
            return None
        if isinstance(value, (bool, int)) or (isinstance(value, float) and value.is_integer()):
            return int(value)
        if isinstance(value, float):
            return value
        raise DataError(f"Row {row + 1} has the label {shown(repr(value))}, which is no class.", where=str(self.file),
                        fix="Labels are class numbers or names.")


class _Rows:
    """Images by number, reading one row group at a time: quick for ascending numbers, small in memory."""

    def __init__(self, parts: list[_ParquetPart]) -> None:
        self.groups = [(part, group) for part in parts for group in range(len(part.sizes))]
        self.starts = [0]
        for part, group in self.groups:
            self.starts.append(self.starts[-1] + part.sizes[group])
        self.held = -1
        self.values: pa.ChunkedArray | None = None

    def __call__(self, row: int) -> Payload:
        group = bisect.bisect_right(self.starts, row) - 1
        part, number = self.groups[group]
        if group != self.held or self.values is None:
            with pq.ParquetFile(part.file) as table:
                self.values = table.read_row_group(number, columns=[part.column]).column(0)
            self.held = group
        value = self.values[row - self.starts[group]].as_py()
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if value is None:
            return b""
        return value if isinstance(value, bytes) else part.file.parent / value


def read_rows(path: Path, source: str) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, the header first, with the line each ends on, without holding them all.

    The separator is a tab (.tsv), or a semicolon if the header has no comma. Raises DataError, of an empty file too.
    """
    def lines(file: Iterable[str]) -> Iterator[str]:
        for number, line in enumerate(file, 1):
            if "\0" in line:
                raise DataError(f"Row {number} holds a null byte.", where=source, fix="Save it as UTF-8 text.")
            yield line

    empty = True
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            head = file.readline()
            file.seek(0)
            separator = "\t" if path.suffix.lower() == ".tsv" else ";" if ";" in head and "," not in head else ","
            reader = csv.reader(lines(file) if _has_null(path) else file, delimiter=separator, strict=True)
            for row in reader:
                if any(map(str.strip, row)):
                    empty = False
                    yield reader.line_num, row
    except UnicodeDecodeError as error:
        raise DataError("The manifest is not UTF-8 text.", where=source, fix="Save it as UTF-8.") from error
    except (csv.Error, OSError) as error:
        raise DataError(f"The manifest cannot be read: {error}", where=source,
                        fix="Check quotes and permissions.") from error
    if empty:
        raise DataError("The manifest is empty.", where=source, fix=f"Columns are {_COLUMNS}.")


def _has_null(path: Path) -> bool:
    """Whether a null byte stands in a file; found in blocks, because looking at every line costs as much as reading."""
    with path.open("rb") as file:
        return any(b"\0" in block for block in iter(lambda: file.read(1 << 20), b""))


def _split_labels(values: Sequence[str], several: bool) -> list[RawLabel]:
    """Cells to labels: several an image when the column says so or any cell holds | or ;"""
    if several or any(re.search(r"[|;]", value) for value in set(values)):
        return [[name.strip() for name in re.split(r"[|;]", value) if name.strip()] for value in values]
    return [value or None for value in values]


def split_of(file: Path, root: Path) -> str:
    """Split a parquet file belongs to: from its name (``train-00000-of-00001``) or its folder, else none."""
    parts = file.relative_to(root).parts if file.is_relative_to(root) else (file.name,)
    for part in (parts[-1], *reversed(parts[:-1])):
        word = re.split(r"[-_.]", part)[0]
        if word.lower() in SPLIT_NAMES:
            return word
    return ""


def _class_names(metadata: dict[bytes, bytes], column: str) -> list[str] | None:
    """Class names from the schema's metadata: ``class_names``, or the features of Hugging Face datasets."""
    try:
        if b"class_names" in metadata:
            return [str(name) for name in json.loads(metadata[b"class_names"])]
        feature = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"][column]
        while "names" not in feature:
            feature = feature[0] if isinstance(feature, list) else feature["feature"]
        return [str(name) for name in feature["names"]]
    except (KeyError, TypeError, IndexError, ValueError, RecursionError):
        return None


def _below(folder: Path, names: Iterable[str]) -> Iterator[str]:
    """Paths of files named relative to a folder, as text: a ``Path`` each would take more than the rest of a row."""
    start = os.path.join(folder.absolute(), "")
    return (name if os.path.isabs(name) else start + name for name in names)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
