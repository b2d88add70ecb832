"""Reading tables: csv, tsv and parquet whose rows are the samples, every column of one kind by stated rules."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from osteon.core.errors import DataError, UsageError, nearest
from osteon.data.codec import Codec, Plan
from osteon.data.listing import Listing, RawLabel, digest, unique_ids
from osteon.data.splits import train_validation_split
from osteon.modalities import Payload, Unreadable
from osteon.modalities.table import KINDS, RULES, Column, Mixed, columns_of, days, fit_column, is_missing, level, number
from osteon.parts.types import DataSpec

#: Columns of labels by name, where none is given, the first that is there.
LABELS = ("label", "target", "class", "y")
#: Levels from which numbers as labels are taken for a regression.
MOST_LABELS = 20
#: Columns of paths and of text: with one of them a table belongs to another modality unless it is asked for.
_OTHERS = frozenset(("path", "file", "file_name", "filename", "image", "img", "sound", "audio", "video", "bytes",
                     "text", "sentence", "document", "content", "review", "abstract"))
#: Options of ``--set``: columns by role, columns left out, kinds by name, further missing cells, bins of a number.
OPTIONS: dict[str, Any] = {"label": "", "group": "", "split": "", "drop": "", "columns": "", "missing": "", "bins": 0}
_ENDING = re.compile(r"\S+\.[A-Za-z][A-Za-z0-9]{1,4}")


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
    twice = sorted({name for name in names if names.count(name) > 1})
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
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"The parquet file cannot be read: {error}", where=source, fix="Write it again.") from error
    nested = {name: f"it holds {data.schema.field(i).type}" for i, name in enumerate(data.column_names)
              if pa.types.is_nested(data.schema.field(i).type) or pa.types.is_binary(data.schema.field(i).type)}
    names = [name for name in data.column_names if name not in nested and not name.startswith("__index_level_")]
    if not data.num_rows or not names:
        raise DataError("The table holds no row of single values.", where=source,
                        fix="Give columns of numbers, texts or dates.")
    if len(set(names)) < len(names):
        _checked_names(names, source)
    cells = [[_text(value) for value in data.column(name).to_pylist()] for name in names]
    table = Table.of(names, zip(*cells, strict=True), range(1, data.num_rows + 1), source)
    table.left_out |= nested
    return table


def _text(value: Any) -> str:
    if value is None or value != value:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


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


def _words(value: Any) -> list[str]:
    """A list of names given as one or as a comma-separated text."""
    return [str(v).strip() for v in (value if isinstance(value, list | tuple) else str(value).split(","))
            if str(v).strip()]


def _known(name: str, table: Table, option: str, source: str) -> str:
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
    by_name = {name.lower(): name for name in reversed(table.names) if name not in inputs}

    def role(option: str, usual: Sequence[str]) -> str:
        asked = str(options.get(option) or "")
        if asked and not (asked == "none" and "none" not in table.names):
            if asked in inputs:
                raise DataError(f"The column '{asked}' was an input when the model was trained: it would read the "
                                "answer.", where=source, fix=f"Train again with --set {option}={asked}.")
            return _known(asked, table, option, source)
        trained = str(like.traits.get(option) or "") if like is not None else ""
        if trained and trained in table.names:
            return trained
        return "" if asked else next((by_name[name] for name in usual if name in by_name), "")

    left_out = dict(table.left_out)
    left_out |= {_known(name, table, "drop", source): "as asked" for name in _words(options.get("drop") or "")}
    return Roles(role("label", LABELS), role("group", ("group",)), role("split", ("split",)),
                 by_name.get("id", ""), left_out)


def _labels(table: Table, name: str, options: Mapping[str, Any], like: DataSpec | None,
            source: str) -> tuple[list[RawLabel], list[str] | None, list[float]]:
    """Labels of all rows, the names of bins, and the edges between bins. Raises DataError for a regression."""
    cells, more = table.column(name), _more(options, like)
    for i, cell in enumerate(cells):
        if is_missing(cell, more) and any(not is_missing(c, more) for c in cells):
            raise DataError(f"Row {table.lines[i]} has no '{name}', other rows do.", where=source,
                            fix="Fill it in, remove the row, or read the table with --set label=none.")
    if is_missing(cells[0], more):
        return [None] * len(cells), None, []
    values = [number(cell) for cell in cells]
    edges = [float(e) for e in (like.traits.get("edges") or ())] if like is not None else []
    bins, kind = int(options.get("bins") or 0), _overrides(options).get(name, "")
    if bins or edges:
        wrong = next((i for i, value in enumerate(values) if value is None), None)
        if wrong is not None or (bins < 2 and not edges):
            what = f"'{cells[wrong]}' is no number" if wrong is not None else f"{bins} bins tell nothing apart"
            raise UsageError(f"The column '{name}' cannot be cut into bins: {what}.", where=f"bins, {source}")
        numbers = np.array(values, np.float64)
        edges = edges or [float(e) for e in np.unique(np.quantile(numbers, np.arange(1, bins) / bins))]
        names = [f"up to {edges[0]:g}", *(f"{a:g} to {b:g}" for a, b in zip(edges, edges[1:], strict=False)),
                 f"above {edges[-1]:g}"]
        return [int(b) for b in np.searchsorted(edges, numbers, side="left")], names, edges
    distinct = {value for value in values if value is not None}
    if len(distinct) > MOST_LABELS and None not in values and kind not in ("categorical", "binary"):
        raise DataError(f"The label '{name}' is a number with {len(distinct):,} levels; regression is not supported "
                        "yet.", where=source, fix="Cut it into classes of equal size with --set bins=4, read it as "
                        f"classes with --set 'columns={{{name}: categorical}}', or leave it out with --set label=none.")
    return [level(cell) for cell in cells], None, []


def _more(options: Mapping[str, Any], like: DataSpec | None = None) -> frozenset[str]:
    known = like.traits.get("missing", ()) if like is not None else ()
    return frozenset(word.lower() for word in [*_words(options.get("missing") or ""), *known])


def _overrides(options: Mapping[str, Any]) -> dict[str, str]:
    """Kinds by column: ``{age: numeric}`` or ``age:numeric,zip:categorical``."""
    given = options.get("columns") or {}
    pairs = given.items() if isinstance(given, Mapping) else [word.rpartition(":")[::2] for word in _words(given)]
    kinds = {str(name).strip(): str(kind).strip() for name, kind in pairs}
    for name, kind in kinds.items():
        if kind not in KINDS or not name:
            raise UsageError(f"'{kind}' is no kind of column.{nearest(kind, KINDS)}", where="columns",
                             fix=f"Write columns='{{NAME: KIND}}' with a kind of {', '.join(KINDS)}.")
    return kinds


def _listed(table: Table, source: str, stamp: str, options: Mapping[str, Any], like: DataSpec | None,
            **more: Any) -> Listing:
    who = roles(table, options, like, source)
    labels, names, edges = _labels(table, who.label, options, like, source) if who.label else (None, None, [])
    shown = [f"{role}: column '{name}'" for role, name in (("label", who.label), ("group", who.group),
                                                          ("split", who.split), ("ids", who.ids)) if name]
    notes = ["; ".join(shown) + " (rule: as asked, as in training, or by name)"] if shown else []
    if edges:
        notes.append(f"label: {len(edges) + 1} bins of about equal size, fitted on all rows of the file")
    ids = table.column(who.ids) if who.ids else [f"row-{line}" for line in table.lines]
    ids = [name or f"row-{line}" for name, line in zip(ids, table.lines, strict=True)]
    return Listing(source, unique_ids(ids), table.row, stamp, labels=labels, class_names=names,
                   groups=table.column(who.group) if who.group else None,
                   split=table.column(who.split) if who.split else None, notes=notes, modality="table",
                   traits={"label": who.label, "edges": edges, "group": who.group, "split": who.split}, **more)


def list_path(path: Path, source: str, *, asked: bool, options: Mapping[str, Any] | None = None,
              like: DataSpec | None = None) -> Listing | None:
    """The rows of a table, or None when it is none, or might be something else (an error when a table was asked for).

    Args:
        path: the file.
        source: as given by the user.
        asked: whether a table was asked for.
        options: those of :data:`OPTIONS` that were given.
        like: data a model was trained on.
    """
    if path.is_dir() or path.suffix.lower() not in (".csv", ".tsv", ".parquet"):
        if asked:
            raise DataError("A table is one csv, tsv or parquet file.", where=source,
                            fix="Name the file, one row a sample, names of the columns in the first row.")
        return None
    if not asked and not looks_like_table(path):
        return None
    table, status = read_table(path, source), path.stat()
    return _listed(table, source, digest("table-1", path.absolute(), status.st_size, status.st_mtime_ns), options or {},
                   like)


def looks_like_table(path: Path) -> bool:
    """Whether the first 200 rows can be nothing but a table: the rule by which one is recognised without being asked.

    At least ten rows and two columns beside label, group, split and ids, one of them of numbers; no column of paths or
    of text (more than five words a cell); and no time series (a first column of dates in order).
    """
    try:
        table = read_table(path, str(path), most=200)
        who = roles(table, {}, None, str(path))
    except DataError:
        return False
    inputs = [name for name in table.names if name not in who.taken]
    if len(table.codes) < 10 or len(inputs) < 2 or who.left_out and len(who.left_out) > 1 \
            or {name.lower() for name in table.names} & _OTHERS:
        return False
    first = [days(cell) for cell in table.column(table.names[0])]
    if None not in first and len(set(first)) > 1 and first == sorted(cast(list[float], first)):
        return False
    texts = [table.texts[table.names.index(name)] for name in inputs]
    if any(_ENDING.fullmatch(cell) for cells in texts for cell in cells):
        return False
    if any(np.mean([len(cell.split()) for cell in cells]) > 5 for cells in texts):
        return False
    return any(all(number(cell) is not None or is_missing(cell) for cell in cells) for cells in texts)


@dataclass
class TablePlan(Plan):
    """A plan with the value and the mark of every text of every column.

    Args:
        lookup: (2, T) float32, the texts of all inputs one after the other; NaN where a text does not fit its column.
        at: (K, 2) int64 for every input its column in the file and the place of its first text in ``lookup``.
    """

    lookup: np.ndarray | None = None
    at: np.ndarray | None = None


def _plan(headers: dict[int, Row], *, size: int | None, like: DataSpec | None, source: str,
          options: Mapping[str, Any]) -> TablePlan:
    """Kinds, levels and statistics from the rows in use, or those the model was trained with."""
    if size is not None:
        raise UsageError("A table has no size in pixels.", where="size", fix="Leave it out.")
    table = next(iter(headers.values())).table
    who, more = roles(table, options, like, source), _more(options, like)
    notes = []
    if like is None:
        columns, reasons = _fit(table, headers, who, _overrides(options), more, source)
        traits = {"columns": [c.trait() for c in columns], "missing": sorted(more)}
        notes += _notes(columns)
        reasons = {**(who.left_out or {}), **reasons}
    else:
        columns, traits = columns_of(like.traits), dict(like.traits)
        absent = [c.name for c in columns if c.name not in table.names]
        if absent:
            raise DataError(f"The table has no column '{absent[0]}', which the model was trained on"
                            + (f", nor {len(absent) - 1} others" if absent[1:] else "")
                            + f".{nearest(absent[0], table.names)}", where=source,
                            fix="Give a table with the same names of columns.")
        reasons = {name: "unknown in training" for name in table.names
                   if name not in who.taken and name not in {c.name for c in columns}}
        notes.append(f"columns: {len(columns)} (rule: as in the data the model was trained on)")
    if reasons:
        notes.append("left out: " + "; ".join(f"'{name}' ({why})" for name, why in reasons.items()))
    places = [table.names.index(c.name) for c in columns]
    cells = [[c.encode(text, more) or (np.nan, np.nan) for text in table.texts[j]]
             for c, j in zip(columns, places, strict=True)]
    starts = np.cumsum([0, *(len(part) for part in cells)])[:-1]
    lookup = np.array([cell for part in cells for cell in part], np.float32).T
    plan = TablePlan((2, len(columns)), "float32", traits, notes=notes, lookup=lookup,
                     at=np.stack([places, starts], 1))
    marks = np.stack([_look(row, plan)[1] for row in headers.values()])
    if np.nansum(marks):
        some = [c.name for c, m in zip(columns, np.nanmean(marks, 0), strict=True) if m > 0]
        notes.append(f"missing: {np.nanmean(marks):.1%} of the cells, in {', '.join(some)}")
    return plan


def _fit(table: Table, headers: dict[int, Row], who: Roles, kinds: Mapping[str, str], more: frozenset[str],
         source: str) -> tuple[list[Column], dict[str, str]]:
    """The columns that hold something to learn, and why the others do not."""
    for name in kinds:
        _known(name, table, "columns", source)
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
    return plan.lookup[:, plan.at[:, 1] + np.asarray(row)[plan.at[:, 0]]]


def _header(payload: Payload) -> Row:
    if not isinstance(payload, Row):
        raise Unreadable("is no row of a table")
    return payload


def _convert(payload: Payload, plan: TablePlan) -> np.ndarray:
    row = _header(payload)
    values = _look(row, plan)
    wrong = np.flatnonzero(np.isnan(values[0]))
    if len(wrong):
        column = columns_of(plan.traits)[int(wrong[0])]
        assert plan.at is not None
        j = int(plan.at[wrong[0], 0])
        raise Unreadable(f"row {row.line}, column '{column.name}': '{row.table.texts[j][int(row[j])]}' is no "
                         f"{'date' if column.kind == 'date' else 'number'} that can be used")
    return values


def _measure(samples: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """Nothing is left to be done: columns are standardised one by one when they are read."""
    return (0.0, 0.0), (1.0, 1.0), 1.0


def list_mixed(split: str | None) -> Listing:
    """2,000 generated rows of 14 columns and four classes: numbers, categories, a yes or no, a date, missing cells.

    Every class is two far clusters of a hidden space of three dimensions; each column is a noisy reading of one or two
    of these. ``train`` (1,400) and ``test`` (600) are a fixed random split.
    """
    rng = np.random.default_rng(0)
    count = 2000
    cluster = np.arange(count) % 8
    corners = np.array([[int(b) for b in f"{c:03b}"] for c in range(8)]) * 2.0 - 1
    hidden = corners[cluster] + 0.45 * rng.standard_normal((count, 3))
    labels = np.array([0, 1, 2, 3, 3, 2, 1, 0])[cluster]
    mixing = rng.standard_normal((3, 8))
    numbers = hidden @ mixing + 0.8 * rng.standard_normal((count, 8))
    numbers[:, 6:] = np.exp(numbers[:, 6:])  # skewed, as incomes are
    columns: dict[str, list[str]] = {f"number {j + 1}": [f"{v:.4g}" for v in numbers[:, j]] for j in range(8)}
    for j, names in enumerate((("red", "green", "blue"), ("north", "east", "south", "west"),
                               ("oak", "ash", "elm", "fir", "yew"))):
        logits = 1.2 * hidden @ rng.standard_normal((3, len(names)))
        drawn = (logits + rng.gumbel(size=logits.shape)).argmax(1)
        columns[("colour", "place", "tree")[j]] = [names[k] for k in drawn]
    columns["member"] = ["yes" if v > 0 else "no" for v in hidden[:, 0] + rng.standard_normal(count)]
    day = np.datetime64("2020-01-01") + (400 + 150 * hidden[:, 1] + 60 * rng.standard_normal(count)).astype(int)
    columns["since"] = [str(d) for d in day]
    columns["noise"] = [f"{v:.4g}" for v in rng.standard_normal(count)]
    for name in ("number 1", "number 5", "tree", "since"):
        for i in np.flatnonzero(rng.random(count) < 0.1):
            columns[name][i] = ""
    parts = np.where(rng.permutation(count) < 1400, "train", "test")
    return _embedded("mixed", columns, [f"class {c}" for c in labels], [str(p) for p in parts], split)


def _sklearn(name: str) -> Callable[[str | None], Listing]:
    def lister(split: str | None) -> Listing:
        """A table of scikit-learn; a fixed stratified 70/30 split (seed 0) with equal rows on one side."""
        from sklearn import datasets

        data = getattr(datasets, f"load_{name}")()
        rows = [[repr(float(v)) for v in row] for row in data.data]
        train, test = train_validation_split(data.target, 0.3, seed=0, groups=["|".join(row) for row in rows])
        parts = np.empty(len(rows), object)
        parts[train], parts[test] = "train", "test"
        columns = {str(n): list(cells) for n, cells in zip(data.feature_names, zip(*rows, strict=True), strict=True)}
        return _embedded(name, columns, [str(data.target_names[k]) for k in data.target], list(parts), split)

    return lister


def _embedded(name: str, columns: Mapping[str, Sequence[str]], labels: Sequence[str], parts: Sequence[str],
              split: str | None) -> Listing:
    named = {**columns, "label": labels, "split": parts, "id": [f"{name}-{i:04d}" for i in range(len(labels))]}
    table = Table.of(list(named), zip(*named.values(), strict=True), range(1, len(labels) + 1), name)
    listing = _listed(table, name, f"{name}-1", {}, None, cached=False)
    return listing.only(split) if split else listing


#: Generated and embedded sources by name: name -> ``list(split)``.
NAMED = {"mixed": list_mixed, "breast_cancer": _sklearn("breast_cancer"), "wine": _sklearn("wine"),
         "iris": _sklearn("iris")}
#: Options and the data a model was trained on are handed to :func:`list_path` too: they say which column is the label.
LISTS_BY_OPTIONS = True
CODEC = Codec(_header, _plan, _convert, _measure, OPTIONS, RULES)
