"""Stratified choices of rows: nested label budgets and a validation part, both functions of (labels, seed) alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from osteon.core.errors import UsageError


def strata(labels: np.ndarray) -> np.ndarray:
    """One stratum number a sample.

    Args:
        labels: (N,) int class numbers, or (N, K) multi-label 0/1. A sample with several labels belongs to the stratum
            of the rarest of them (rare labels are the ones a random subset would lose); one without any has its own.

    Returns:
        (N,) int64.
    """
    labels = np.asarray(labels)
    if labels.ndim == 1:
        return labels.astype(np.int64)
    present = labels > 0
    counts = present.sum(0)
    rarity = np.where(present, counts[None, :], np.iinfo(np.int64).max)
    return np.where(present.any(1), rarity.argmin(1), labels.shape[1]).astype(np.int64)


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """An order of all rows of which every prefix is a stratified sample.

    Within each class the rows are shuffled; the r-th of n rows of a class gets the key (r + 1/2) / n and rows are
    sorted by key, ties at random. So a prefix holds every class in proportion. The first row of every class comes
    before all second rows, largest class first: a budget of at least K labels sees every class.

    Returns:
        (N,) int64 row numbers.
    """
    group = strata(labels)
    rng = np.random.default_rng(seed)
    n = len(group)
    shuffled = rng.permutation(n)
    _, inverse, counts = np.unique(group, return_inverse=True, return_counts=True)
    by_class = shuffled[np.argsort(inverse[shuffled], kind="stable")]
    starts = np.cumsum(counts) - counts
    rank = np.empty(n, dtype=np.int64)
    rank[by_class] = np.arange(n) - starts[inverse[by_class]]
    size = counts[inverse]
    first = rank == 0
    key = np.where(first, -size, (rank + 0.5) / size)  # negative: the first of every class leads, largest class first
    return np.lexsort((rng.random(n), key)).astype(np.int64)


def nested_subsets(labels: np.ndarray, budgets: Sequence[int | str], seed: int = 0) -> list[np.ndarray]:
    """Label budgets in which every smaller subset is part of every larger one, stratified by class.

    Args:
        labels: (N,) int or (N, K) multi-label.
        budgets: numbers of labelled samples, in any order; ``"all"`` stands for N.
        seed: which subsets are drawn.

    Returns:
        One sorted (budget,) int64 array of row numbers a budget, in the order of ``budgets``.

    Raises:
        UsageError: a budget is not a positive whole number up to N, nor ``"all"``.
    """
    n = len(labels)
    sizes = [budget_size(b, n) for b in budgets]
    order = stratified_order(labels, seed)
    return [np.sort(order[:size]) for size in sizes]


def budget_size(budget: int | str, available: int) -> int:
    """The number of labels a budget stands for: a whole number (also written as text) or ``"all"``."""
    text = str(budget).strip().lower()
    if text == "all":
        return available
    try:
        size = int(text)
    except ValueError:
        size = 0
    if not 1 <= size <= available:
        raise UsageError(f"The label budget {budget!r} is not a whole number from 1 to {available}, nor 'all'.",
                         where="label_budget", fix=f"There are {available} labelled training samples.")
    return size


def holdout(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split rows into a part to fit and a stratified validation part.

    Every class keeps at least one row to fit; a class with a single row gives none to validation, so the validation
    part may be smaller than asked, and is empty where no class has two rows.

    Args:
        labels: (N,) int or (N, K) multi-label.
        fraction: share of each class that goes to validation, in (0, 1).
        seed: which rows.

    Returns:
        Two sorted int64 arrays of row numbers, disjoint, together all rows.
    """
    if not 0 < fraction < 1:
        raise UsageError(f"The validation share {fraction} is not between 0 and 1.", where="fraction")
    group = strata(labels)
    rng = np.random.default_rng(seed)
    held = np.zeros(len(group), dtype=bool)
    for value in np.unique(group):
        rows = np.flatnonzero(group == value)
        take = min(len(rows) - 1, max(1, round(fraction * len(rows))))
        held[rng.permutation(rows)[:take]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)
