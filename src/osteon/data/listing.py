"""What a source holds, before anything is decoded: ids, labels, groups, splits, and how to get at each image."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from osteon.core.errors import DataError, nearest
from osteon.modalities import Payload

#: A label as found: nothing, one class or number, or several classes.
RawLabel = None | int | float | str | list[str]


@dataclass(frozen=True)
class Skipped:
    """One thing that could not be used, and why."""

    id: str
    reason: str


@dataclass
class Listing:
    """The contents of a source.

    Args:
        source: name or path as given.
        ids: one name an image, unique, independent of where the source lies.
        payload: callable giving image ``i``; called from one thread, with ascending numbers.
        stamp: changes when the source changes (paths, sizes, times), without reading the pixels.
        labels: one :data:`RawLabel` an image, or None.
        class_names: names of integer labels where the source knows them.
        groups: images of one group belong on one side of any split.
        split: which part of the source each image belongs to, e.g. ``"train"``.
        skipped: what was unreadable already while listing.
        notes: automatic choices, with their rule.
        cached: whether decoding is worth a cache on disk.
        encoded: whether images come as encoded files and not as pixels.
        modality: what the samples are, e.g. ``"image"``.
        traits: what the modality knows of them (see :class:`osteon.parts.types.DataSpec`).
        measured: mean and deviation of each channel and the scale, where the source knows them better than a count of
            its samples does.
        task: ``classes`` or ``regression`` where the source says what its labels are; empty = by rule.
        extra: further columns by name in lower case, each read when it is asked for.
        reading: options of reading that hold for this source unless others are asked for.
    """

    source: str
    ids: list[str]
    payload: Callable[[int], Payload]
    stamp: str
    labels: list[RawLabel] | None = None
    class_names: list[str] | None = None
    groups: list[str] | None = None
    split: list[str] | None = None
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    cached: bool = True
    encoded: bool = True
    modality: str = "image"
    traits: dict[str, Any] = field(default_factory=dict)
    measured: tuple[Sequence[float], Sequence[float], float] | None = None
    task: str = ""
    extra: Mapping[str, Callable[[], list[RawLabel]]] = field(default_factory=dict)
    reading: dict[str, Any] = field(default_factory=dict)

    def take(self, index: Sequence[int] | np.ndarray) -> Listing:
        """The images numbered ``index`` (ascending)."""
        rows = np.asarray(index, np.int64)
        payload = self.payload

        def pick(values: list | None) -> list | None:
            return None if values is None else [values[i] for i in rows.tolist()]

        def picked(column: Callable[[], list[RawLabel]]) -> Callable[[], list[RawLabel]]:
            return lambda: [values[i] for values in (column(),) for i in rows.tolist()]

        return replace(self, ids=[self.ids[i] for i in rows.tolist()], payload=lambda i: payload(int(rows[i])),
                       labels=pick(self.labels), groups=pick(self.groups), split=pick(self.split),
                       extra={name: picked(column) for name, column in self.extra.items()})

    def only(self, split: str) -> Listing:
        """The images of one split. Raises DataError naming the splits there are."""
        known = sorted(set(self.split or ()) - {""})
        if split not in known:
            has = f"It has: {', '.join(known)}." if known else "It has no splits."
            raise DataError(f"There is no split '{split}' in this source.", where=self.source,
                            fix=has + nearest(split, known))
        assert self.split is not None
        return self.take([i for i, name in enumerate(self.split) if name == split])


def there(source: str) -> bool:
    """Whether a source is a path that exists; no system looks at names that are too long or hold a null byte."""
    try:
        return bool(source) and Path(os.path.expanduser(source)).exists()
    except (OSError, ValueError):
        return False


def shown(text: str, most: int = 200) -> str:
    """Text from a user as a message may hold it: what no terminal can show replaced, a long one cut in the middle."""
    text = text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\ufffd")
    return text if len(text) <= most else f"{text[:most // 2]}...{text[-most // 2:]}"


def digest(*parts: object) -> str:
    """Hex digest (128 bits) of the text of ``parts``, kept apart from each other."""
    return digest_of(parts)


def digest_of(parts: Iterable[object]) -> str:
    """:func:`digest` of parts that need not lie in memory together."""
    mark = hashlib.blake2b(digest_size=16)
    for part in parts:
        text = str(part).encode("utf-8", "surrogateescape")
        mark.update(len(text).to_bytes(8, "little") + text)
    return mark.hexdigest()


def raw_bytes(array: np.ndarray) -> memoryview:
    """The bytes of an array in C order, without a copy where it is contiguous already."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def unique_ids(ids: Iterable[str]) -> list[str]:
    """The same ids, with ``#2``, ``#3``... after the second and later uses of one."""
    given = ids if isinstance(ids, list) else list(ids)
    taken = set(given)
    if len(taken) == len(given):
        return list(given)
    taken.clear()
    seen: dict[str, int] = {}
    out: list[str] = []
    for name in given:
        count = seen.get(name, 0) + 1
        fresh = name if count == 1 else f"{name}#{count}"
        while fresh in taken:
            count += 1
            fresh = f"{name}#{count}"
        seen[name] = count
        taken.add(fresh)
        out.append(fresh)
    return out


