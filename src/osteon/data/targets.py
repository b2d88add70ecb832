"""Labels that are numbers to be predicted rather than classes: the rule that says so, and what they have to be."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from osteon.core.errors import DataError, UsageError, nearest
from osteon.data.dataset import Dataset
from osteon.data.listing import Listing, RawLabel
from osteon.modalities.table import number

#: How labels may be read.
TASKS = ("auto", "classes", "regression")
#: Distinct numbers from which labels that are not all whole are taken for numbers to be predicted.
MOST_CLASSES = 20
#: The rule, as it is printed.
RULE = f"more than {MOST_CLASSES} distinct numbers, not all of them whole"
#: Larger numbers are refused: their squares would not be finite.
_LARGEST = 1e150


def check_task(task: str, target: str | None, *others: str) -> str:
    """How labels are to be read: naming a target asks for regression. Raises UsageError for anything unknown.

    Args:
        task: as asked.
        target: as asked.
        others: tasks without labels that the caller knows, for the message.
    """
    if task not in TASKS:
        raise UsageError(f"There is no task '{task}'.{nearest(task, (*TASKS, *others))}", where="--task",
                         fix=f"Use {', '.join((*TASKS, *others))}.")
    if target is not None and not str(target).strip():
        raise UsageError("The target has no name.", where="--target", fix="Name a column of numbers.")
    if target is not None and task == "classes":
        raise UsageError("A target is a number to be predicted, not classes.", where="--target, --task",
                         fix="Leave one of the two out.")
    return "regression" if target is not None else task


def with_column(listing: Listing, target: str | None) -> Listing:
    """The listing with the column ``target`` in the place of its labels; tables have read theirs by that name already.

    Raises:
        UsageError: the source has no such column.
    """
    if target is None or listing.modality == "table":
        return listing
    name = target.strip().lower()
    if name in listing.extra:
        return replace(listing, labels=listing.extra[name](), class_names=None)
    if name in ("label", "labels") and listing.labels is not None:
        return listing
    known = [*(["label"] if listing.labels is not None else []), *sorted(listing.extra)]
    raise UsageError(f"This source has no column '{target}'.{nearest(name, known)}",
                     where=f"--target, {listing.source}", fix=f"It has: {', '.join(known[:40])}." if known else
                     "Name the numbers in a manifest, a csv with a column of paths and one of numbers.")


def read_targets(listing: Listing, task: str) -> tuple[np.ndarray | None, list[str]]:
    """The numbers to be predicted, (N,) float64, or None where labels are classes or missing; and what is noted.

    Args:
        listing: with its labels.
        task: ``classes``, ``regression``, or ``auto``: as the source says, else by :data:`RULE`.

    Raises:
        DataError: a number is missing, no number or infinite; or whole numbers of a table leave open what is meant.
    """
    wanted = listing.task or "auto" if task == "auto" else task
    labels = listing.labels
    if wanted == "classes" or labels is None or all(label is None for label in labels):
        return None, []
    values = [_value(label, listing.class_names) for label in labels]
    if wanted == "auto" and not _by_rule(listing, labels, values):
        return None, []
    for i, (label, value) in enumerate(zip(labels, values, strict=True)):
        if value is None:
            what = "has no number, others do" if label is None else \
                f"has '{label}' where a number is to be predicted, which is none that can be used"
            raise DataError(f"Sample {listing.ids[i]} {what}.", where=listing.source,
                            fix="Give every sample one finite number, leave it out, or read labels as classes with "
                                "--task classes.")
    found = np.array(values, np.float64)
    rule = "as asked" if task == "regression" else "the source says so" if listing.task else RULE
    return found, [f"target: a number to be predicted, {found.min():g} to {found.max():g}, mean {found.mean():g}, "
                   f"deviation {found.std():g} (rule: {rule}; --task classes reads labels as classes)"]


def need_spread(dataset: Dataset, option: str) -> None:
    """Raise DataError where all targets are one number: there is nothing to predict, and R2 has no value."""
    targets = dataset.targets
    if targets is not None and not float(np.ptp(targets)) > 1e-12 * float(np.abs(targets).max()):
        raise DataError(f"Every sample has the target {float(targets[0]):g}: there is nothing to predict.",
                        where=f"{option} {dataset.source}", fix="Give samples whose targets differ.")


def in_deviations(dataset: Dataset, scale: tuple[float, float]) -> Dataset:
    """The same samples with targets as networks learn them: less ``scale[0]``, over ``scale[1]``."""
    if dataset.targets is None:
        return dataset
    return replace(dataset, targets=(dataset.targets - scale[0]) / scale[1])


def why_unlabelled(dataset: Dataset) -> str:
    """The end of a message where classes are needed: there are no labels, or they are numbers."""
    return "this source has none" if dataset.targets is None else \
        "those of this source are numbers to be predicted"


def _value(label: RawLabel, names: list[str] | None) -> float | None:
    """The number a label is; None where it is none that can be used."""
    if names is not None and isinstance(label, int) and 0 <= label < len(names):
        return number(names[label])
    if isinstance(label, (int, float)):
        return float(label) if math.isfinite(label) and abs(label) <= _LARGEST else None
    return number(label) if isinstance(label, str) else None


def _by_rule(listing: Listing, labels: list[RawLabel], values: list[float | None]) -> bool:
    """Whether labels nobody has spoken for are numbers to be predicted; a few that are none among many are an error."""
    if listing.class_names is not None or any(isinstance(label, list) for label in labels):
        return False
    texts = {str(label) for label in labels}
    distinct = {value for value in values if value is not None}
    whole = all(value == int(value) for value in distinct)
    odd = {str(label) for label, value in zip(labels, values, strict=True) if value is None}
    if len(distinct) <= MOST_CLASSES or len(odd) > 0.1 * len(texts):
        return False
    if whole and not odd and listing.modality == "table":
        name = listing.traits.get("label") or "label"
        raise DataError(f"The label '{name}' is whole numbers with {len(distinct):,} levels: classes, or a number to "
                        "be predicted?", where=listing.source,
                        fix=f"Say --set 'columns={{{name}: numeric}}' (or --task regression) for a number, --set "
                            f"'columns={{{name}: categorical}}' (or --task classes) for classes, --set bins=4 for "
                            "classes of equal size, or --set label=none.")
    return not whole
