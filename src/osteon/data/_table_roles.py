"""Which columns of a table are label, group, split and ids, by stated rules, and what its rows are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from osteon.core.errors import DataError, UsageError, nearest
from osteon.data._table_files import Table
from osteon.data.listing import Listing, RawLabel, unique_ids
from osteon.modalities.table import KINDS, is_missing, level, number
from osteon.parts.types import DataSpec

#: Columns of labels by name, where none is given, the first that is there.
LABELS = ("label", "target", "class", "y")


@dataclass
class Roles:
    """Which columns are no input: names of label, group, split and ids, and those left out with the reason."""

    label: str = ""
    group: str = ""
    split: str = ""
    ids: str = ""
    left_out: dict[str, str] | None = None

    @property
    def taken(self) -> set[str]:
        """Columns that are no input."""
        return {self.label, self.group, self.split, self.ids, *(self.left_out or {})} - {""}


def words(value: Any) -> list[str]:
    """A list of names given as one or as a comma-separated text."""
    return [str(v).strip() for v in (value if isinstance(value, list | tuple) else str(value).split(","))
            if str(v).strip()]


def known_name(name: str, table: Table, option: str, source: str) -> str:
    """The name of a column; raises UsageError naming the nearest where the table has none such."""
    if name not in table.names:
        raise UsageError(f"The table has no column '{name}'.{nearest(name, table.names)}", where=f"{option}, {source}",
                         fix=f"Its columns are: {', '.join(table.names[:40])}.")
    return name


def roles(table: Table, options: Mapping[str, Any], like: DataSpec | None, source: str) -> Roles:
    """Who is what: as asked, else as in the data the model was trained on, else by name.

    A column is a label when it is called label, target, class or y (the first that is there), and group, split and id
    likewise; case does not matter. ``none`` stands for no such column.
    """
    inputs = {c["name"] for c in like.traits["columns"]} if like is not None else set()
    if like is not None and like.traits.get("names") and not inputs & set(table.names) == inputs:
        inputs = set()  # another table: what is an input there may be anything here
    by_name = {name.lower(): name for name in reversed(table.names) if name not in inputs}

    def role(option: str, usual: Sequence[str]) -> str:
        asked = str(options.get(option) or "")
        if asked and not (asked == "none" and "none" not in table.names):
            if asked in inputs:
                raise DataError(f"The column '{asked}' was an input when the model was trained: it would read the "
                                "answer.", where=source, fix=f"Train again with --set {option}={asked}.")
            return known_name(asked, table, option, source)
        trained = str(like.traits.get(option) or "") if like is not None else ""
        if trained and trained in table.names:
            return trained
        return "" if asked else next((by_name[name] for name in usual if name in by_name), "")

    left_out = dict(table.left_out)
    left_out |= {known_name(name, table, "drop", source): "as asked" for name in words(options.get("drop") or "")}
    return Roles(role("label", LABELS), role("group", ("group",)), role("split", ("split",)),
                 by_name.get("id", ""), left_out)


def _labels(table: Table, name: str, options: Mapping[str, Any], like: DataSpec | None,
            source: str) -> tuple[list[RawLabel], list[str] | None, list[float]]:
    """Labels of all rows, the names of bins, and the edges between bins."""
    cells, more = table.column(name), further_missing(options, like)
    for i, cell in enumerate(cells):
        if is_missing(cell, more) and any(not is_missing(c, more) for c in cells):
            raise DataError(f"Row {table.lines[i]} has no '{name}', other rows do.", where=source,
                            fix="Fill it in, remove the row, or read the table with --set label=none.")
    if is_missing(cells[0], more):
        return [None] * len(cells), None, []
    values = [number(cell) for cell in cells]
    edges = [float(e) for e in (like.traits.get("edges") or ())] if like is not None else []
    if like is not None and like.traits.get("names") and None in values:
        edges = []  # another table, whose label only has the same name
    bins = int(options.get("bins") or 0)
    if bins or edges:
        wrong = next((i for i, value in enumerate(values) if value is None), None)
        if wrong is not None or (bins < 2 and not edges):
            what = f"'{cells[wrong]}' is no number" if wrong is not None else f"{bins} bins tell nothing apart"
            raise UsageError(f"The column '{name}' cannot be cut into bins: {what}.", where=f"bins, {source}",
                             fix="Give 2 or more bins of a label of numbers, or leave bins out.")
        numbers = np.array(values, np.float64)
        edges = edges or [float(e) for e in np.unique(np.quantile(numbers, np.arange(1, bins) / bins))]
        names = [f"up to {edges[0]:g}", *(f"{a:g} to {b:g}" for a, b in zip(edges, edges[1:], strict=False)),
                 f"above {edges[-1]:g}"]
        return [int(b) for b in np.searchsorted(edges, numbers, side="left")], names, edges
    return [level(cell) for cell in cells], None, []


def further_missing(options: Mapping[str, Any], like: DataSpec | None = None) -> frozenset[str]:
    """Texts that count as missing beside the usual ones, in lower case."""
    known = like.traits.get("missing", ()) if like is not None else ()
    return frozenset(word.lower() for word in [*words(options.get("missing") or ""), *known])


def kinds_asked(options: Mapping[str, Any]) -> dict[str, str]:
    """Kinds by column: ``{age: numeric}`` or ``age:numeric,zip:categorical``."""
    given = options.get("columns") or {}
    pairs = given.items() if isinstance(given, Mapping) else [word.rpartition(":")[::2] for word in words(given)]
    kinds = {str(name).strip(): str(kind).strip() for name, kind in pairs}
    for name, kind in kinds.items():
        if kind not in KINDS or not name:
            raise UsageError(f"'{kind}' is no kind of column.{nearest(kind, KINDS)}", where="columns",
                             fix=f"Write columns='{{NAME: KIND}}' with a kind of {', '.join(KINDS)}.")
    return kinds


def _task(name: str, edges: Sequence[float], options: Mapping[str, Any], like: DataSpec | None) -> str:
    """What the labels are: as the kind of their column or bins say, else as in training, else left to the rule."""
    kind = kinds_asked(options).get(name, "")
    if edges or kind in ("categorical", "binary"):
        return "classes"
    if kind == "numeric":
        return "regression"
    return str(like.traits.get("task") or "") if like is not None and like.traits.get("label") == name else ""


def listed(table: Table, source: str, stamp: str, options: Mapping[str, Any], like: DataSpec | None, *,
           task: str = "", **more: Any) -> Listing:
    """The rows of a table with labels, groups, splits and ids; ``more`` goes to the listing as it is."""
    who = roles(table, options, like, source)
    labels, names, edges = _labels(table, who.label, options, like, source) if who.label else (None, None, [])
    shown = [f"{role}: column '{name}'" for role, name in (("label", who.label), ("group", who.group),
                                                          ("split", who.split), ("ids", who.ids)) if name]
    notes = ["; ".join(shown) + " (rule: as asked, as in training, or by name)"] if shown else []
    if edges:
        notes.append(f"label: {len(edges) + 1} bins of about equal size, fitted on all rows of the file")
    task = task or (_task(who.label, edges, options, like) if who.label else "")
    ids = table.column(who.ids) if who.ids else [f"row-{line}" for line in table.lines]
    ids = [name or f"row-{line}" for name, line in zip(ids, table.lines, strict=True)]
    return Listing(source, unique_ids(ids), table.row, stamp, labels=labels, class_names=names,
                   groups=table.column(who.group) if who.group else None,
                   split=table.column(who.split) if who.split else None, notes=notes, modality="table",
                   traits={"label": who.label, "edges": edges, "group": who.group, "split": who.split,
                           **({"task": task} if task else {})}, task=task, **more)
