"""Files that hold series: tables over time (csv, tsv, parquet) and the ``.ts`` files of the UCR and UEA archives."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from osteon.core.errors import DataError
from osteon.data.listing import RawLabel

#: Cells that stand for a missing value.
MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "?")
#: Names of a first column of numbers that counts time.
TIMES = ("time", "timestamp", "date", "datetime", "seconds", "t", "year")
#: Columns that make a table a manifest or a labelled table, and no series over time.
OTHERS = ("path", "file", "file_name", "filename", "image", "sound", "text", "label", "labels")
#: Dates that are not ISO 8601; the first under which every cell is a date and time increases is taken.
FORMATS = ("%d/%m/%Y %H:%M:%S", "%d/%m/%Y %H:%M", "%d/%m/%Y", "%m/%d/%Y %H:%M:%S", "%m/%d/%Y %H:%M", "%m/%d/%Y",
           "%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M", "%d.%m.%Y", "%Y/%m/%d %H:%M:%S", "%Y/%m/%d %H:%M", "%Y/%m/%d")


@dataclass(frozen=True)
class Table:
    """Columns over time.

    Args:
        names: of the columns of numbers.
        values: (T, C) float64, missing ones NaN.
        words: columns that are no numbers, by name.
        times: (T,) datetime64 or float, or None.
    """

    names: list[str]
    values: np.ndarray
    words: dict[str, list[str]] = field(default_factory=dict)
    times: np.ndarray | None = None

    def over_time(self) -> Table:
        """The table with its column of time, where it has one, taken out of the columns: dates, or numbers named so."""
        if self.times is not None:
            return self
        for name, cells in self.words.items():
            times = parse_times(cells)
            if times is not None:
                return replace(self, times=times, words={k: v for k, v in self.words.items() if k != name})
        if self.names and self.names[0].lower() in TIMES:
            return replace(self, times=self.values[:, 0], names=self.names[1:], values=self.values[:, 1:])
        return self


def looks_like_series(path: Path) -> bool:
    """Whether a table is a series without being asked for: time that increases, then numbers, and nothing else.

    The first column holds dates, or numbers under a name such as ``time``. Decided by the first 50 rows.
    """
    try:
        if path.suffix.lower() == ".parquet":
            kinds = pq.read_schema(path)
            first, rest = kinds.types[0] if len(kinds) else None, kinds.types[1:]
            return (bool(rest) and (pa.types.is_timestamp(first) or pa.types.is_date(first))
                    and not {name.lower() for name in kinds.names} & set(OTHERS) and all(map(_numeric, rest)))
        with path.open(newline="", encoding="utf-8-sig") as file:
            separator = _separator(path, file.readline())
            file.seek(0)
            rows = [row for _, row in zip(range(51), csv.reader(file, delimiter=separator), strict=False) if row]
    except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException):
        return False
    if len(rows) < 3 or len(rows[0]) < 2 or any(len(row) != len(rows[0]) for row in rows):
        return False
    head = [name.strip().lower() for name in rows[0]]
    cells = [row[0].strip() for row in rows[1:]]
    times = parse_times(cells)
    if times is None and head[0] in TIMES and all(map(_is_number, cells)):
        times = np.array(cells, np.float64)
    numbers = all(_is_number(cell) or cell.strip() in MISSING for row in rows[1:] for cell in row[1:])
    return times is not None and bool((times[1:] > times[:-1]).all()) and numbers and not set(head) & set(OTHERS)


def read_table(path: Path, source: str) -> Table:
    """A csv, tsv or parquet file as columns of numbers and columns of words. Raises DataError."""
    try:
        table = pq.read_table(path) if path.suffix.lower() == ".parquet" else _read_csv(path, source)
    except (pa.ArrowException, OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"The table cannot be read: {error}", where=source, fix="Write it again, as UTF-8.") from error
    names, columns, times, words = list[str](), list[np.ndarray](), None, dict[str, list[str]]()
    for i, name in enumerate(table.column_names):
        column = table.column(i)
        if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
            if times is None:
                times = column.cast(pa.timestamp("us"), safe=False).to_numpy()
                continue
        if _numeric(column.type):
            columns.append(np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64))
            names.append(name)
            continue
        cells = ["" if cell is None else str(cell) for cell in column.to_pylist()]
        if all(_is_number(cell) or cell in MISSING for cell in cells):  # the first column of a csv is read as text
            columns.append(np.array([float(cell) if _is_number(cell) else np.nan for cell in cells]))
            names.append(name)
        else:
            words[name] = cells
    values = np.stack(columns, 1) if columns else np.empty((table.num_rows, 0))
    return Table(names, values, words, times)


def _read_csv(path: Path, source: str) -> pa.Table:
    """All columns of numbers as float64, the others as text; a file whose first line is numbers has no header."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        line = file.readline()
    separator = _separator(path, line)
    head = next(csv.reader([line], delimiter=separator), [])
    if not head:
        raise DataError("The table is empty.", where=source, fix="Its first line names the columns.")
    bare = all(_is_number(cell) for cell in head)
    names = [f"column{i}" for i in range(len(head))] if bare else _unique([cell.strip() for cell in head])
    text = dict.fromkeys(names, pa.string())

    def read(kinds: dict[str, pa.DataType]) -> pa.Table:
        return pa_csv.read_csv(path, pa_csv.ReadOptions(column_names=names, skip_rows=0 if bare else 1),
                               pa_csv.ParseOptions(delimiter=separator),
                               pa_csv.ConvertOptions(column_types=kinds, null_values=list(MISSING)))

    try:  # most often the first column alone is no number
        return read({name: pa.string() if i == 0 and not bare else pa.float64() for i, name in enumerate(names)})
    except pa.ArrowInvalid:
        table = read(text)
    kinds = {name: pa.float64() if all(_is_number(v) or v in MISSING for v in table.column(name).to_pylist())
             else pa.string() for name in names}
    return read(kinds)