def _whole(value: int | float | str, source: str) -> int | str:
    """A label as a class: a float that is whole is its number, any other is none."""
    if not isinstance(value, float):
        return value
    if value.is_integer():
        return int(value)
    raise DataError(f"The label {value!r} is no class.", where=source,
                    fix="Labels are class numbers or names; to predict numbers, say --task regression.")


def share_equal(values: Iterable[str]) -> list[str]:
    """The same texts, equal ones being one object: a column of few names takes a pointer a row."""
    known: dict[str, str] = {}
    return [known.setdefault(value, value) for value in values]


def encode_labels(raw: list[RawLabel] | None, names: list[str] | None, ids: list[str],
                  source: str) -> tuple[np.ndarray | None, list[str], list[str]]:
    """Labels as numbers: ((N,) int64 or (N, K) uint8 for several labels an image, class names, notes).

    Classes are sorted by name (numbers by value) unless ``names`` gives their order. Raises DataError when some images
    have a label and some have none, or a number has no name.
    """
    if raw is None or all(label is None for label in raw):
        return None, [], []
    multi = any(isinstance(label, list) for label in raw)
    rows = [label if isinstance(label, list) else [] if label is None else [label] for label in raw] if multi else []
    missing = [] if multi else [ids[i] for i, label in enumerate(raw) if label is None]
    if missing:
        raise DataError(f"{len(missing)} of {len(raw)} images have no label, the others do.",
                        where=f"{source}: {missing[0]}",
                        fix="Label every image or none, or give the labelled ones as a source of their own.")
    found: set[Any] = {value for row in rows for value in row} if multi else set(raw)
    values = {_whole(value, source) for value in found}
    if names is not None and all(isinstance(value, int) for value in values):
        wrong = {value for value in values if not 0 <= int(value) < len(names)}
        if wrong:
            i, value = next((i, value) for i, row in enumerate(rows if multi else ([label] for label in raw))
                            for value in row if value in wrong)
            raise DataError(f"Label {value} has no name: there are {len(names)} class names.",
                            where=f"{source}: {ids[i]}", fix="Correct the label or the class names.")
        classes, number = list(names), {i: i for i in range(len(names))}
    else:
        numeric = all(isinstance(v, int) or re.fullmatch(r"-?\d{1,18}", v) for v in values)
        texts = {str(v) for v in values}
        classes = sorted(texts, key=int) if numeric else sorted(texts)
        position = {name: i for i, name in enumerate(classes)}
        number = {value: position[str(value)] for value in values}  # type: ignore[misc]
    if multi:
        table = np.zeros((len(rows), len(classes)), np.uint8)
        for i, row in enumerate(rows):
            table[i, [number[value] for value in row]] = 1  # type: ignore[index]
        return table, classes, [f"labels: several an image ({len(classes)} classes, {table.sum() / len(table):.2f} an "
                                f"image on average; {int((table.sum(1) == 0).sum())} images have none)"]
    labels = np.fromiter((number[label] for label in raw), np.int64, len(raw))  # type: ignore[index]
    counts = np.bincount(labels, minlength=len(classes))
    note = f"labels: {len(classes)} classes, {counts.min():,} to {counts.max():,} images a class"
    if (counts > 0).sum() == 1:
        only = classes[int(counts.argmax())]
        note = f"labels: all images are of one class ('{only}'): there is nothing to tell apart"
    return labels, classes, [note]
