"""A folder of several tables as one source: which files it is made of, and which options concern which of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from osteon.core.errors import UsageError, nearest
from osteon.data._table_files import read_table
from osteon.data._table_roles import kinds_asked, words
from osteon.data.source import split_source

#: Endings of tables.
SUFFIXES = frozenset((".csv", ".tsv", ".parquet"))
#: Options that name columns.
ROLES = ("label", "group", "split")


def tables_of(source: str, names: object) -> list[str]:
    """The tables of a folder by name, each with the part that was asked for; none where it is no such folder.

    A folder is one source of tables only where they are read by names (``names=cells``, ``pieces`` or ``units``).

    Args:
        source: as given by the user, ``FOLDER`` or ``FOLDER:PART``.
        names: the option.
    """
    if not names:
        return []
    name, part = split_source(source)
    folder = Path(name).expanduser()
    if part and (folder / part).is_dir():
        folder, part = folder / part, None
    if not folder.is_dir():
        return []
    files = sorted(file for file in folder.iterdir()
                   if file.suffix.lower() in SUFFIXES and file.is_file() and file.name[0] != ".")
    return [f"{file}:{part}" if part else str(file) for file in files]


def options_of(files: Sequence[str], options: Mapping[str, Any], source: str) -> list[dict[str, Any]]:
    """The options of every table: those that name columns hold the names that the table has.

    Raises:
        UsageError: a name that no table has.
    """
    headers = [read_table(Path(split_source(file)[0]), file, most=1).names for file in files]
    every = list(dict.fromkeys(name for header in headers for name in header))
    kinds, drop = kinds_asked(options), words(options.get("drop") or "")
    roles = {key: str(options[key]) for key in ROLES if options.get(key) and options[key] != "none"}
    for option, named in (("columns", list(kinds)), ("drop", drop), *((k, [v]) for k, v in roles.items())):
        for name in named:
            if name not in every:
                raise UsageError(f"No table of the folder has a column '{name}'.{nearest(name, every)}",
                                 where=f"{option}, {source}", fix=f"Its columns are: {', '.join(every[:40])}.")
    found = []
    for header in headers:
        here = {key: value for key, value in options.items() if roles.get(key, header[0]) in header}
        for option, value in (("columns", {k: v for k, v in kinds.items() if k in header}),
                              ("drop", [name for name in drop if name in header])):
            here.pop(option, None)
            here |= {option: value} if value else {}
        found.append(here)
    return found