def parse_times(cells: Sequence[str]) -> np.ndarray | None:
    """Dates of cells, (T,) datetime64 in microseconds, or None where one of them is no date."""
    if not cells or not all(re.search(r"\d[-/.:]\d", cell) for cell in cells[:50]):
        return None
    try:
        return np.array([cell.strip().removesuffix("Z") for cell in cells], "datetime64[us]")
    except ValueError:
        pass
    found: np.ndarray | None = None
    for form in FORMATS:
        try:
            times = np.array([datetime.strptime(cell.strip(), form) for cell in cells], "datetime64[us]")
        except ValueError:
            continue
        if bool((times[1:] > times[:-1]).all()):
            return times
        found = times if found is None else found
    return found


@dataclass
class TsFile:
    """A ``.ts`` file: series (C, t), or why a line is none, with labels, line numbers, and what was noted."""

    series: list[np.ndarray | bytes] = field(default_factory=list)
    labels: list[RawLabel] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    numbers: bool = False  # labels are numbers to be predicted, no classes


def read_ts(path: Path, source: str) -> TsFile:
    """Series of the UCR and UEA archives' format: channels apart by colons, values by commas, ``?`` missing, then the
    class, or the number to be predicted (``@targetLabel true``). A damaged line stands as the reason, in bytes."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The .ts file cannot be read: {error}", where=source, fix="Save it as UTF-8 text.") from error
    about: dict[str, list[str]] = {}
    out, begun = TsFile(), False
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("@"):
            word, *rest = line[1:].split() or [""]
            begun |= word.lower() == "data"
            about[word.lower()] = rest
        elif begun:
            _ts_line(line, number, about, out)
    if not begun:
        raise DataError("The file has no line @data, so it is no .ts file of series.", where=source,
                        fix="See timeseriesclassification.com for the format.")
    if _yes(about, "timestamps"):
        raise DataError("The .ts file gives a time with every value; only equally spaced values are read.",
                        where=source, fix="Resample it to equal steps (@timeStamps false).")
    out.numbers = _yes(about, "targetlabel")
    return out


def _yes(about: dict[str, list[str]], word: str) -> bool:
    return [value.lower() for value in about.get(word, [])[:1]] == ["true"]


def _ts_line(line: str, number: int, about: dict[str, list[str]], out: TsFile) -> None:
    out.lines.append(number)
    parts = line.split(":")
    numbers = _yes(about, "targetlabel")
    label = parts.pop().strip() if numbers or _yes(about, "classlabel") else None
    try:
        channels = [[np.nan if cell.strip() in MISSING else float(cell) for cell in part.split(",")] for part in parts]
    except ValueError as error:
        reason = f"holds a cell that is no number ({str(error).split(':')[-1].strip()})"
        out.series.append(reason.encode())
        out.labels.append(label if numbers else None)
        return
    if not channels:
        out.series.append(b"holds no channel")
        out.labels.append(label if numbers else None)
        return
    longest = max(map(len, channels))
    out.series.append(np.array([row + [np.nan] * (longest - len(row)) for row in channels], np.float64))
    out.labels.append(label or None)


def _separator(path: Path, head: str) -> str:
    return "\t" if path.suffix.lower() == ".tsv" or ("\t" in head and "," not in head) else (
        ";" if ";" in head and "," not in head else ",")


def _numeric(kind: Any) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or (
        pa.types.is_decimal(kind) or pa.types.is_null(kind))


def _is_number(cell: str) -> bool:
    try:
        return bool(cell.strip()) and np.isfinite(float(cell))
    except (TypeError, ValueError):
        return False


def _unique(names: Sequence[str]) -> list[str]:
    out: dict[str, None] = {}
    for i, name in enumerate(names):
        fresh = name or f"column{i}"
        while fresh in out:
            fresh = f"{fresh}#{i}"
        out[fresh] = None
    return list(out)
