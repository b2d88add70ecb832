"""Reading tables: csv, tsv and parquet whose rows are the samples, every column of one kind by stated rules.

Cells are read by ``_table_files``, columns get their roles in ``_table_roles`` and become numbers in ``_table_cells``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from osteon.core.errors import DataError, UsageError
from osteon.data._table_cells import convert, header, measure, plan
from osteon.data._table_files import read_table
from osteon.data._table_named import NAMED
from osteon.data._table_roles import listed, roles
from osteon.data.changes import stamp
from osteon.data.codec import Codec, check_options
from osteon.data.listing import Listing
from osteon.modalities.table import RULES, days, is_missing, number
from osteon.parts.types import DataSpec

__all__ = ["CODEC", "LISTS_BY_OPTIONS", "NAMED", "OPTIONS", "list_path", "looks_like_table", "read_table"]

#: Columns of paths and of text: with one of them a table belongs to another modality unless it is asked for.
_OTHERS = frozenset(("path", "file", "file_name", "filename", "image", "img", "sound", "audio", "video", "bytes",
                     "text", "sentence", "document", "content", "review", "abstract"))
#: Options of ``--set``: columns by role, columns left out, kinds by name, further missing cells, bins of a number, and
#: whether columns are read by their names, so that a network reads any table: as cells, pieces or units.
OPTIONS: dict[str, Any] = {"label": "", "group": "", "split": "", "drop": "", "columns": "", "missing": "", "bins": 0,
                           "names": ""}
#: Most classes a label of numbers is cut into.
MOST_BINS = 10_000
_ENDING = re.compile(r"\S+\.[A-Za-z][A-Za-z0-9]{1,4}")


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
                            fix="Name the file, one row a sample, names of the columns in the first row. With "
                                "--set names=cells pre-training reads all tables of a folder.")
        return None
    if not asked and not looks_like_table(path):
        return None
    given = {key: value for key, value in check_options("table", options or {}).items() if key in (options or {})}
    if not 0 <= given.get("bins", 0) <= MOST_BINS:
        raise UsageError(f"bins = {given['bins']} is not possible.", where="bins", fix=f"Give 2 to {MOST_BINS:,}.")
    return listed(read_table(path, source), source, stamp([path], "table-1"), given, like)


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


#: Options and the data a model was trained on are handed to :func:`list_path` too: they say which column is the label.
LISTS_BY_OPTIONS = True
CODEC = Codec(header, plan, convert, measure, OPTIONS, RULES)
