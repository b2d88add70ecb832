"""What the guard of continued pre-training measures: k-NN on validation data, or a rank where there are no labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.core.options import settle
from osteon.data import Dataset, open_source
from osteon.evaluators.knn import KNN
from osteon.evaluators.label_free import LabelFree
from osteon.parts.objective import Objective
from osteon.parts.subsets import stratified_order
from osteon.train.guard import OPTIONS, Guard, Measured
from osteon.verbs._model import extract

#: most validation samples looked at, and fewest that are worth it
MOST, FEWEST = 2000, 50


def settle_continuation(asked: Mapping[str, Any], *, init: object, guard_source: object) -> dict[str, Any]:
    """Every setting about continuing, those not asked for by their defaults.

    Raises:
        UsageError: an impossible value, or one that says something about continuing where nothing is continued.
    """
    values = {o.name: o.default for o in OPTIONS} | settle(OPTIONS, asked, where="--set")
    for name in ("guard_every", "low_rank"):
        if values[name] < 0:
            raise UsageError(f"{name} must be 0 or more, not {values[name]}.", where=f"--set {name}")
    if init is None and (guard_source is not None or values["low_rank"]):
        raise UsageError(("The guard watches" if guard_source is not None else "low_rank changes")
                         + " pre-training that goes on from weights; this run starts from random ones.",
                         where="--guard" if guard_source is not None else "--set low_rank",
                         fix="Name the weights with --init.")
    return values


def make_guard(values: Mapping[str, Any], guard_source: str | None, dataset: Dataset, card: Card, *, size: int,
               steps: int, say: Callable[[str], None]) -> Guard | None:
    """The guard of a run that goes on from weights; says what it watches and how often.

    Args:
        values: see :func:`settle_continuation`.
        guard_source: labelled source for validation, or None for the labels of the source itself, where it has any.
        dataset: the source.
        card: of the objective.
        size: side of the images the network sees.
        steps: of the run.
        say: prints a message to the user.
    """
    if not values["guard"]:
        return None
    every = values["guard_every"] or max(1, -(-steps // 10))
    like: dict[str, Any] = {"size": size} if dataset.modality == "image" else {"like": dataset.spec}
    validation = dataset if guard_source is None else open_source(guard_source, **like)
    if guard_source is not None and validation.labels is None:
        raise UsageError("The guard's validation source has no labels.", where=f"--guard {guard_source}",
                         fix="Name a labelled source.")
    rows = _rows(validation)
    if validation.labels is None or len(rows) < FEWEST:
        say("guard: " + ("no labels" if validation.labels is None else f"fewer than {FEWEST} labelled samples")
            + f", so the effective rank of the features is recorded every {every} steps and stops nothing; "
              "--guard SOURCE names labelled validation data")
        if len(validation) < 2 * FEWEST:
            return None
        sample = validation.subset(_spread(len(validation)))
        return Guard(lambda method: Measured(LabelFree()(_features(method, sample))["rankme"]), name="rankme",
                     every=every, steps=steps)
    sample = validation.subset(rows)
    say(f"guard: k-NN over {len(sample)} labelled samples "
        + ("of the source itself" if guard_source is None else f"of {guard_source}")
        + f", before the first step and every {every} steps; below step 0 by more than its interval, the run stops")
    if card.labels:
        say("guard: the objective learns from labels, so its score is not that of unseen samples; give --guard")
    return Guard(lambda method: _knn(method, sample), name="knn", every=every, steps=steps)


def _rows(dataset: Dataset) -> np.ndarray:
    """A stratified choice of labelled samples, in the order of the data."""
    if dataset.labels is None:
        return np.arange(0)
    labelled = np.arange(len(dataset)) if dataset.labels.ndim == 1 else np.flatnonzero(dataset.labels.any(1))
    if not len(labelled):
        return labelled
    return np.sort(labelled[stratified_order(dataset.labels[labelled], 0)[:MOST]])


def _spread(samples: int) -> np.ndarray:
    return np.unique(np.linspace(0, samples - 1, min(samples, MOST)).round().astype(np.int64))


def _knn(method: Objective, sample: Dataset) -> Measured:
    """Share of samples whose most voted label is right, each by the others alone."""
    assert sample.labels is not None
    scores = KNN().leave_one_out(_features(method, sample), sample.labels, classes=len(sample.class_names))
    top = scores.argmax(1)
    right = sample.labels == top if sample.labels.ndim == 1 else sample.labels[np.arange(len(top)), top] > 0
    return Measured(float(right.mean()), right.astype(np.float64))


def _features(method: Objective, sample: Dataset) -> np.ndarray:
    """(N, D) features of the network the run would leave; every module's mode is as before."""
    modes = {m: m.training for m in method.modules()}
    features = extract(method.exported(), sample, method.data, device=next(method.parameters()).device)
    for module, mode in modes.items():
        module.training = mode
    return features
