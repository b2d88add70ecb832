from __future__ import annotations

import numpy as np
import pytest

from osteon.core.errors import UsageError
from osteon.data import Dataset
from osteon.verbs._arms import Arm, feature_arms, make_task, quality, ranking_precision
from osteon.verbs._verdict import judge


def arm(kind: str, right: np.ndarray, *, budget: int | str = "all", name: str = "", validation: float = 0.5) -> Arm:
    return Arm(name or kind, kind, kind, "knn", budget, np.asarray(right, dtype=float), validation)


def coins(share: float, samples: int, seeds: int = 3, seed: int = 0) -> np.ndarray:
    """Right or wrong; the same draws for the same seed, so that a higher share is right wherever a lower one is."""
    return (np.random.default_rng(seed).random((seeds, samples)) < share).astype(float)


def answer(*arms: Arm) -> str:
    return str(judge(arms, "accuracy")["answer"])


def test_a_planted_gain_pays():
    found = judge([arm("pretrained", coins(0.8, 500)), arm("control", coins(0.6, 500))], "accuracy")
    assert found["answer"] == "pays" and found["sentence"].startswith("Pre-training paid: with all labels, pretrained")
    row = found["numbers"]["budgets"][0]
    assert row["mean"] == pytest.approx(coins(0.8, 500).mean() - coins(0.6, 500).mean())
    assert 0.1 < row["low"] < row["mean"] < row["high"] < 0.3 and row["p"] < 0.01


@pytest.mark.parametrize("loss", [0.0, 0.05, 0.3])
def test_no_planted_gain_does_not_pay(loss):
    found = judge([arm("pretrained", coins(0.8 - loss, 2000)), arm("control", coins(0.8, 2000))], "accuracy")
    assert found["answer"] == "does not pay" and found["sentence"].startswith("Pre-training did not pay.")


def test_no_gain_on_independent_errors_is_no_claim_either_way():
    """With noise of several points, a gain of one point cannot be excluded."""
    assert answer(arm("pretrained", coins(0.7, 300)), arm("control", coins(0.7, 300, seed=1))) == "cannot tell"


@pytest.mark.parametrize("samples", [1, 2, 3])
@pytest.mark.parametrize(("ours", "theirs"), [(1, 0), (0, 1), (1, 1), (0, 0)])
def test_a_handful_of_test_samples_cannot_tell_whatever_they_show(samples, ours, theirs):
    """Resampling three samples that agree gives an interval without width; it must not be believed."""
    found = judge([arm("pretrained", np.full((3, samples), ours)), arm("control", np.full((3, samples), theirs))],
                  "accuracy")
    assert found["answer"] == "cannot tell" and "More test samples" in found["sentence"]
    row = found["numbers"]["budgets"][0]
    assert row["low"] <= row["mean"] <= row["high"] and row["high"] - row["low"] > 0.5


def test_a_small_gain_on_twenty_samples_cannot_tell():
    better = np.ones((3, 20))
    worse = better.copy()
    worse[:, 0] = 0  # five points
    assert answer(arm("pretrained", better), arm("control", worse)) == "cannot tell"
    assert answer(arm("pretrained", worse), arm("control", better)) == "cannot tell"


def test_the_added_samples_hardly_matter_where_there_are_many():
    a, b = coins(0.72, 1000), coins(0.7, 1000)
    row = judge([arm("pretrained", a), arm("control", b)], "accuracy")["numbers"]["budgets"][0]
    assert row["mean"] == pytest.approx((a - b).mean()) and row["low"] > 0


def test_false_gains_are_rare():
    """Two arms of one quality: "pays" in at most 2.5 of 100 on average, here in at most 7 of 100 tries."""
    wrong = 0
    for seed in range(100):
        one, two = (np.tile((np.random.default_rng([seed, k]).random(60) < 0.7), (3, 1)) for k in (0, 1))
        wrong += answer(arm("pretrained", one), arm("control", two)) == "pays"
    assert wrong <= 7


def test_several_budgets_are_judged_together():
    def at(budget: int | str, ours: float, theirs: float, samples: int = 800) -> list[Arm]:
        return [arm("pretrained", coins(ours, samples), budget=budget),
                arm("control", coins(theirs, samples), budget=budget)]

    paid = judge([*at(10, 0.8, 0.5), *at("all", 0.8, 0.9)], "accuracy")
    assert paid["answer"] == "pays"
    assert "with 10 labels" in paid["sentence"] and "It did not pay with all labels" in paid["sentence"]
    alone, = judge(at(10, 0.55, 0.5, 100), "accuracy")["numbers"]["budgets"]
    first, second = judge([*at(10, 0.55, 0.5, 100), *at("all", 0.5, 0.5)], "accuracy")["numbers"]["budgets"]
    assert 0.01 < alone["p"] < 0.4 and second["p"] == 1
    assert first["p"] == pytest.approx(2 * alone["p"])  # Holm: the smaller p twice
    assert answer(*at(10, 0.5, 0.5), *at("all", 0.5, 0.6)) == "does not pay"
    assert answer(*at(10, 0.5, 0.6), *at("all", 0.6, 0.6, 3)) == "cannot tell"


