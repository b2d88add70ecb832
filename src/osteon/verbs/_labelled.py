"""Labelled data of an evaluation: training and test opened alike, and who can read labels of their kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from osteon.core import registry
from osteon.core.errors import UsageError
from osteon.data import Dataset, open_source
from osteon.parts.cells import by_names
from osteon.parts.types import DataSpec
from osteon.verbs._arms import Task


def open_pair(train: str | Path, test: str | Path, like: DataSpec, task: str = "auto",
              target: str | None = None) -> tuple[Dataset, Dataset]:
    """Labelled training and test data, read like the data a model was trained on.

    What the labels of the first are, those of the second are too. Columns of a table that the model has never seen are
    measured on the training data, never on the test data.
    """
    train_set = open_source(train, like=like, task=task, target=target)
    test_set = open_source(test, like=train_set.spec if by_names(like) else like, target=target,
                           task="classes" if train_set.targets is None else "regression")
    if train_set.class_names and test_set.class_names and test_set.class_names != train_set.class_names:
        test_set = test_set.with_classes(train_set.class_names)
    return train_set, test_set


def fitting(readers: Sequence[str], task: Task, *, whole: bool = False) -> tuple[list[str], list[str]]:
    """Those evaluators that can read the labels of a task, and a note on those that cannot.

    Args:
        readers: names of evaluators that read labels.
        task: whose labels are classes or numbers.
        whole: whether networks are trained and compared beside them.

    Raises:
        UsageError: none of them can, and nothing else is compared.
    """
    if not task.regression:
        return list(readers), []
    kept = [r for r in readers if hasattr(registry.load(registry.find("evaluator", r)), "regress")]
    left = [r for r in readers if r not in kept]
    if not kept and not whole:
        raise UsageError(f"{', '.join(left)} tell classes apart; the labels are numbers to be predicted.",
                         where="--metrics", fix="Use knn, linear_probe or rfrboost, or --task classes.")
    return kept, [f"left out of --metrics, since they tell classes apart: {', '.join(left)}"] if left else []


def spread_of(y: np.ndarray) -> dict[str, float]:
    """What the targets of the test samples are, by which errors in their unit are read."""
    low, quarter, middle, three, high = (float(v) for v in np.percentile(y, [0, 25, 50, 75, 100]))
    return {"mean": float(y.mean()), "deviation": float(y.std()), "lowest": low, "quarter": quarter, "median": middle,
            "three_quarters": three, "highest": high}
