"""Metrics agree with scikit-learn and with values counted by hand."""

import numpy as np
import pytest
from sklearn import metrics as reference

from osteon.core.errors import DataError
from osteon.parts import metrics


def case(seed: int, samples: int = 200, classes: int = 4, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.choice(classes, samples, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    scores = rng.random((samples, classes)) + 0.5 * (y[:, None] == np.arange(classes))
    scores = np.round(scores, 1) if ties else scores
    return scores / scores.sum(1, keepdims=True) if not ties else scores, y


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("ties", [False, True])
def test_single_label_agrees_with_scikit_learn(seed: int, ties: bool) -> None:
    scores, y = case(seed, ties=ties)
    told = scores.argmax(1)
    assert metrics.accuracy(scores, y) == pytest.approx(reference.accuracy_score(y, told), abs=1e-9)
    assert metrics.balanced_accuracy(scores, y) == pytest.approx(reference.balanced_accuracy_score(y, told), abs=1e-9)
    assert metrics.macro_f1(scores, y) == pytest.approx(reference.f1_score(y, told, average="macro"), abs=1e-9)
    one_hot = y[:, None] == np.arange(4)
    assert metrics.auroc(scores, y) == pytest.approx(reference.roc_auc_score(one_hot, scores, average="macro"),
                                                     abs=1e-9)


@pytest.mark.parametrize("ties", [False, True])
def test_binary_auroc_is_the_curve_of_class_one(ties: bool) -> None:
    scores, y = case(3, classes=2)
    one = np.round(scores[:, 1], 1 if ties else 12)
    assert metrics.auroc(np.stack([1 - one, one], 1), y) == pytest.approx(reference.roc_auc_score(y, one), abs=1e-9)


@pytest.mark.parametrize("ties", [False, True])
def test_multi_label_agrees_with_scikit_learn(ties: bool) -> None:
    rng = np.random.default_rng(5)
    y = (rng.random((150, 5)) < [0.05, 0.2, 0.4, 0.5, 0.9]).astype(np.uint8)
    scores = np.clip(rng.random((150, 5)) * 0.8 + 0.2 * y, 0, 1)
    scores = np.round(scores, 1) if ties else scores
    told = scores >= 0.5
    assert metrics.accuracy(scores, y) == pytest.approx(reference.accuracy_score(y, told), abs=1e-9)
    assert metrics.macro_f1(scores, y) == pytest.approx(
        reference.f1_score(y, told, average="macro", zero_division=0), abs=1e-9)
    assert metrics.auroc(scores, y) == pytest.approx(reference.roc_auc_score(y, scores), abs=1e-9)
    assert metrics.mean_average_precision(scores, y) == pytest.approx(
        reference.average_precision_score(y, scores, average="macro"), abs=1e-9)
    balanced = np.mean([reference.balanced_accuracy_score(y[:, k], told[:, k]) for k in range(5)])
    assert metrics.balanced_accuracy(scores, y) == pytest.approx(balanced, abs=1e-9)


def test_values_counted_by_hand() -> None:
    scores = np.array([[3, 1, 0], [3, 1, 0], [1, 3, 0], [0, 1, 3]], dtype=float)
    y = np.array([0, 1, 1, 1])  # right, wrong, right, wrong (class 2 has no sample)
    found = metrics.score_all(scores, y, 3)
    assert found["accuracy"] == 0.5
    assert found["balanced_accuracy"] == pytest.approx((1 + 1 / 3) / 2)
    assert found["macro_f1"] == pytest.approx((2 / 3 + 2 / 4 + 0) / 3)
    # class 0: 3 against (3, 1, 0): 2.5 of 3 pairs; class 1: (1, 3, 1) against 1: 2 of 3 pairs; class 2: no positive
    assert found["auroc"] == pytest.approx((2.5 / 3 + 2 / 3) / 2)
    assert found["per_class_support"] == [1, 3, 0]
    assert found["per_class_recall"][:2] == pytest.approx([1, 1 / 3]) and np.isnan(found["per_class_recall"][2])


def test_absent_class_and_one_class_only() -> None:
    scores, y = case(0)
    scores = np.concatenate([scores, np.zeros((len(y), 1))], 1)  # a fifth class: no sample, never told
    assert metrics.macro_f1(scores, y) == pytest.approx(metrics.macro_f1(scores[:, :4], y))
    assert metrics.auroc(scores, y) == pytest.approx(metrics.auroc(scores[:, :4], y))
    assert np.isnan(metrics.auroc(scores[y == 1], y[y == 1]))  # nothing to tell apart


def test_weights_repeat_samples() -> None:
    scores, y = case(2, samples=40, ties=True)
    counts = np.random.default_rng(0).integers(0, 3, 40)
    rows = np.repeat(np.arange(40), counts)
    weighted = metrics.metric_values(scores, y, np.stack([np.ones(40), counts], 1))
    multi = np.random.default_rng(1).integers(0, 2, (40, 4)).astype(bool)
    weighted_multi = metrics.metric_values(scores, multi, np.stack([np.ones(40), counts], 1))
    plain, plain_multi = metrics.score_all(scores[rows], y[rows], 4), metrics.score_all(scores[rows], multi[rows], 4)
    for name, value in weighted.items():
        assert value[1] == pytest.approx(plain[name]), name
    for name, value in weighted_multi.items():
        assert value[1] == pytest.approx(plain_multi[name]), name


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_many_weightings_equal_one_at_a_time(kind: type) -> None:
    scores, y = case(4, samples=60, ties=True)
    weights = np.random.default_rng(0).integers(0, 4, (60, 20)).astype(kind)
    for labels in (y, y[:, None] == np.arange(4)):
        together = metrics.metric_values(scores, labels, weights)
        for name, value in together.items():
            alone = [metrics.metric_values(scores, labels, weights[:, [r]])[name][0] for r in range(20)]
            assert value == pytest.approx(alone, abs=1e-6), name


def test_order_of_samples_and_monotone_scores_do_not_matter() -> None:
    scores, y = case(7)
    order = np.random.default_rng(0).permutation(len(y))
    assert metrics.auroc(scores[order], y[order]) == pytest.approx(metrics.auroc(scores, y))
    assert metrics.auroc(np.exp(5 * scores), y) == pytest.approx(metrics.auroc(scores, y))


def test_correctness_averages_to_the_score() -> None:
    scores, y = case(1)
    assert metrics.correctness(scores, y).mean() == pytest.approx(metrics.accuracy(scores, y))
    multi = np.array([[1, 0], [1, 1]])
    assert metrics.correctness(np.array([[0.9, 0.8], [0.5, 0.1]]), multi).tolist() == [0.5, 0.5]
    assert metrics.score_all(np.array([[0.9, 0.8], [0.5, 0.1]]), multi, 2)["label_accuracy"] == 0.5


@pytest.mark.parametrize("scores, y, classes", [
    (np.zeros((3, 2)), np.array([0, 1]), 2),
    (np.zeros((2, 3)), np.array([0, 1]), 2),
    (np.zeros((2, 2)), np.array([0, 2]), 2),
    (np.zeros((2, 2)), np.array([-1, 0]), 2),
    (np.array([[np.nan, 0], [0, 1]]), np.array([0, 1]), 2),
    (np.zeros((2, 2)), np.zeros((2, 3)), 2),
    (np.zeros((0, 2)), np.zeros(0), 2),
])
def test_what_does_not_fit_is_refused(scores: np.ndarray, y: np.ndarray, classes: int) -> None:
    with pytest.raises(DataError):
        metrics.score_all(scores, y, classes)
