"""What readers of volumes and clips share: archives of arrays, and options that are a few numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from osteon.core.errors import DataError, UsageError
from osteon.data._archive import Rows, load, read_archive
from osteon.data.arrays import _labels
from osteon.data.changes import stamp
from osteon.data.listing import Listing, RawLabel


def list_archive(path: Path, source: str, *, modality: str, shapes: str, asked: bool) -> Listing | None:
    """An ``.npz`` with samples under the modality's name and, where known, label, class_names, group and split.

    An ``.npy`` of samples is taken only when the modality was asked for. None where the file is something else.

    Args:
        path: the file.
        source: its name, for messages.
        modality: name of the array of samples.
        shapes: what shapes it may have, for messages.
        asked: whether the modality was named.
    """
    suffix = path.suffix.lower()
    if suffix == ".npy" and asked:
        found = load(path, source, mmap_mode="r")
        return _listing({modality: found}, source, path, modality, shapes)
    if suffix != ".npz":
        return None
    held = read_archive(path, source, modality, asked=asked)
    return None if held is None else _listing(held, source, path, modality, shapes)


def _listing(held: dict[str, np.ndarray], source: str, path: Path, modality: str, shapes: str) -> Listing:
    samples = held[modality]
    if not isinstance(samples, np.ndarray) or samples.ndim not in (4, 5) or samples.dtype.kind not in "iufb":
        kind = f"{samples.dtype} {samples.shape}" if isinstance(samples, np.ndarray) else "an archive"
        raise DataError(f"The array '{modality}' is {kind}.", where=source, fix=f"It holds numbers of shape {shapes}.")
    if not samples.size:
        raise DataError(f"The array '{modality}' is empty.", where=source, fix="Save at least one sample.")
    for name in ("label", "group", "split"):
        if name in held and len(held[name]) != len(samples):
            raise DataError(f"There are {len(samples)} samples but {len(held[name])} entries in '{name}'.",
                            where=source, fix="Save one entry a sample.")
    classes = [str(name) for name in held["class_names"]] if "class_names" in held else None
    labels: list[RawLabel] | None = None
    if "label" in held:
        labels, classes = _labels(held["label"], classes, source)

    def text(name: str) -> list[str] | None:
        return [str(value) for value in held[name]] if name in held else None

    return Listing(source, [f"{i:07d}" for i in range(len(samples))], Rows(samples).__getitem__, stamp([path]),
                   labels=labels, class_names=classes, groups=text("group"), split=text("split"), encoded=False,
                   modality=modality)


def numbers(value: Any, name: str, counts: Sequence[int], fix: str, *, whole: bool = False) -> list[float] | None:
    """An option that is a few numbers, ``[1.5, 1, 1]`` or ``1.5x1x1`` or ``1.5,1,1``; None where nothing was given.

    Args:
        value: as given.
        name: of the option.
        counts: how many numbers there may be.
        fix: what to write instead, for messages.
        whole: whether they are whole and at least 1.
    """
    if value in ("", None, 0):
        return None
    given = value if isinstance(value, (list, tuple)) else re.split(r"[x, ]+", str(value).strip())
    try:
        found = [float(v) for v in given]
    except (TypeError, ValueError):
        found = []
    good = len(found) in counts and all(np.isfinite(v) for v in found)
    if not good or (whole and not all(v >= 1 and v == int(v) for v in found)):
        raise UsageError(f"{name} cannot be {value!r}.", where=name, fix=fix)
    return found