def test_the_best_on_held_out_samples_is_compared_and_not_the_best_on_test():
    lucky = arm("pretrained", coins(0.99, 500), name="lucky", validation=0.6)
    sound = arm("pretrained", coins(0.7, 500), name="sound", validation=0.7)
    weak, strong = (arm("control", coins(q, 500), name=n, validation=v)
                    for q, n, v in ((0.2, "weak", 0.1), (0.7, "strong", 0.5)))
    row = judge([lucky, sound, weak, strong], "accuracy")["numbers"]["budgets"][0]
    assert (row["pretrained"], row["control"], row["answer"]) == ("sound", "strong", "does not pay")


# -- choices and test data -------------------------------------------------------------------------------------------


def pictures(labels: np.ndarray, seed: int) -> Dataset:
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), 1, 4, 4)).astype(np.uint8)
    return Dataset.from_arrays(images, labels, class_names=["a", "b", "c"])


def scored(test_y: np.ndarray, groups: list[str] | None = None, test_seed: int = 3):
    train_y = np.arange(90) % 3
    train = pictures(train_y, 0)
    train.groups = groups
    task = make_task(train, pictures(test_y, 1), [6, "all"], 2)
    rng, other = np.random.default_rng(2), np.random.default_rng(test_seed)
    arms = []
    for kind, signal in (("pretrained", 0.3), ("pretrained", 0.5), ("control", 0.2), ("control", 0.4)):
        features = [(rng.normal(size=(90, 5)) + signal * np.eye(3, 5)[train_y], other.normal(size=(len(test_y), 5)))
                    for _ in range(2)]
        arms += feature_arms(f"{kind} {signal}", kind, features, task, ["knn", "ncm"])
    return task, arms


@pytest.mark.parametrize(("test_y", "test_seed"), [((np.arange(60) % 3)[::-1].copy(), 3), (np.arange(60) % 3, 4)])
def test_other_test_data_change_scores_but_no_choice(test_y, test_seed):
    _, first = scored(np.arange(60) % 3)
    _, other = scored(test_y, test_seed=test_seed)
    assert [a.validation for a in first] == [a.validation for a in other]
    assert any((a.quality != b.quality).any() for a, b in zip(first, other, strict=True))
    chosen = [[(r["pretrained"], r["control"]) for r in judge(arms, "accuracy")["numbers"]["budgets"]]
              for arms in (first, other)]
    assert chosen[0] == chosen[1]


def test_held_out_samples_train_nothing_and_budgets_are_nested():
    groups = [str(i // 5) for i in range(90)]
    for chosen in (None, groups):
        task, arms = scored(np.arange(60) % 3, chosen)
        held = set(task.held_out.tolist())
        assert 0 < len(held) < 45
        for few, every in (draw for draws in task.subsets for draw in draws):
            assert not held & set(every.tolist()) and set(few.tolist()) < set(every.tolist()) and len(few) == 6
            assert len(every) + len(held) == 90
        if chosen:
            assert not {groups[i] for i in held} & {groups[i] for i in task.subsets[0][0][1]}
        assert {len(a.quality) for a in arms} == {2} and {a.quality.shape[1] for a in arms} == {60}


def test_a_task_that_cannot_be_is_refused():
    y = np.arange(60) % 3
    bare = pictures(y, 0)
    bare.labels = None
    with pytest.raises(UsageError, match="needs labels"):
        make_task(bare, pictures(y, 1), ["all"], 1)
    with pytest.raises(UsageError, match="needs labels"):
        make_task(pictures(y, 1), bare, ["all"], 1)
    with pytest.raises(UsageError, match="49 labels is more than the 48"):
        make_task(pictures(y, 0), pictures(y, 1), [49], 1)
    one = Dataset.from_arrays(bare.images, np.zeros(60, int), class_names=["a"])
    with pytest.raises(UsageError, match="at least two classes"):
        make_task(one, one, ["all"], 1)
    with pytest.raises(UsageError, match="differ: b, c"):
        make_task(pictures(y, 0), one, ["all"], 1)


def test_quality_by_hand():
    assert quality(np.array([[0.1, 0.9], [0.6, 0.4]]), np.array([1, 1])).tolist() == [1, 0]
    # labels 0 and 2; ranking by score is 2, 1, 0: precision at label 2 is 1/1, at label 0 it is 2/3
    got = quality(np.array([[0.1, 0.5, 0.9]]), np.array([[1, 0, 1]]))
    assert got.tolist() == pytest.approx([(1 + 2 / 3) / 2])


def test_ranking_precision_is_scikit_learns_with_ties_none_and_all():
    from sklearn.metrics import label_ranking_average_precision_score

    rng = np.random.default_rng(0)
    scores, y = rng.integers(0, 4, (60, 5)) / 4, rng.random((60, 5)) < 0.4
    y[0], y[1] = False, True
    wanted = [label_ranking_average_precision_score(y[i:i + 1], scores[i:i + 1]) for i in range(60)]
    assert ranking_precision(scores, y).tolist() == pytest.approx(wanted) and wanted[0] == wanted[1] == 1
