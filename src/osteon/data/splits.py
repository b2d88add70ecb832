"""Splits of labelled data: nested label budgets, train and validation parts that respect groups, class weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from osteon.core.errors import UsageError


def strata(labels: np.ndarray) -> np.ndarray:
    """Stratum of each sample, (N,) int64: its class; with several labels the rarest one it has, -1 for none."""
    labels = np.asarray(labels)
    if labels.ndim == 1:
        return labels.astype(np.int64)
    counts = labels.sum(0).astype(np.float64)
    rank = np.where(labels > 0, counts[None], np.inf)
    return np.where(labels.any(1), rank.argmin(1), -1).astype(np.int64)


def label_budget(labels: np.ndarray, total: int, seed: int) -> np.ndarray:
    """Which ``total`` samples to label, in the order of labelling, (total,) int64.

    Stratified: every class first gives one sample (while the budget lasts), then classes give in proportion to their
    frequency. Nested: with one seed, a smaller budget is a prefix of a larger one.

    Args:
        labels: (N,) int64 or (N, K) 0/1.
        total: number of samples in all, 1..N.
        seed: of the choice.
    """
    groups = strata(labels)
    if not 1 <= total <= len(groups):
        raise UsageError(f"A label budget of {total} is not possible with {len(groups)} labelled samples.",
                         where="label_budget", fix=f"Choose 1 to {len(groups)}.")
    rng = np.random.default_rng([seed, 1])
    classes = np.unique(groups)
    order, keys = [], []
    for turn, name in zip(rng.permutation(len(classes)), classes, strict=True):
        members = rng.permutation(np.flatnonzero(groups == name))
        place = (np.arange(len(members)) + 0.5) / len(members)
        place[0] = -1.0  # the first of every class comes before the second of any
        order.append(members)
        keys.append(np.stack([place, np.full(len(members), float(turn))]))
    place, turn_of = np.concatenate(keys, axis=1)
    return np.concatenate(order)[np.lexsort((turn_of, place))][:total].astype(np.int64)


def train_validation_split(labels: np.ndarray, fraction: float, seed: int,
                           groups: Sequence[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Two disjoint, stratified, sorted index arrays (train, validation), validation holding about ``fraction``.

    With ``groups`` no group has samples on both sides: groups are dealt in random order, each to the validation part if
    that brings its class counts closer to the wanted ones.

    Args:
        labels: (N,) int64 or (N, K) 0/1; zeros for unlabelled data.
        fraction: share of the validation part, in (0, 1).
        seed: of the choice.
        groups: one name a sample, or None.
    """
    where = strata(labels)
    if not 0 < fraction < 1:
        raise UsageError(f"A validation fraction of {fraction} leaves one side empty.", where="train_validation_split",
                         fix="Choose a number between 0 and 1, e.g. 0.1.")
    if len(where) < 2:
        raise UsageError(f"{len(where)} samples cannot be split in two.", where="train_validation_split",
                         fix="Give at least 2 samples.")
    rng = np.random.default_rng([seed, 2])
    inverse = np.unique(where, return_inverse=True)[1]
    chosen = _by_class(inverse, fraction, rng) if groups is None else _by_group(inverse, fraction, groups, rng)
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def class_weights(labels: np.ndarray, num_classes: int) -> tuple[float, ...]:
    """Inverse class frequency with mean 1 over the classes that occur; 0 for a class without samples."""
    labels = np.asarray(labels)
    counts = np.bincount(labels, minlength=num_classes) if labels.ndim == 1 else labels.sum(0, dtype=np.int64)
    inverse = np.divide(1.0, counts, out=np.zeros(len(counts)), where=counts > 0)
    present = int((counts > 0).sum())
    return tuple(float(w) for w in inverse * present / inverse.sum()) if present else ()


def _by_class(inverse: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Mask of the validation part: floor of each class's share, then the largest remainders; none loses all to it."""
    counts = np.bincount(inverse)
    share = counts * fraction
    give = np.floor(share).astype(int)
    missing = min(max(1, round(fraction * len(inverse))), len(inverse) - 1) - give.sum()
    for name in np.lexsort((rng.random(len(counts)), give - share)):  # largest remainder first
        if missing > 0 and give[name] + 1 < counts[name]:
            give[name] += 1
            missing -= 1
    chosen = np.zeros(len(inverse), bool)
    for name, count in enumerate(give):
        chosen[rng.permutation(np.flatnonzero(inverse == name))[:count]] = True
    if not chosen.any():  # every class has one sample: there is no stratified way
        chosen[rng.integers(len(inverse))] = True
    return chosen


def _by_group(inverse: np.ndarray, fraction: float, groups: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    if len(groups) != len(inverse):
        raise UsageError(f"There are {len(groups)} groups for {len(inverse)} samples.", where="train_validation_split",
                         fix="Give one group a sample.")
    names, member = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    if len(names) < 2:
        raise UsageError("All samples are of one group: they cannot be split without tearing it apart.",
                         where="train_validation_split", fix="Give groups, or split without them.")
    counts = np.zeros((len(names), int(inverse.max()) + 1))
    np.add.at(counts, (member, inverse), 1)
    target = counts.sum(0) * fraction
    held = np.zeros_like(target)
    inside = np.zeros(len(names), bool)
    for group in rng.permutation(len(names)):
        closer = ((held + counts[group] - target) ** 2).sum() < ((held - target) ** 2).sum()
        if closer and inside.sum() < len(names) - 1:
            held += counts[group]
            inside[group] = True
    if not inside.any():  # every group is more than is wanted: the smallest serves
        inside[counts.sum(1).argmin()] = True
    return inside[member]
