"""The label-budget curve uses nested subsets, every seed, and gives what the metrics give."""

import numpy as np
import pytest

from osteon.core.errors import UsageError
from osteon.evaluators._budget import label_budget_curve
from osteon.evaluators.linear_probe import LinearProbe


def data(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 5
    return (np.random.default_rng(9).normal(size=(5, 20))[y] + 1.5 * rng.normal(size=(n, 20))).astype(np.float32), y


def test_curve_rises_and_says_how_sure_it_is() -> None:
    (x, y), (test, truth) = data(400, 0), data(300, 1)
    curve = label_budget_curve(x, y, test, truth, [5, 50, "all"], LinearProbe(solver="ridge"), 5, resamples=200)
    assert [p.samples for p in curve] == [5, 50, 400] and [p.budget for p in curve] == [5, 50, "all"]
    mean = [p.intervals["accuracy"].mean for p in curve]
    assert mean[0] < mean[1] < mean[2]
    for p in curve:
        assert p.correct.shape == (3, 300) and len(p.scores) == 3
        assert [s["accuracy"] for s in p.scores] == pytest.approx(p.correct.mean(1))
        assert p.intervals["accuracy"].low <= p.intervals["accuracy"].mean <= p.intervals["accuracy"].high


def test_each_seed_draws_its_own_nested_subsets() -> None:
    x = np.arange(60, dtype=np.float32)[:, None]
    seen: dict[tuple[int, int], set[float]] = {}

    def spy(train_x, train_y, test_x, *, classes, seed):
        seen[seed, len(train_x)] = set(train_x[:, 0].tolist())
        assert [int(v) % 3 for v in train_x[:, 0]] == train_y.tolist()
        return np.eye(3)[np.zeros(len(test_x), dtype=int)]

    label_budget_curve(x, np.arange(60) % 3, x, np.arange(60) % 3, [6, 30], spy, 3, seeds=(4, 8), resamples=10)
    assert set(seen) == {(4, 6), (4, 30), (8, 6), (8, 30)}
    assert seen[4, 6] < seen[4, 30] and seen[8, 6] < seen[8, 30] and seen[4, 6] != seen[8, 6]


def test_impossible_budget_is_named_before_anything_runs() -> None:
    x, y = data(20, 0)
    with pytest.raises(UsageError, match="21"):
        label_budget_curve(x, y, x, y, [5, 21], lambda *a, **k: 1 / 0, 5)
