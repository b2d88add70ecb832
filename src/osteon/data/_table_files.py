"""The cells of a table as text: csv, tsv and parquet, every distinct text of a column kept once."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from osteon.core.errors import DataError
from osteon.modalities.table import number


class Row(np.ndarray):
    """One row: for every column the number of its cell among the column's distinct texts, (K,) int32."""

    table: Table
    line: int


@dataclass
class Table:
    """Cells as text, every distinct text of a column kept once.

    Args:
        names: of the columns.
        texts: the distinct texts of every column.
        codes: (N, K) int32, which of them each cell is.
        lines: number of every row as messages give it.
        left_out: name of a column that is not read -> why.
    """

    names: list[str]
    texts: list[list[str]]
    codes: np.ndarray
    lines: Sequence[int]
    left_out: dict[str, str]

    @classmethod
    def of(cls, names: Sequence[str], rows: Iterable[Sequence[str]], lines: Sequence[int], source: str) -> Table:
        """From rows of texts. Raises DataError for names that occur twice or none at all."""
        names, left_out = _checked_names(names, source)
        known: list[dict[str, int]] = [{} for _ in names]
        codes = [[seen.setdefault(cell.strip(), len(seen)) for seen, cell in zip(known, row, strict=True)]
                 for row in rows]
        return cls(names, [list(seen) for seen in known], np.array(codes, np.int32).reshape(-1, len(names)), lines,
                   left_out)

    def row(self, i: int) -> Row:
        """Row ``i``."""
        row = self.codes[i].view(Row)
        row.table, row.line = self, self.lines[i]
        return row

    def column(self, name: str) -> list[str]:
        """All cells of a column."""
        j = self.names.index(name)
        return [self.texts[j][code] for code in self.codes[:, j]]


def _checked_names(given: Sequence[str], source: str) -> tuple[list[str], dict[str, str]]:
    names = [name.strip() for name in given]
    if names and all(number(name) is not None for name in names):
        raise DataError("The first row holds numbers, not the names of the columns.", where=source,
                        fix="Put a row of names before the data.")
    left_out: dict[str, str] = {}
    if len(names) > 1 and not names[0]:  # what spreadsheet libraries write for the number of a row
        names[0] = "column 1"
        left_out[names[0]] = "it has no name, as numbers of rows have none"
    names = [name or f"column {j + 1}" for j, name in enumerate(names)]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise DataError(f"Two columns are called '{twice[0]}'.", where=source, fix="Rename one of them.")
    return names, left_out


def read_table(path: Path, source: str, most: int | None = None) -> Table:
    """The cells of a csv, tsv or parquet file, or of its first ``most`` rows. Raises DataError naming the row."""
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path, source, most)
    header: list[str] | None = None
    rows, lines = [], []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            head = file.readline()
            file.seek(0)
            plain = re.sub(r'"[^"]*"', "", head)
            separator = "\t" if path.suffix.lower() == ".tsv" else max(",;\t|", key=plain.count)
            reader = csv.reader(file, delimiter=separator, strict=True)
            for row in reader:
                if not row or (len(row) == 1 and not row[0].strip() and (header is None or len(header) > 1)):
                    continue  # a line of nothing
                if header is None:
                    header = row
                elif len(row) != len(header):
                    raise DataError(f"Row {reader.line_num} has {len(row)} cells, the header has {len(header)}.",
                                    where=source, fix="Put cells that contain the separator in double quotes.")
                else:
                    rows.append(row)
                    lines.append(reader.line_num)
                if most is not None and len(rows) >= most:
                    break
    except UnicodeDecodeError as error:
        raise DataError("The table is not UTF-8 text.", where=source, fix="Save it as UTF-8.") from error
    except (csv.Error, OSError) as error:
        raise DataError(f"The table cannot be read: {error}", where=source,
                        fix="Check quotes and permissions.") from error
    if header is None or not rows:
        raise DataError("The table is empty." if header is None else "The table has a header and no rows.",
                        where=source, fix="Give a row of names and a row for every sample.")
    return Table.of(header, rows, lines, source)


def _read_parquet(path: Path, source: str, most: int | None) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            batch = next(file.iter_batches(batch_size=most), None) if most is not None else None
            data = file.read() if most is None else pa.Table.from_batches([batch] if batch is not None else [],
                                                                          file.schema_arrow)
        lists = {name: data.column(i).to_pylist() for i, name in enumerate(data.column_names)}
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # dates beyond the calendar, for one
        raise DataError(f"The parquet file cannot be read: {error}", where=source, fix="Write it again.") from error
    nested = {name: f"it holds {data.schema.field(i).type}" for i, name in enumerate(data.column_names)
              if pa.types.is_nested(data.schema.field(i).type) or pa.types.is_binary(data.schema.field(i).type)}
    names = [name for name in data.column_names if name not in nested and not name.startswith("__index_level_")]
    if not data.num_rows or not names:
        raise DataError("The table holds no row of single values.", where=source,
                        fix="Give columns of numbers, texts or dates.")
    if len(set(names)) < len(names):
        _checked_names(names, source)
    cells = [[_text(value) for value in lists[name]] for name in names]
    table = Table.of(names, zip(*cells, strict=True), range(1, data.num_rows + 1), source)
    table.left_out |= nested
    return table


def _text(value: Any) -> str:
    if value is None or value != value:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
