"""One long series over time: parts by time, gaps, statistics of the training part, windows that cross no border."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from osteon.core.errors import DataError, UsageError, nearest
from osteon.data._series_files import Table, read_table
from osteon.data.changes import stamp
from osteon.data.listing import Listing, digest
from osteon.modalities.series import fill_missing
from osteon.parts.types import DataSpec

#: Largest value of a series: the square of more is beyond 32 bits.
MOST = 1e18
#: Parts by time and their shares where nothing is asked.
USUAL_SPLIT = "0.6,0.2,0.2"
#: Windows are powers of two between these where nothing is asked.
SHORTEST, LONGEST = 8, 512
#: Training windows aimed at by the rule for the hop.
ENOUGH = 4096


@dataclass(frozen=True)
class LongSeries:
    """A series over time, gaps filled.

    Args:
        values: (C, T) float64.
        names: of the channels.
        parts: name -> (first row, row after the last), in order of time.
        mean: (C,) of the training part.
        std: (C,) of the training part; 1 for a constant channel.
        known: (C, T) bool, False where a value was missing.
        traits: what is needed to read another series alike; JSON-ready.
        notes: every choice with its rule.
        stamp: changes when the file changes.
    """

    values: np.ndarray
    names: list[str]
    parts: dict[str, tuple[int, int]]
    mean: np.ndarray
    std: np.ndarray
    known: np.ndarray
    traits: dict[str, Any]
    notes: list[str]
    stamp: str

    def standardised(self) -> np.ndarray:
        """(C, T) less the mean and divided by the deviation of the training part."""
        return (self.values - self.mean[:, None]) / self.std[:, None]


def read_long(path: Path, source: str, options: Mapping[str, Any], like: DataSpec | None = None) -> LongSeries:
    """Read a csv, tsv or parquet file over time; channels, parts and scale as in ``like`` where they fit.

    Raises:
        DataError: no numbers, time that goes back, or parts that do not fit.
    """
    known = dict(like.traits) if like is not None else {}
    table = read_table(path, source).over_time()
    if len(table.values) < 2:
        raise DataError(f"The table has {len(table.values)} rows over time; a series has 2 or more.", where=source,
                        fix="Give a row a step, names of the columns in the first line.")
    notes = _time_notes(table, source)
    if table.words:
        notes.append(f"columns: {', '.join(table.words)} left out (rule: channels are numbers)")
    names, raw = _channels(table, known.get("names"), source, notes)
    huge = int(np.argmax(np.nan_to_num(np.abs(raw), posinf=0).max(1))) if raw.size else 0
    if raw.size and np.nanmax(np.abs(raw[huge]), initial=0) > MOST:
        raise DataError(f"The column '{names[huge]}' has values beyond {MOST:g}.", where=source,
                        fix="Scale it, or leave it out.")
    split = str(options["split"] or known.get("split") or USUAL_SPLIT)
    parts = split_rows(split, len(table.values), source)
    asked = "as in the data the model was trained on" if known.get("split") and not options["split"] else (
        "as asked" if options["split"] else "rule: 60, 20 and 20 % by time")
    rows = ", ".join(f"{part} {b - a:,}" for part, (a, b) in parts.items())
    over = len(table.values) - max(b for _, b in parts.values())
    notes.append(f"parts: rows of {rows} ({asked}); no window crosses a border"
                 + (f"; the last {over:,} rows are not used" if over else ""))
    values, have, filled = _fill(raw, parts)
    notes += filled
    begin, end = parts["train"]
    mean, std = values[:, begin:end].mean(1), values[:, begin:end].std(1)
    flat = [name for name, size in zip(names, std, strict=True) if size < 1e-8]
    if flat:
        notes.append(f"statistics: of the training part; {', '.join(flat)} is constant there; its deviation is taken "
                     "as 1")
    std = np.where(std < 1e-8, 1.0, std)
    if known.get("mean") and known.get("names") == names:
        mean, std = np.array(known["mean"]), np.array(known["std"])
    traits = {"kind": "windows", "names": names, "split": split, "mean": mean.tolist(), "std": std.tolist()}
    return LongSeries(values, names, parts, mean, std, have, traits, notes,
                      stamp([path], split, *names))


def split_rows(text: str, rows: int, source: str) -> dict[str, tuple[int, int]]:
    """Parts of a series of so many rows: ``"0.6,0.2,0.2"`` (shares) or ``"8640,2880,2880"`` (rows).

    Two numbers are train and test, three train, val and test. Shares that add up to 1 use every row.
    """
    try:
        numbers = [float(word) for word in str(text).replace("[", "").replace("]", "").split(",")]
    except ValueError:
        numbers = []
    good = len(numbers) in (2, 3) and all(np.isfinite(v) and v > 0 for v in numbers)
    shares = good and max(numbers) < 1 and sum(numbers) < 1 + 1e-9
    if not good or not (shares or all(v == int(v) for v in numbers)):
        raise UsageError(f"'{text}' does not say how to split a series by time.", where="split",
                         fix="Give shares of train, val and test such as 0.6,0.2,0.2, or rows such as 8640,2880,2880.")
    ends = np.cumsum(numbers) * (rows if shares else 1)
    borders = [0, *(int(np.floor(end + 1e-6)) for end in ends)]
    if borders[-1] > rows:
        raise DataError(f"The parts {text} need {borders[-1]:,} rows; the series has {rows:,}.", where=source,
                        fix="Ask for fewer rows, or for shares.")
    names = ("train", "val", "test") if len(numbers) == 3 else ("train", "test")
    if any(a == b for a, b in zip(borders, borders[1:], strict=False)):
        raise DataError(f"The series of {rows:,} rows is too short for the parts {text}.", where=source)
    return dict(zip(names, zip(borders, borders[1:], strict=False), strict=False))


def window_listing(series: LongSeries, source: str, options: Mapping[str, Any],
                   like: DataSpec | None = None) -> Listing:
    """Windows of a long series: (C, window), or (1, window) standardised where channels are ``independent``."""
    known = dict(like.traits) if like is not None else {}
    independent = bool(known.get("independent", False) if like is not None else options["independent"])
    notes = list(series.notes)
    window = _window(series, like.extent[0] if like is not None else _whole(options["window"], "window"),
                     like is not None, source, notes)
    hop = _hop(series, window, known.get("hop") or _whole(options["hop"], "hop"), independent, known, notes)
    starts, part_of = _starts(series, window, hop, source, notes)
    places = [(s, c) for s in starts for c in range(len(series.names))] if independent else [(s, -1) for s in starts]
    part_of = [p for p in part_of for _ in series.names] if independent else part_of
    values = series.standardised() if independent else series.values
    if independent:
        notes.append(f"channels: {len(series.names)} taken as independent series, each standardised by the training "
                     "part (as asked)" if like is None else "channels: independent, as in the data the model was "
                     "trained on")
    ids = [f"{s:07d}" + (f":{series.names[c]}" if independent else "") for s, c in places]
    empty = _empty(series.known, window, places)

    def payload(row: int) -> np.ndarray:
        start, channel = places[row]
        cut = (values if channel < 0 else values[channel:channel + 1])[:, start:start + window]
        return np.full(cut.shape, np.nan) if empty[row] else cut  # which is then skipped, and said to be

    listing = Listing(source, ids, payload, digest(series.stamp, window, hop),
                      split=part_of, notes=notes, modality="series",
                      traits={**series.traits, "window": window, "hop": hop, "independent": independent})
    own = (options["norm"] or ("window" if independent else "series")) if like is None else known.get("norm", "series")
    if own == "series":  # of the training part, whatever part is read
        ones = [0.0], [1.0]
        listing.measured = (*(ones if independent else (series.mean.tolist(), series.std.tolist())), 1.0)
    return listing


def _empty(known: np.ndarray, window: int, places: list[tuple[int, int]]) -> np.ndarray:
    """(N,) bool: windows in which no value was measured."""
    sums = np.pad(np.cumsum(known, 1), ((0, 0), (1, 0)))
    sums = np.concatenate([sums, sums.sum(0, keepdims=True)])  # the last row, number -1: all channels
    s, c = np.array(places).T
    return sums[c, s + window] == sums[c, s]


def _whole(value: Any, name: str) -> int:
    try:
        number = int(value or 0)
    except (TypeError, ValueError):
        number = -1
    if number < 0 or number != float(value or 0):
        raise UsageError(f"{name} is a whole number of steps, not {value!r}.", where=name,
                         fix="0 leaves it to the rule.")
    return number


def _window(series: LongSeries, asked: int, alike: bool, source: str, notes: list[str]) -> int:
    shortest = min(b - a for a, b in series.parts.values())
    rule = "as in the data the model was trained on" if alike else "as asked"
    if not asked:
        asked = int(2 ** np.floor(np.log2(max(1, shortest / 4))))
        asked = min(LONGEST, max(SHORTEST, asked))
        rule = f"rule: the power of two of which the shortest part holds 4, {SHORTEST} to {LONGEST}"
    begin, end = series.parts["train"]
    if asked > end - begin:
        raise DataError(f"A window of {asked} steps does not fit into the training part of {end - begin}.",
                        where=source, fix="Set a shorter window, e.g. --set window=32.")
    notes.append(f"window: {asked} steps ({rule})")
    return asked


def _hop(series: LongSeries, window: int, asked: int, independent: bool, known: Mapping[str, Any],
         notes: list[str]) -> int:
    rule = "as in the data the model was trained on" if known.get("hop") else "as asked"
    if not asked:
        begin, end = series.parts["train"]
        places = (end - begin - window + 1) * (len(series.names) if independent else 1)
        asked = max(1, min(places // ENOUGH, window // 2))
        rule = f"rule: about {ENOUGH:,} windows of the training part, at most half a window"
    notes.append(f"hop: {asked} steps from a window to the next ({rule})")
    return asked


def _starts(series: LongSeries, window: int, hop: int, source: str, notes: list[str]) -> tuple[list[int], list[str]]:
    starts, names = list[int](), list[str]()
    for name, (begin, end) in series.parts.items():
        here = range(begin, end - window + 1, hop)
        if not here:
            notes.append(f"part {name}: its {end - begin:,} rows are shorter than a window and give none")
        starts += here
        names += [name] * len(here)
    return starts, names


def _channels(table: Table, wanted: list[str] | None, source: str, notes: list[str]) -> tuple[list[str], np.ndarray]:
    """Names and values (C, T) of the channels, in the order of the model where it knows them by name."""
    names, values = list(table.names), table.values.T
    have = np.isfinite(values).any(1) if values.size else np.zeros(len(names), bool)
    if not have.all() and names:
        gone = [n for n, ok in zip(names, have, strict=True) if not ok]
        notes.append(f"channels: {', '.join(gone)} left out (rule: a channel holds at least one value)")
    names, values = [n for n, ok in zip(names, have, strict=True) if ok], values[have]
    if not names or values.shape[1] < 2:
        raise DataError("The table holds no series: no column of numbers with two rows.", where=source,
                        fix="A series has a column of time and a column of numbers a channel.")
    if wanted and set(wanted) <= set(names):
        names, values = list(wanted), values[[names.index(n) for n in wanted]]
    elif wanted and len(wanted) > 1:
        gone = [n for n in wanted if n not in names]
        notes.append(f"channels: {', '.join(gone)} of the data the model was trained on are not here;"
                     f"{nearest(gone[0], names)} channels are taken in their order")
    return names, np.ascontiguousarray(values)


def _fill(raw: np.ndarray, parts: Mapping[str, tuple[int, int]]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Gaps filled inside each part alone, so that nothing of a later part is seen in an earlier one."""
    known = np.isfinite(raw)
    if known.all():
        return raw, known, []
    values = raw.copy()
    last = max(b for _, b in parts.values())
    begin, end = parts["train"]
    usual = np.array([row[begin:end][ok[begin:end]].mean() if ok[begin:end].any() else 0.0
                      for row, ok in zip(raw, known, strict=True)])
    for a, b in [*parts.values(), (last, raw.shape[1])]:
        if b > a:
            values[:, a:b] = np.where(known[:, a:b].any(1)[:, None], fill_missing(raw[:, a:b]), usual[:, None])
    gaps = int((~known).sum())
    return values, known, [f"missing: {gaps:,} values ({gaps / known.size:.2%}), filled within each part (rule: on the "
                           "line between neighbours, the nearest at the ends; a channel without any in a part takes "
                           "its training mean)"]


def _time_notes(table: Table, source: str) -> list[str]:
    """What the column of time says; raises DataError where time does not increase."""
    if table.times is None:
        return ["time: no column of time (rule: rows are equally spaced)"]
    steps = np.diff(table.times)
    zero = np.timedelta64(0, "us") if table.times.dtype.kind == "M" else 0
    bad = np.flatnonzero(~(steps > zero))
    if len(bad):
        raise DataError(f"Time does not increase from row {bad[0] + 1} to row {bad[0] + 2}.", where=source,
                        fix="Sort the rows by time, and keep one series a file.")
    usual = np.median(steps.astype("int64")) if table.times.dtype.kind == "M" else np.median(steps)
    odd = int((np.abs(steps.astype(np.float64) - float(usual)) > 0.01 * float(usual)).sum())
    said = f"{usual / 1e6:,g} s" if table.times.dtype.kind == "M" else f"{usual:g}"
    return [f"time: a row every {said}" + (f"; {odd:,} of {len(steps):,} steps differ (rule: rows are taken as equally "
                                           "spaced)" if odd else "")]
