"""Lists of sample ids: a file that picks samples of a source, written ``SOURCE@ids.csv``."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from osteon.core.atomic import write_text
from osteon.core.errors import DataError, nearest
from osteon.data.changes import watch
from osteon.data.listing import Listing, there

_SUFFIXES = (".csv", ".txt")


def split_ids(source: str) -> tuple[str, Path | None]:
    """``SOURCE@ids.csv`` as source and file; ``(source, None)`` where no file of ids is named.

    A path that exists as written is never cut, so a folder may have ``@`` in its name.
    """
    match = re.fullmatch(r"(.+)@([^@]+)", source, flags=re.DOTALL)
    if match is None or not match[2].lower().endswith(_SUFFIXES) or there(source):
        return source, None
    return match[1], Path(os.path.expanduser(match[2]))


def read_ids(path: Path) -> list[str]:
    """The ids in a file, in its order.

    A ``.csv`` has a column named ``id``; further columns are ignored. A ``.txt`` has one id a line.

    Raises:
        DataError: no such file, no ids in it, no column ``id``, or an id that occurs twice.
    """
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise OSError("not a regular file")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError("The list of ids cannot be read.", where=str(path),
                        fix="Give a file such as `osteon select` writes.") from error
    if path.suffix.lower() == ".csv":
        ids = _column(text, path)
    else:
        ids = [line for line in text.splitlines() if line]
    if not ids:
        raise DataError("The list of ids is empty.", where=str(path), fix="List at least one id.")
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise DataError(f"The id '{name}' occurs twice in the list.", where=str(path), fix="Remove one of them.")
        seen.add(name)
    return ids


def _column(text: str, path: Path) -> list[str]:
    """The cells of the column ``id``."""
    rows = csv.DictReader(io.StringIO(text, newline=""))
    try:
        names = [name[:80] for name in rows.fieldnames or ["(none)"]]
        if "id" not in names:
            raise DataError("The list of ids has no column 'id'.", where=str(path),
                            fix=f"Its columns are: {', '.join(names[:20])}.")
        found = [(rows.line_num, row["id"]) for row in rows]
    except csv.Error as error:
        raise DataError(f"The list of ids cannot be read: {error}", where=str(path), fix="Check its quotes.") from error
    short = next((line for line, name in found if name is None), None)
    if short is not None:
        raise DataError(f"The row that ends on line {short} has no id.", where=str(path), fix="Remove it.")
    return [name for _, name in found]


def write_ids(path: Path, ids: Sequence[str], scores: Iterable[float] | None = None) -> None:
    """Write ids, best first, with their scores where there are any; :func:`read_ids` reads them back."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if scores is None:
        writer.writerows([["id"], *([name] for name in ids)])
    else:
        writer.writerows([["id", "score"], *([name, f"{score:.8g}"] for name, score in zip(ids, scores, strict=True))])
    write_text(path, text.getvalue())


def restrict(listing: Listing, path: Path, source: str) -> Listing:
    """The samples of a listing that a file of ids names, in the order of the listing.

    Args:
        listing: the whole.
        path: the file of ids.
        source: what the part is called.

    Raises:
        DataError: an id that the source does not hold, naming the nearest one.
    """
    watch(path)
    ids = read_ids(path)
    place = {name: i for i, name in enumerate(listing.ids)}
    unknown = [name for name in ids if name not in place]
    if unknown:
        raise DataError(f"{len(unknown)} of {len(ids)} ids do not occur in the source, e.g. '{unknown[0]}'.",
                        where=source,
                        fix="Use the list with the source it was made for." + nearest(unknown[0], listing.ids[:5000]))
    part = listing.take(sorted(place[name] for name in ids))
    part.source = source
    part.notes = [*listing.notes, f"ids: {len(ids):,} of {len(listing.ids):,} samples, as listed in {path}"]
    return part
