"""Tables read by the names of their columns: which columns count as known, and cells that say what they are.

Whether a network knows a table is asked only here: rows of any other table are standardised by their own training rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from osteon.core.errors import DataError, UsageError, nearest
from osteon.data._table_files import Table
from osteon.modalities.table import Column, columns_of, is_missing, level, number
from osteon.parts.cells import (
    CATEGORY,
    CHANNELS,
    FIRST_NAME,
    FIRST_TEXT,
    NAME,
    NOTHING,
    NUMBER,
    TEXT,
    TRUTH,
    code_of,
    pieces,
)
from osteon.parts.types import DataSpec

#: What a token is: a cell; a piece of a cell (TransTab); a column's name or a piece of its cell (UniTabE).
WAYS = ("cells", "pieces", "units")
#: Levels that say yes and no; a binary column of such a pair is true or false, any other has two categories.
YES, NO = frozenset(("1", "true", "yes", "y", "t", "on")), frozenset(("0", "false", "no", "n", "f", "off"))


def way(options: Mapping[str, Any], like: DataSpec | None, source: str) -> str:
    """How rows are read: one of :data:`WAYS`, or "" by columns of one table. Raises UsageError."""
    asked = str(options.get("names") or "")
    trained = asked if like is None else str(like.traits.get("names") or "")
    if asked and (asked not in WAYS or asked != trained):
        raise UsageError(f"Rows cannot be read by names as '{asked}'"
                         + (f": the model reads them {f'as {trained!r}' if trained else 'by its own columns'}."
                            if asked in WAYS else f".{nearest(asked, WAYS)}"),
                         where=f"names, {source}", fix=f"Give one of {', '.join(WAYS)}, or leave names out.")
    return trained


def known_columns(like: DataSpec, table: Table, inputs: Sequence[str], more: frozenset[str],
                  source: str) -> list[Column] | None:
    """The columns of the table that a specification knows these inputs from, or None: a table never seen.

    A table is known when every one of its inputs has a name among the columns of one table of training and all cells of
    numbers and dates can be read as that column's. Data that were themselves read like others (test data like training
    data) add nothing: what is new in them is left out.

    Raises:
        DataError: test data without any column of the training data.
    """
    whole = [columns_of({"columns": columns}) for columns in (like.traits["columns"], *like.traits.get("tables", ()))]
    if like.traits.get("fixed"):
        if not {c.name for c in whole[0]} & set(inputs):
            raise DataError("The table has none of the columns of the data it is to be read like.", where=source,
                            fix=f"These are: {', '.join(c.name for c in whole[0][:20])}.")
        return whole[0]
    return next((columns for columns in whole if _is_part(table, inputs, columns, more)), None)


def _is_part(table: Table, inputs: Sequence[str], columns: Sequence[Column], more: frozenset[str]) -> bool:
    known = {c.name: c for c in columns}
    texts = dict(zip(table.names, table.texts, strict=True))
    return bool(inputs) and all(
        name in known and all(known[name].encode(text, more) is not None for text in texts[name]) for name in inputs)


def named_cells(column: Column, texts: Sequence[str], more: frozenset[str]) -> np.ndarray:
    """Every text of a column as a cell, (T, CHANNELS) float32; the value is NaN where one does not fit the column."""
    out = np.zeros((len(texts), CHANNELS), np.float32)
    out[:, FIRST_NAME:FIRST_TEXT] = pieces(column.name, NAME)
    true = truth(column)
    out[:, 2] = NUMBER if column.continuous else TRUTH if true else CATEGORY
    for row, text in zip(out, texts, strict=True):
        found = column.encode(text, more)
        row[:2] = (np.nan, np.nan) if found is None else found
        if is_missing(text, more):
            row[0] = column.absent
            continue
        if not column.continuous:
            row[3] = code_of(level(text))
        if true:
            row[0] = float(level(text) == true)
        row[FIRST_TEXT:] = pieces(written(column, text), TEXT)
    return out


def written(column: Column, text: str) -> str:
    """A cell as it is read: numbers to four decimals, levels by the name that tells them apart, dates as they are."""
    if column.kind == "numeric":
        value = number(text)
        return text if value is None else f"{round(value, 4):.15g}"
    return text if column.continuous else level(text)


def truth(column: Column) -> str:
    """The level that says yes where the other one says no; "" of any other column."""
    found = [text.lower() for text in column.levels]
    if column.kind != "binary" or len(found) != 2 or not (set(found) & YES and set(found) & NO):
        return ""
    return column.levels[0] if found[0] in YES else column.levels[1]


def no_columns(count: int) -> np.ndarray:
    """What stands where a row of a mixture has no column, (CHANNELS, count)."""
    blank = np.zeros((CHANNELS, count), np.float32)
    blank[1], blank[2] = 1, NOTHING
    return blank
