"""Labelled series, one a sample: archives of arrays, ``.ts`` files, and tables with a series a row."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from osteon.core.errors import DataError
from osteon.data._archive import Rows, load, read_archive
from osteon.data._series_files import read_table, read_ts
from osteon.data.arrays import _labels
from osteon.data.changes import stamp, watch
from osteon.data.listing import Listing, RawLabel
from osteon.parts.types import DataSpec

#: Values of samples (C, t): an array (N, C, T), or one array a sample, or in bytes why there is none.
Arrays = np.ndarray | Rows | list[np.ndarray | bytes]
#: What labelled series may be, for messages.
KINDS = (".npz with series (N, C, T) or (N, T) and label, .npy, .ts files of the UCR and UEA archives, or a csv with a "
         "column label and a series a row")


def list_labelled(path: Path, source: str, *, asked: bool, like: DataSpec | None = None) -> Listing | None:
    """The labelled series at a path, or None when it holds none."""
    suffix = path.suffix.lower()
    if path.is_dir():
        files = sorted(path.glob("*.ts"))
        parts = {_part(file): file for file in files if _part(file)}
        return _ts(parts, source, like) if parts and (asked or len(parts) == len(files)) else None
    if suffix == ".ts" and (asked or _begins_ts(path)):
        return _ts({"": path}, source, like)
    if suffix == ".npz":
        return _npz(path, source, asked, like)
    if suffix == ".npy" and asked:
        return _samples(Rows(_checked(load(path, source, mmap_mode="r"), source)), [], source, stamp([path]), like)
    if suffix in (".csv", ".tsv", ".txt") and asked:
        return _rows(path, source, like)
    return None


def _part(file: Path) -> str:
    found = re.search(r"_(TRAIN|TEST|VAL)$", file.stem, flags=re.IGNORECASE)
    return found[1].lower() if found else ""


def _begins_ts(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8-sig") as file:
            return any(line.lower().startswith("@problemname") for line, _ in zip(file, range(200), strict=False))
    except (OSError, UnicodeDecodeError):
        return False


def _ts(parts: dict[str, Path], source: str, like: DataSpec | None) -> Listing:
    arrays, labels = list[np.ndarray | bytes](), list[RawLabel]()
    ids, split, notes = list[str](), list[str](), list[str]()
    watch(*parts.values())
    numbers = set[bool]()
    for part, file in sorted(parts.items(), key=lambda item: (item[0] != "train", item[0])):
        found, mark = read_ts(file, source), f"{part}-" if part else ""
        arrays += found.series
        labels += found.labels
        numbers.add(found.numbers)
        ids += [f"{mark}line-{line:06d}" for line in found.lines]
        split += [part] * len(found.series)
        notes += [note for note in found.notes if note not in notes]
    if not arrays:
        raise DataError("The file holds no series after @data.", where=source, fix="Check that it is complete.")
    if len(numbers) > 1:
        raise DataError("Labels are numbers to be predicted in one of the .ts files and classes in another.",
                        where=source, fix="Give all of them @targetLabel true, or none.")
    made = _samples(arrays, notes, source, stamp(list(parts.values())), like)
    return replace(made, ids=ids, labels=labels if any(labels) else None, split=split if any(split) else None,
                   task="regression" if True in numbers else made.task)


def _npz(path: Path, source: str, asked: bool, like: DataSpec | None) -> Listing | None:
    held = read_archive(path, source, "series", asked=asked)
    if held is None:
        return None
    series = _checked(held["series"], source)
    for name in ("label", "group", "split"):
        if name in held and len(held[name]) != len(series):
            raise DataError(f"There are {len(series)} series but {len(held[name])} entries in '{name}'.", where=source,
                            fix="Save one entry a series.")
    classes = [str(name) for name in held["class_names"]] if "class_names" in held else None
    labels: list[RawLabel] | None = None
    if "label" in held:
        labels, classes = _labels(held["label"], classes, source)
    notes = list[str]()
    made = _samples(_ends(series, notes), notes, source, stamp([path]), like)
    return replace(made, labels=labels, class_names=classes, groups=_text(held, "group"), split=_text(held, "split"))


def _text(held: dict[str, np.ndarray], name: str) -> list[str] | None:
    return [str(value) for value in held[name]] if name in held else None


def _checked(series: np.ndarray, source: str) -> np.ndarray:
    """An array of series as (N, C, T)."""
    if not isinstance(series, np.ndarray) or series.dtype.kind not in "iufb" or series.ndim not in (2, 3):
        shape = getattr(series, "shape", "of no shape")
        raise DataError(f"The series are {getattr(series, 'dtype', 'an archive')} {shape}.", where=source,
                        fix="Series are numbers of shape (N, C, T) or (N, T), missing ones NaN.")
    if not series.size:
        raise DataError("The array of series is empty.", where=source, fix="Save at least one series.")
    return series[:, None] if series.ndim == 2 else series


def _rows(path: Path, source: str, like: DataSpec | None) -> Listing | None:
    """A series a row with a column ``label``; without a header, the first column is the class (the UCR archive)."""
    table = read_table(path, source)
    bare = table.names[:1] == ["column0"]
    label = "column0" if bare else next((n for n in (*table.words, *table.names) if n.lower() == "label"), None)
    if label is None:
        return None
    known = {"group", "split", "id", *(() if bare else ("label",))}
    steps = [i for i, n in enumerate(table.names) if n != label and n.lower() not in known]
    left_out = [n for n in table.words if n != label and n.lower() not in known]
    if not steps or not len(table.values):
        raise DataError("The table holds no series: no column of numbers beside its label.", where=source,
                        fix="A row holds a label and the values of one series in order of time.")

    def column(name: str) -> list[str] | None:
        found = next((n for n in table.words if n.lower() == name), None)
        if found is not None:
            return table.words[found]
        at = next((i for i, n in enumerate(table.names) if n.lower() == name), None)
        return None if at is None else [f"{v:g}" for v in table.values[:, at]]

    notes = [f"columns: {', '.join(left_out)} left out (rule: steps of time are numbers)"] if left_out else []
    made = _samples(_ends(table.values[:, None, steps], notes), notes, source, stamp([path]), like)
    labels: list[RawLabel] = [None if cell in ("", "nan") else cell for cell in column(label.lower()) or []]
    return replace(made, labels=labels, groups=column("group"), split=column("split"))


def _ends(series: np.ndarray, notes: list[str]) -> Arrays:
    """Series (N, C, T) without what is missing in all channels at their end: how arrays hold unequal lengths."""
    if series.dtype.kind != "f":
        return series
    some = np.isfinite(series).any(1)
    last = np.where(some.any(1), series.shape[2] - some[:, ::-1].argmax(1), series.shape[2])
    if (last == series.shape[2]).all():
        return series
    notes.append(f"lengths: {int((last < series.shape[2]).sum()):,} series end before the last step (rule: missing "
                 "values at the end of all channels are no part of a series)")
    return [one[:, :end] for one, end in zip(series, last, strict=True)]


def _samples(arrays: Arrays, notes: list[str], source: str, mark: str, like: DataSpec | None) -> Listing:
    """A listing of arrays (C, t); a channel without any value takes its mean in the source (or in the model's data)."""
    totals, counts = np.zeros(0), np.zeros(0)
    for values in arrays:
        if isinstance(values, bytes):
            continue
        good = np.isfinite(values)
        if len(values) > len(totals):
            totals, counts = (np.pad(v, (0, len(values) - len(v))) for v in (totals, counts))
        totals[:len(values)] += np.where(good, values, 0.0).sum(1)
        counts[:len(values)] += good.sum(1)
    known = list(like.traits.get("usual", ())) if like is not None else []
    usual = known or (totals / np.maximum(counts, 1)).tolist()

    def payload(row: int) -> np.ndarray | bytes:
        if isinstance(arrays[row], bytes):
            return arrays[row]
        values = np.asarray(arrays[row], np.float64)
        lost = ~np.isfinite(values).any(1)
        if lost.any() and not lost.all():
            values = values.copy()
            values[lost] = np.resize(np.array(usual, np.float64), len(values))[lost, None]
        return values

    return Listing(source, [f"{i:07d}" for i in range(len(arrays))], payload, mark, notes=list(notes),
                   modality="series", traits={"kind": "samples", "usual": usual})
