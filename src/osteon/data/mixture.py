"""Several sources in one run, their shares changed towards its end; which sample comes when is a function of the step.

Blakeney et al. 2024, arXiv:2406.03476: small sets of high worth are drawn more often in the last tenth or fifth of
training, while optimiser and schedule simply go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np

from osteon.core.errors import DataError, UsageError
from osteon.data._table_names import no_columns
from osteon.data.dataset import Dataset
from osteon.data.listing import digest
from osteon.data.source import open_source
from osteon.data.table_folder import options_of, tables_of
from osteon.parts.cells import by_names

#: Options of ``--set``: shares of further sources, their shares in the last phase, the share of the steps before it.
OPTIONS: dict[str, Any] = {"mix": None, "upsample": None, "switch": 0.85}
_EXACT = 10**9


@dataclass(frozen=True)
class Mixture:
    """Which rows of a dataset made of several sources each step takes.

    Of the first ``n`` samples of a phase, each source but the first has given ``floor(share * n)`` and the first one
    the rest, so that shares hold to a sample at any step. Each source goes through its own permutations, one after the
    other, over both phases.

    Args:
        sizes: samples of each source; they stand in the dataset one after the other.
        base: their shares in the first phase.
        final: their shares in the last one.
        share: of the steps, after which the last phase begins.
        switch: the first step of the last phase; None until the steps of the run are known (:meth:`over`).
    """

    sizes: tuple[int, ...]
    base: tuple[Fraction, ...]
    final: tuple[Fraction, ...]
    share: float
    switch: int | None = None

    def over(self, steps: int) -> Mixture:
        """The mixture of a run of so many steps."""
        return replace(self, switch=round(self.share * steps))

    def check(self, batch: int) -> None:
        """Raise UsageError where a batch is too small for shares to be kept at every step."""
        if self.switch is None:
            raise UsageError("The mixture does not know how long the run is.", where="mix", fix="Call over(steps).")
        for shares in (self.base, self.final):
            if sum(-(-s * batch // 1) for s in shares[1:]) > batch:
                raise UsageError(f"A batch of {batch} is too small to mix {len(self.sizes)} sources in these shares.",
                                 where="mix", fix="Enlarge the batch, or leave the first source a larger share.")

    def taken(self, step: int, batch: int) -> list[int]:
        """Samples of each source before a step."""
        assert self.switch is not None
        early, late = min(step, self.switch) * batch, max(0, step - self.switch) * batch
        others = [int(b * early // 1) + int(f * late // 1) for b, f in zip(self.base[1:], self.final[1:], strict=True)]
        return [step * batch - sum(others), *others]

    def rows(self, step: int, batch: int, seed: int) -> np.ndarray:
        """Rows of the dataset of a step, in an order that mixes the sources: (batch,) int64."""
        before, after = self.taken(step, batch), self.taken(step + 1, batch)
        found, offset = [], 0
        for source, size in enumerate(self.sizes):
            found.append(offset + self._within(source, before[source], after[source], seed))
            offset += size
        return np.random.default_rng([seed, 1, step, 0]).permutation(np.concatenate(found))

    def _within(self, source: int, start: int, stop: int, seed: int) -> np.ndarray:
        """The samples number ``start`` to ``stop`` - 1 that a source gives, counted over all its passes."""
        size = self.sizes[source]
        passes = [np.random.default_rng([seed, 2, source, epoch]).permutation(size)
                  for epoch in range(start // size, -(-stop // size))]
        first = start - start // size * size
        return np.concatenate([*passes, np.empty(0, np.int64)])[first:first + stop - start].astype(np.int64)

    def notes(self, names: Sequence[str], steps: int, batch: int) -> list[str]:
        """What is drawn from where, and how often each source is gone through."""
        made = self.over(steps)
        middle, end = made.taken(made.switch or 0, batch), made.taken(steps, batch)
        return [f"mixture: {name}, {size:,} samples: {float(b):.3g} of a batch and {m / size:.2f} passes before step "
                f"{made.switch}, {float(f):.3g} and {(e - m) / size:.2f} passes from then on"
                for name, size, b, f, m, e in zip(names, self.sizes, self.base, self.final, middle, end, strict=True)]


class Stack:
    """Arrays one after the other, read like one array by row; nothing is copied before it is asked for.

    Args:
        parts: (N_i, ...) arrays of one shape and type.
        blank: what fills up the last side of samples, as long as the longest, where their lengths differ.
    """

    def __init__(self, parts: Sequence[np.ndarray], blank: np.ndarray | None = None) -> None:
        self.parts, self.blank = list(parts), blank
        self.ends = np.cumsum([len(p) for p in parts])
        self.shape = (int(self.ends[-1]), *(parts[0].shape[1:] if blank is None else blank.shape))
        self.dtype = parts[0].dtype
        self.ndim = len(self.shape)
        self.nbytes = sum(p.nbytes for p in parts)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        rows = np.arange(len(self))[index]
        if rows.ndim == 0:
            return cast(np.ndarray, self[rows[None]][0])
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        if self.blank is not None:
            out[:] = self.blank
        owner = np.searchsorted(self.ends, rows, side="right")
        for number, part in enumerate(self.parts):
            mine = owner == number
            taken = part[rows[mine] - (self.ends[number] - len(part))]
            if self.blank is None:
                out[mine] = taken
            else:
                out[mine, ..., :part.shape[-1]] = taken
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = np.concatenate(self.parts) if self.blank is None else self[:]
        return whole if dtype is None else whole.astype(dtype)


def read_shares(wish: Any, where: str) -> dict[str, Fraction]:
    """``SOURCE=SHARE,SOURCE=SHARE``, a list of these, or a mapping -> shares by source; 0 leaves a source out.

    Raises:
        UsageError: not that, or shares outside of [0, 1] or above 1 in sum.
    """
    pairs: list[tuple[str, Any]] = []
    if isinstance(wish, Mapping):
        pairs = [(str(k), v) for k, v in wish.items()]
    elif wish:
        texts = wish.split(",") if isinstance(wish, str) else wish if isinstance(wish, list | tuple) else [wish]
        pairs = [(name.strip(), share) for name, _, share in (str(t).rpartition("=") for t in texts)]
    shares: dict[str, Fraction] = {}
    for name, value in pairs:
        try:
            share = Fraction(str(value).strip()).limit_denominator(_EXACT)
        except (ValueError, ZeroDivisionError):
            share = Fraction(-1)
        if not name or not 0 <= share <= 1 or name in shares:
            raise UsageError(f"'{name}={value}' is no source with its share.", where=where,
                             fix=f"Write e.g. --set {where}=more.txt=0.02, each source once, shares in [0, 1].")
        shares[name] = share
    if sum(shares.values()) > 1:
        raise UsageError(f"The shares come to {float(sum(shares.values())):g}.", where=where,
                         fix="Leave something for the first source: their sum is 1 at most.")
    return shares


def open_mixed(source: str | Path | Dataset, *, mix: Any = None, upsample: Any = None, switch: float = 0.85,
               **options: Any) -> Dataset:
    """A source, by choice with others mixed in.

    Args:
        source: the first one, which decides how all are read, and gets what the shares of the others leave; also a
            folder of tables that are read by names.
        mix: shares of the others.
        upsample: their shares in the last phase; a source that is not named keeps its share, one that is new has none
            before.
        switch: share of the steps after which the last phase begins.
        options: of :func:`open_source`, for the first source.

    Raises:
        DataError: samples of another shape.
        UsageError: impossible shares.
    """
    base, last = read_shares(mix, "mix"), read_shares(upsample, "upsample")
    if not isinstance(switch, int | float) or not 0 <= switch <= 1:
        raise UsageError(f"switch = {switch} is no share of the steps.", where="switch", fix="Give 0 to 1, e.g. 0.85.")
    files = [] if isinstance(source, Dataset) else tables_of(str(source), options.get("names"))
    first = open_tables(files, str(source), **options) if files else open_source(source, **options)
    if not base and not last:
        return first
    names = [*base, *(name for name in last if name not in base)]
    parts = [first, *(open_source(name, like=first.spec) for name in names)]
    zero = Fraction(0)
    early = [base.get(name, zero) for name in names]
    late = [last.get(name, base.get(name, zero)) for name in names]
    for shares, where in ((early, "mix"), (late, "upsample")):
        if sum(shares) > 1:
            raise UsageError(f"The shares come to {float(sum(shares)):g}.", where=where,
                             fix="Leave something for the first source: their sum is 1 at most.")
    made = Mixture(tuple(len(p) for p in parts), (1 - sum(early, zero), *early), (1 - sum(late, zero), *late),
                   float(switch))
    return _join(parts, [first.source, *names], made)


def open_tables(files: Sequence[str], source: str, *, limit: int | None = None, **options: Any) -> Dataset:
    """Several tables, whatever their columns, as one data set; each keeps its own columns and statistics.

    Args:
        files: the tables.
        source: what they are called together.
        limit: use at most so many rows, drawn at random over all tables.
        options: of :func:`open_source`; those that name columns concern the tables that have them.
    """
    first, *others = options_of(files, {**options, "modality": "table"}, source)
    parts = [open_source(files[0], **first)]
    parts += [open_source(file, like=parts[0].spec, **more) for file, more in zip(files[1:], others, strict=True)]
    made = replace(_join(parts, [Path(name).name for name in files], None), source=source)
    made.notes.insert(0, f"tables: {len(files)} files of the folder, {len(made):,} rows, at most "
                         f"{made.images.shape[2]} columns (rule: all csv, tsv and parquet files in it, each with its "
                         "own columns)")
    if limit is not None and limit < len(made):
        made.notes.append(f"limit: {limit:,} of {len(made):,} rows (rule: drawn at random with seed 0)")
        made = made.subset(np.sort(np.random.default_rng(0).permutation(len(made))[:limit]))
    return made


def _join(parts: Sequence[Dataset], names: Sequence[str], mixture: Mixture | None) -> Dataset:
    first = parts[0]
    any_table = by_names(first.spec)
    for name, part in zip(names, parts, strict=True):
        if any_table and part.images.ndim == 3 and part.images.shape[1] == first.images.shape[1]:
            continue
        if part.images.shape[1:] != first.images.shape[1:] or part.images.dtype != first.images.dtype:
            raise DataError(f"Its samples are {part.images.dtype} {part.images.shape[1:]}, those of {names[0]} are "
                            f"{first.images.dtype} {first.images.shape[1:]}.", where=name,
                            fix="Mix sources of one shape and type.")
    notes = [f"{name}: {note}" for name, part in zip(names, parts, strict=True) for note in part.notes]
    labels, spec = None, replace(first.spec, num_classes=0, multi_label=False, class_weights=())
    known = all(p.class_names == first.class_names and p.labels is not None for p in parts)
    if known:
        labels, spec = np.concatenate([cast(np.ndarray, p.labels) for p in parts]), first.spec
    elif first.labels is not None:
        notes.append("labels: left out, since not all sources of the mixture have the same classes")
    skipped = [s for part in parts for s in part.skipped]
    blank = None
    if any_table:
        blank = no_columns(max(p.images.shape[2] for p in parts))
        spec = replace(spec, size=blank.shape[1], shape=(blank.shape[1],), traits={
            **spec.traits, "tables": [columns for n, p in enumerate(parts) for columns in (
                *([p.spec.traits["columns"]] if n else []), *p.spec.traits.get("tables", ()))]})
    return replace(first, images=cast(np.ndarray, Stack([p.images for p in parts], blank)),
                   ids=[f"{n}:{i}" for n, part in enumerate(parts) for i in part.ids], labels=labels,
                   class_names=first.class_names if known else [], groups=None, split=None, skipped=skipped,
                   notes=notes, fingerprint=digest(*(p.fingerprint for p in parts)), spec=spec, mixture=mixture,
                   targets=None)
