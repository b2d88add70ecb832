"""From the texts of a table to numbers: kinds, levels and statistics of its columns, and one row's values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from osteon.core.errors import DataError, UsageError, nearest
from osteon.data._table_files import Row, Table
from osteon.data._table_names import known_columns, named_cells, way
from osteon.data._table_roles import Roles, further_missing, kinds_asked, known_name, roles
from osteon.data.codec import Plan
from osteon.modalities import Payload, Unreadable
from osteon.modalities.table import KINDS, Column, Mixed, columns_of, fit_column
from osteon.parts.cells import CHANNELS, RULE
from osteon.parts.types import DataSpec


@dataclass
class TablePlan(Plan):
    """A plan with the value and the mark of every text of every column.

    Args:
        lookup: (C, T) float32, the texts of all inputs one after the other; NaN where a text does not fit its column.
        at: (K, 2) int64 for every input its column in the file, -1 for none, and the place of its first text in
            ``lookup``.
    """

    lookup: np.ndarray | None = None
    at: np.ndarray | None = None


def plan(headers: dict[int, Row], *, size: int | None, like: DataSpec | None, source: str,
         options: Mapping[str, Any]) -> TablePlan:
    """Kinds, levels and statistics from the rows in use, or those the model was trained with."""
    if size is not None:
        raise UsageError("A table has no size in pixels.", where="size", fix="Leave it out.")
    table = next(iter(headers.values())).table
    who, more, mode = roles(table, options, like, source), further_missing(options, like), way(options, like, source)
    inputs = [name for name in table.names if name not in who.taken]
    columns = None if like is None else known_columns(like, table, inputs, more, source) if mode else _trained(
        like, table, source)
    notes = []
    if columns is None:
        columns, reasons = _fit(table, headers, who, kinds_asked(options), more, source)
        traits = {"columns": [c.trait() for c in columns], "missing": sorted(more)}
        notes += _notes(columns)
        reasons = {**(who.left_out or {}), **reasons}
        if like is not None:
            notes.append("columns: not those of any table in training, so numbers are standardised by the rows of this "
                         "source")
    else:
        assert like is not None
        traits = {**like.traits, "columns": [c.trait() for c in columns]}
        reasons = {name: "unknown in training" for name in inputs if name not in {c.name for c in columns}}
        here = sum(c.name in table.names for c in columns)
        notes.append(f"columns: {len(columns)} (rule: as in the data the model was trained on)"
                     + (f"; {len(columns) - here} are not there and skipped" if here < len(columns) else ""))
    if mode:
        traits |= {"names": mode, **({"fixed": True} if like is not None else {})}
        notes.append(f"columns are read by their names, one token a {NOUNS[mode]}; {RULE}")
    if reasons:
        notes.append("left out: " + "; ".join(f"'{name}' ({why})" for name, why in reasons.items()))
    made = _lookup(table, columns, more, traits, bool(mode))
    made.notes = notes
    marks = np.stack([_look(row, made)[1] for row in headers.values()])
    if np.nansum(marks):
        some = [c.name for c, m in zip(columns, np.nanmean(marks, 0), strict=True) if m > 0]
        notes.append(f"missing: {np.nanmean(marks):.1%} of the cells, in {', '.join(some)}")
    return made


#: What a token is, by the way of reading names.
NOUNS = {"cells": "cell", "pieces": "piece of a cell", "units": "name and one a piece of a cell"}


def _trained(like: DataSpec, table: Table, source: str) -> list[Column]:
    """The columns of the table a model was trained on. Raises DataError where one is not there."""
    columns = columns_of(like.traits)
    absent = [c.name for c in columns if c.name not in table.names]
    if absent:
        raise DataError(f"The table has no column '{absent[0]}', which the model was trained on"
                        + (f", nor {len(absent) - 1} others" if absent[1:] else "")
                        + f".{nearest(absent[0], table.names)}", where=source,
                        fix="Give a table with the same names of columns, or train with --set names=cells, which reads "
                            "any.")
    return columns


def _lookup(table: Table, columns: Sequence[Column], more: frozenset[str], traits: dict[str, Any],
            named: bool) -> TablePlan:
    """The plan: cells of all texts of all columns; a column that is not there holds one missing cell."""
    parts, at, start = [], [], 0
    for column in columns:
        place = table.names.index(column.name) if column.name in table.names else -1
        texts = [""] if place < 0 else table.texts[place]
        cells = named_cells(column, texts, more) if named else np.array(
            [column.encode(text, more) or (np.nan, np.nan) for text in texts], np.float32).reshape(-1, 2)
        parts.append(cells)
        at.append((place, start))
        start += len(cells)
    return TablePlan((CHANNELS if named else 2, len(columns)), "float32", traits, lookup=np.concatenate(parts).T,
                     at=np.array(at, np.int64))


def _fit(table: Table, headers: dict[int, Row], who: Roles, kinds: Mapping[str, str], more: frozenset[str],
         source: str) -> tuple[list[Column], dict[str, str]]:
    """The columns that hold something to learn, and why the others do not."""
    for name in kinds:
        known_name(name, table, "columns", source)
    codes = np.stack([np.asarray(row) for row in headers.values()])
    columns, reasons = [], {}
    for j, name in enumerate(table.names):
        if name in who.taken:
            continue
        counts = np.bincount(codes[:, j], minlength=len(table.texts[j]))
        try:
            found = fit_column(name, {t: int(n) for t, n in zip(table.texts[j], counts, strict=True)},
                               kind=kinds.get(name, ""), more=more)
        except Mixed as error:
            cell, kind = error.args
            line = next(row.line for row in headers.values() if table.texts[j][int(row[j])] == cell)
            thing = "number" if kind == "numeric" else "date"
            raise DataError(f"Row {line}, column '{name}': '{cell}' is no {thing} that can be used, unlike the others.",
                            where=source,
                            fix=f"Correct it, count it as missing with --set 'missing={cell}', or read the column as "
                                f"classes with --set 'columns={{{name}: categorical}}'.") from error
        if isinstance(found, str):
            reasons[name] = found
        else:
            columns.append(found)
    if not columns:
        raise DataError("No column holds anything to learn from: "
                        + "; ".join(f"'{n}' is left out ({why})" for n, why in reasons.items()) + ".", where=source,
                        fix="Give columns of numbers or of categories beside the label.")
    return columns, reasons


def _notes(columns: Sequence[Column]) -> list[str]:
    notes = []
    for kind, rule in KINDS.items():
        found = [c for c in columns if c.kind == kind]
        if found:
            names = ", ".join(c.name + (f" ({len(c.levels)} levels)" if kind == "categorical" else "")
                              for c in found[:20]) + (f" and {len(found) - 20} more" if len(found) > 20 else "")
            notes.append(f"columns: {len(found)} {kind} (rule: {rule}): {names}")
    return notes


def _look(row: Row, plan: TablePlan) -> np.ndarray:
    assert plan.lookup is not None and plan.at is not None
    return plan.lookup[:, plan.at[:, 1] + np.where(plan.at[:, 0] < 0, 0, np.asarray(row)[plan.at[:, 0]])]


def header(payload: Payload) -> Row:
    """The row a payload is."""
    if not isinstance(payload, Row):
        raise Unreadable("is no row of a table")
    return payload


def convert(payload: Payload, plan: TablePlan) -> np.ndarray:
    """Values and marks of a row, (2, K) float32; a cell that does not fit its column makes it unreadable."""
    row = header(payload)
    values = _look(row, plan)
    wrong = np.flatnonzero(np.isnan(values[0]))
    if len(wrong):
        column = columns_of(plan.traits)[int(wrong[0])]
        assert plan.at is not None
        j = int(plan.at[wrong[0], 0])
        raise Unreadable(f"row {row.line}, column '{column.name}': '{row.table.texts[j][int(row[j])]}' is no "
                         f"{'date' if column.kind == 'date' else 'number'} that can be used")
    return values


def measure(samples: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """Nothing is left to be done: columns are standardised one by one when they are read."""
    channels = samples.shape[1]
    return (0.0,) * channels, (1.0,) * channels, 1.0
