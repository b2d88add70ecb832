"""Nested stratified subsets and validation parts."""

import numpy as np
import pytest

from osteon.core.errors import UsageError
from osteon.parts.subsets import holdout, nested_subsets, strata, stratified_order


def test_nested_stratified_and_exact() -> None:
    labels = np.repeat(np.arange(10), 50)
    ten, hundred, everything = nested_subsets(labels, [10, "100", "all"], seed=3)
    assert set(ten) <= set(hundred) <= set(everything)
    assert (np.bincount(labels[ten]) == 1).all() and (np.bincount(labels[hundred]) == 10).all()
    assert everything.tolist() == list(range(500))


def test_every_prefix_is_in_proportion() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    order = stratified_order(labels, 0)
    for size in (30, 100, 417, 999):
        counts = np.bincount(labels[order[:size]], minlength=3)
        assert np.abs(counts - size * np.array([0.6, 0.3, 0.1])).max() <= 1.5


def test_rare_classes_come_first_in_line() -> None:
    labels = np.repeat([0, 1, 2], [990, 8, 2])
    assert set(labels[nested_subsets(labels, [3], seed=1)[0]]) == {0, 1, 2}
    assert labels[nested_subsets(labels, [1], seed=1)[0]].tolist() == [0]  # below K labels: the largest classes


def test_seed_decides() -> None:
    labels = np.repeat(np.arange(4), 25)
    a, b, c = (nested_subsets(labels, [20], seed=s)[0] for s in (0, 0, 1))
    assert (a == b).all() and (a != c).any()
    rows = np.concatenate([nested_subsets(labels, [4], seed=s)[0] for s in range(300)])
    assert np.bincount(rows, minlength=100).min() > 0  # no row is left out by construction


def test_multi_label_uses_the_rarest_label() -> None:
    labels = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 1], [0, 1, 0]])
    assert strata(labels).tolist() == [1, 0, 3, 2, 1]


@pytest.mark.parametrize("budget", [0, -1, 101, "some", 2.5])
def test_impossible_budgets_are_refused(budget: object) -> None:
    with pytest.raises(UsageError, match="100"):
        nested_subsets(np.zeros(100, dtype=int), [budget])  # type: ignore[list-item]


def test_holdout_is_a_stratified_partition() -> None:
    labels = np.repeat([0, 1, 2, 3], [80, 20, 2, 1])
    fit, held = holdout(labels, 0.2, seed=0)
    assert sorted([*fit, *held]) == list(range(103))
    assert np.bincount(labels[held], minlength=4).tolist() == [16, 4, 1, 0]
    assert len(holdout(np.arange(5), 0.5, seed=0)[1]) == 0  # singletons stay to be fitted
    with pytest.raises(UsageError):
        holdout(labels, 1.0, seed=0)
