"""The pool of ``osteon selftrain``: without test samples, with a teacher's labels, and what is told of it."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from osteon.core.atomic import write_text
from osteon.core.errors import DataError
from osteon.data import Dataset, find_duplicates
from osteon.data.leaks import TRANSDUCTIVE, transductive
from osteon.data.listing import digest
from osteon.data.splits import class_weights
from osteon.parts.pseudo_labels import Labelled
from osteon.verbs._model import Trained


def without_copies(pool: Dataset, test: Dataset, leaks: str) -> tuple[Dataset, list[str]]:
    """A pool with no sample, and no copy of a sample, of the test data, and what is to be said about it.

    Raises:
        DataError: there are some and ``leaks`` is ``error``, or nothing is left.
    """
    if transductive(test.spec):
        return pool, [TRANSDUCTIVE]
    notes: list[str] = []
    while True:
        copies = find_duplicates(pool, test)
        pairs = [*copies.exact, *copies.near]
        shared = {g for g in pool.groups or () if g} & {g for g in test.groups or () if g}
        groups = {i for i, g in zip(pool.ids, pool.groups or (), strict=False) if g in shared}
        if not notes:
            notes = [f"leak check: {len(copies.exact)} exact and {len(copies.near)} near copies and {len(shared)} "
                     "groups of test samples in the pool", *copies.notes]
        if not pairs and not groups or leaks == "allow":
            return pool, notes
        if leaks == "error":
            first = f"{pairs[0][1]} is {pairs[0][0]}" if pairs else f"group {min(shared)}"
            raise DataError(f"{len(pairs)} copies and {len(shared)} groups of test samples lie in the pool, e.g. "
                            f"{first}.", where=pool.source, fix="Take them out, or use leaks=drop.")
        leaked = groups | {a for a, _ in pairs}
        keep = [i for i, name in enumerate(pool.ids) if name not in leaked]
        if not keep:
            raise DataError("Nothing of the pool is left without test samples.", where=pool.source,
                            fix="Give another pool.")
        pool = pool.subset(keep)


def pseudo_labelled(pool: Dataset, found: Labelled, teacher: Trained) -> Dataset:
    """The sure samples of a pool with the teacher's labels; labels of its own are gone."""
    part, labels = pool.subset(np.flatnonzero(found.kept)), found.labels[found.kept]
    spec = replace(part.spec, mean=teacher.spec.mean, std=teacher.spec.std, num_classes=teacher.spec.num_classes,
                   multi_label=teacher.spec.multi_label,
                   class_weights=class_weights(labels, teacher.spec.num_classes))
    return replace(part, labels=labels, class_names=list(teacher.meta["class_names"]), spec=spec,
                   fingerprint=digest(part.fingerprint, labels.tobytes().hex()))


def told_of(pool: Dataset, found: Labelled, teacher: Trained) -> dict[str, Any]:
    """What the report says of the pool; its own labels are only compared with."""
    names, kept = list(teacher.meta["class_names"]), found.labels[found.kept]
    counts = kept.sum(0) if kept.ndim == 2 else np.bincount(kept, minlength=len(names))
    told = {"samples": len(pool), "kept": int(found.kept.sum()), "share": float(found.kept.mean()),
            "confidence": float(found.confidence.mean()), "classes": dict(zip(names, counts.tolist(), strict=True))}
    if pool.labels is not None and pool.class_names == names and pool.labels.ndim == kept.ndim:
        told["agreement"] = float((pool.labels[found.kept] == kept).mean())
    return told


def write_labels(path: Path, pool: Dataset, found: Labelled, teacher: Trained) -> None:
    """``id,label,confidence,kept`` of every sample of the pool."""
    names, text = teacher.meta["class_names"], io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "label", "confidence", "kept"])
    for name, label, sure, kept in zip(pool.ids, found.labels, found.confidence, found.kept, strict=True):
        words = names[int(label)] if label.ndim == 0 else ";".join(names[k] for k in np.flatnonzero(label))
        writer.writerow([name, words, f"{sure:.4f}", int(kept)])
    write_text(path, text.getvalue())
