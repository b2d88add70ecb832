"""Cells that say themselves what column they belong to, so that a network can read any table.

A row read by names is (CHANNELS, K) float32, one column of the array a column of the table:

======================  ==============================================================================================
channel                 what it holds
======================  ==============================================================================================
0, 1                    as without names: the standardised number or the number of the level; 1 where it is missing
2                       kind: :data:`NUMBER`, :data:`CATEGORY`, :data:`TRUTH` (yes or no), or :data:`NOTHING`, no column
3                       code of the level, 0 to :data:`CODES` - 1; of numbers 0
4 to 11                 pieces of the column's name, then 0
12 to 23                pieces of the cell as it is written, then 0; none of a missing cell
======================  ==============================================================================================

A piece is a number below :data:`PIECES`. Words are hashed to theirs instead of being looked up in a learned vocabulary
(Weinberger et al. 2009, "Feature Hashing for Large Scale Multitask Learning"), so that no table holds unknown ones.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from osteon.core.errors import UsageError
from osteon.parts.types import DataSpec
from osteon.parts.words import MASK, PAD

#: Most pieces of a column's name and of a cell.
NAME, TEXT = 8, 12
#: Channels of a row read by names; where pieces of the name and of the cell start.
FIRST_NAME, FIRST_TEXT, CHANNELS = 4, 4 + NAME, 4 + NAME + TEXT
#: Kinds of cells.
NUMBER, CATEGORY, TRUTH, NOTHING = 0, 1, 2, 3
#: Codes of levels, and pieces: special ones, single characters, hashed words from ``FIRST_WORD`` on.
CODES, PIECES, FIRST_WORD = 128, 8192, 32
#: Begin and end of a text that is generated; the first three are those of every vocabulary.
BEGIN, END = 3, 4
_SINGLE = {sign: 5 + i for i, sign in enumerate("0123456789.+-:e")}
_PIECE = re.compile(r"[^\W\d_]+|\d|[.+\-](?=\d)|[<>=%&#@$€£°*!~^|:]")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")

#: The rule, printed.
RULE = (f"pieces are runs of letters in lower case (split at inner capitals), single digits and signs; words are "
        f"hashed to {PIECES - FIRST_WORD:,} vectors; of a name the first {NAME - 1} count and the others together as "
        f"one, of a cell the first {TEXT - 1}")


def words_of(text: str) -> list[str]:
    """The pieces of a text as text; one without letters, digits or signs is a piece as a whole."""
    return _PIECE.findall(_CAMEL.sub(" ", text).lower()) or ([text] if text else [])


@lru_cache(maxsize=2**16)
def piece(word: str) -> int:
    """The number of a piece: single characters of numbers have their own, all others a hashed one."""
    if word in _SINGLE:
        return _SINGLE[word]
    return FIRST_WORD + _hash(word) % (PIECES - FIRST_WORD)


def pieces(text: str, most: int) -> list[int]:
    """The pieces of a text, filled up with 0 to ``most``; the ones beyond are hashed together into the last."""
    words = words_of(text)
    if len(words) > most:
        words = [*words[:most - 1], "\0".join(words[most - 1:])]
    found = [piece(word) for word in words]
    return found + [PAD] * (most - len(found))


def code_of(level: str) -> int:
    """The code of a level, by which masked objectives tell levels apart, whatever the table: below :data:`CODES`."""
    return _hash("level " + level) % CODES


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big")


def by_names(spec: DataSpec) -> bool:
    """Whether data are rows read by names: their columns may be any."""
    return spec.modality == "table" and bool(spec.traits.get("names"))


def need_cells(options: Mapping[str, Any]) -> None:
    """Raise UsageError where a backbone's options say that tokens are parts of cells, whose order means nothing."""
    way = options.get("stem_options", {}).get("tokens") if options.get("stem") == "names" else "cells"
    if way != "cells":
        raise UsageError(f"A token of a table read by {way} is no cell that could be hidden and predicted.",
                         where="names", fix="Read the table with --set names=cells for this objective.")


def exists(x: Tensor) -> Tensor:
    """(B, K) bool, True where a row (B, CHANNELS, K) has a column at all."""
    return x[:, 2] < NOTHING - 0.5


def present(x: Tensor) -> Tensor:
    """(B, K) bool, True where there is a cell and it is not missing."""
    return exists(x) & (x[:, 1] < 0.5)


def names_of(x: Tensor) -> Tensor:
    """Pieces of the names, (B, NAME, K) int64."""
    return x[:, FIRST_NAME:FIRST_TEXT].round().long()


def texts_of(x: Tensor) -> Tensor:
    """Pieces of the cells, (B, TEXT, K) int64."""
    return x[:, FIRST_TEXT:].round().long()


def without(x: Tensor, gone: Tensor) -> Tensor:
    """Rows in which the cells ``gone`` (B, K) are missing: nothing but the name of their column is left."""
    blank = x.clone()
    blank[:, [0, 3]] = 0
    blank[:, 1] = 1
    blank[:, FIRST_TEXT:] = 0
    return torch.where(gone[:, None], blank, x)


def covered(x: Tensor, hidden: Tensor) -> Tensor:
    """Rows in which the cells ``hidden`` (B, K) hold one mask piece, whatever was in them and however long it was."""
    mask = without(x, hidden)
    mask[:, 1] = torch.where(hidden, 0.0, x[:, 1])
    mask[:, FIRST_TEXT] = torch.where(hidden, float(MASK), mask[:, FIRST_TEXT])
    return mask


def only(x: Tensor, group: Tensor) -> Tensor:
    """Rows that have the columns ``group`` (B, K) and no others."""
    out = torch.where(group[:, None], x, torch.zeros_like(x))
    out[:, 2] = torch.where(group, x[:, 2], float(NOTHING))
    out[:, 1] = torch.where(group, x[:, 1], 1.0)
    return out


def partitions(order: Tensor, parts: int, overlap: float) -> list[Tensor]:
    """Consecutive groups of an order of columns, each with some of the next, the last with some of the one before.

    Args:
        order: (K,) int64 columns.
        parts: number of groups; sizes differ by one at most before columns are shared.
        overlap: columns shared over the size of the first group, rounded up.

    Returns:
        ``parts`` tensors of columns.
    """
    groups = list(order.tensor_split(parts))
    shared = math.ceil(overlap * len(groups[0]))
    if not shared or parts == 1:
        return groups
    more = [group[:shared] for group in groups[1:]] + [groups[-2][-shared:]]
    return [torch.cat([group, extra]) for group, extra in zip(groups, more, strict=True)]


def column_groups(there: Tensor, places: Tensor, parts: int, overlap: float) -> Tensor:
    """The same groups of columns for all rows of one table, whatever columns it has: (parts, B, K) bool.

    Args:
        there: (B, K) bool, the columns each row has.
        places: (K,) numbers, by whose order columns are cut into groups.
        parts: number of groups.
        overlap: see :func:`partitions`.
    """
    groups = torch.zeros(parts, *there.shape, dtype=torch.bool, device=there.device)
    patterns, owner = torch.unique(there, dim=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        columns = pattern.nonzero()[:, 0]
        order = columns[places.to(there.device)[columns].argsort()]
        for g, group in enumerate(partitions(order, parts, overlap)):
            groups[g, :, group] |= (owner == number)[:, None]
    return groups
