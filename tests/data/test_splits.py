from __future__ import annotations

import numpy as np
import pytest

from osteon.core.errors import UsageError
from osteon.data.splits import class_weights, label_budget, strata, train_validation_split

BALANCED = np.repeat(np.arange(10), 50)
SKEWED = np.array([0] * 90 + [1] * 9 + [2])


def test_budget_is_balanced_and_nested():
    full = label_budget(BALANCED, 500, seed=3)
    assert sorted(full) == list(range(500))
    for total in (10, 20, 100):
        part = label_budget(BALANCED, total, seed=3)
        np.testing.assert_array_equal(part, full[:total])
        assert np.bincount(BALANCED[part]).tolist() == [total // 10] * 10


def test_budget_gives_every_class_one_then_the_proportion():
    assert sorted(SKEWED[label_budget(SKEWED, 3, seed=0)]) == [0, 1, 2]
    assert np.bincount(SKEWED[label_budget(SKEWED, 21, seed=0)]).tolist() == [18, 2, 1]


def test_budget_depends_on_the_seed_only():
    np.testing.assert_array_equal(label_budget(BALANCED, 30, 1), label_budget(BALANCED, 30, 1))
    assert set(label_budget(BALANCED, 30, 1)) != set(label_budget(BALANCED, 30, 2))
    small = {tuple(sorted(BALANCED[label_budget(BALANCED, 3, seed)])) for seed in range(8)}
    assert len(small) > 1  # fewer labels than classes: which classes is drawn


@pytest.mark.parametrize("total", [0, -1, 501])
def test_budget_out_of_range(total):
    with pytest.raises(UsageError, match="1 to 500"):
        label_budget(BALANCED, total, 0)


def test_strata_of_several_labels_are_the_rarest():
    table = np.array([[1, 1, 0], [1, 0, 0], [1, 0, 1], [0, 0, 0], [0, 1, 0]])
    assert strata(table).tolist() == [1, 0, 2, -1, 1]  # counts 3, 2, 1
    assert sorted(label_budget(table, 4, 0)) != []
    picked = strata(table)[label_budget(table, 4, 0)]
    assert sorted(picked) == [-1, 0, 1, 2]


@pytest.mark.parametrize("seed", range(5))
def test_split_is_stratified_disjoint_and_complete(seed):
    train, held = train_validation_split(BALANCED, 0.3, seed)
    assert np.bincount(BALANCED[held]).tolist() == [15] * 10
    assert sorted([*train, *held]) == list(range(500))
    assert (np.diff(train) > 0).all() and (np.diff(held) > 0).all()


def test_split_keeps_its_size_and_rare_classes_in_training():
    train, held = train_validation_split(SKEWED, 0.25, 0)
    assert len(held) == 25 and 99 in train
    # 7 classes of 3: the fifth part of 21 is 4, no class's share reaches one
    small = np.repeat(np.arange(7), 3)
    train, held = train_validation_split(small, 0.2, 0)
    assert len(held) == 4 and np.bincount(small[held], minlength=7).max() == 1
    train, held = train_validation_split(np.arange(4), 0.5, 0)  # every class once: cannot be stratified
    assert len(held) == 1 and len(train) == 3
    train, held = train_validation_split(np.array([0, 0]), 0.01, 0)
    assert len(train) == len(held) == 1


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_together(seed):
    rng = np.random.default_rng(seed)
    groups = [f"patient{i}" for i in rng.integers(0, 40, 400)]
    labels = rng.integers(0, 3, 400)
    train, held = train_validation_split(labels, 0.25, seed, groups)
    assert not {groups[i] for i in train} & {groups[i] for i in held}
    assert sorted([*train, *held]) == list(range(400))
    assert abs(len(held) - 100) <= 12
    assert np.abs(np.bincount(labels[held]) - np.bincount(labels) / 4).max() <= 10


def test_groups_that_cannot_be_split():
    with pytest.raises(UsageError, match="one group"):
        train_validation_split(np.zeros(4, int), 0.5, 0, ["a"] * 4)
    with pytest.raises(UsageError, match="3 groups for 4"):
        train_validation_split(np.zeros(4, int), 0.5, 0, ["a"] * 3)
    train, held = train_validation_split(np.zeros(10, int), 0.01, 0, ["a"] * 9 + ["b"])
    assert held.tolist() == [9]


@pytest.mark.parametrize(("labels", "fraction"), [([0, 1], 0.0), ([0, 1], 1.0), ([0], 0.5), ([], 0.5)])
def test_impossible_splits(labels, fraction):
    with pytest.raises(UsageError):
        train_validation_split(np.array(labels, int), fraction, 0)


def test_class_weights_by_hand():
    assert class_weights(np.array([0, 0, 0, 1]), 2) == pytest.approx((0.5, 1.5))
    assert class_weights(np.array([0, 0, 0, 1]), 3) == pytest.approx((0.5, 1.5, 0.0))
    assert class_weights(np.array([[1, 1], [1, 0], [1, 0]]), 2) == pytest.approx((0.5, 1.5))
    assert class_weights(np.array([], int), 2) == ()
