"""k-NN against a naive loop, and the helpers around it."""

import math

import numpy as np
import pytest

from osteon.core.errors import DataError, UsageError
from osteon.evaluators.knn import KNN, knn_interpolate, tune_interpolation


def naive(x: np.ndarray, y: np.ndarray, test: np.ndarray, classes: int, k: int, temperature: float) -> np.ndarray:
    """The definition, one sample at a time in float64."""
    mean = x.astype(float).mean(0)
    unit = [(v - mean) / np.linalg.norm(v - mean) for v in x]
    out = np.zeros((len(test), classes))
    for i, v in enumerate(test):
        q = (v - mean) / np.linalg.norm(v - mean)
        d2 = [float(((q - u) ** 2).sum()) for u in unit]
        for j in sorted(range(len(x)), key=lambda j: d2[j])[:k]:
            out[i, y[j]] += math.exp(-d2[j] / temperature)
    return out / out.sum(1, keepdims=True)


def blobs(seed: int, n: int = 60, d: int = 6, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    centres = 1.5 * np.random.default_rng(99).normal(size=(classes, d))
    return (centres[y] + rng.normal(size=(n, d)) + 3).astype(np.float32), y


@pytest.mark.parametrize("k, temperature", [(1, 1.0), (5, 0.07), (20, 1.0)])
def test_equals_the_definition(k: int, temperature: float) -> None:
    (x, y), (test, _) = blobs(0), blobs(1, 20)
    found = KNN(k=k, temperature=temperature)(x, y, test, classes=3)
    assert np.allclose(found, naive(x, y, test, 3, k, temperature), atol=1e-4)


def test_votes_by_hand() -> None:
    # mean 0, unit vectors; the query (1, 0) is at d^2 = 0, 2, 2, 4: weights 1, e^-2, e^-2 for k = 3, T = 1
    x = np.array([[2, 0], [0, 3], [0, -3], [-2, 0]], dtype=np.float32)
    found = KNN(k=3)(x, np.array([0, 1, 1, 2]), np.array([[5, 0]], dtype=np.float32), classes=3)
    e = math.exp(-2)
    assert found[0].tolist() == pytest.approx([1 / (1 + 2 * e), 2 * e / (1 + 2 * e), 0], abs=1e-6)


def test_small_temperature_does_not_underflow() -> None:
    (x, y), (test, _) = blobs(0), blobs(1, 20)
    found = KNN(k=5, temperature=1e-4)(x, y, test, classes=3)
    assert np.allclose(found.sum(1), 1) and (found.argmax(1) == KNN(k=1)(x, y, test, classes=3).argmax(1)).all()


def test_shift_and_scale_of_features_do_not_matter() -> None:
    (x, y), (test, _) = blobs(0), blobs(1, 20)
    moved = KNN(k=5)(7 * x - 20, y, 7 * test - 20, classes=3)
    assert np.allclose(moved, KNN(k=5)(x, y, test, classes=3), atol=1e-4)


def test_leave_one_out_does_not_see_itself() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 8)).astype(np.float32), rng.integers(0, 2, 200)
    assert (KNN(k=1)(x, y, x, classes=2).argmax(1) == y).mean() == 1  # finds itself
    assert 0.35 < (KNN(k=1).leave_one_out(x, y, classes=2).argmax(1) == y).mean() < 0.65
    twice = KNN(k=1).leave_one_out(np.repeat(x, 2, 0), np.repeat(y, 2), classes=2).argmax(1)
    assert (twice == np.repeat(y, 2)).all()  # a twin is another row and may be found
    with pytest.raises(UsageError, match="none"):
        KNN().leave_one_out(x[:1], y[:1], classes=2)


def test_k_beyond_the_data_is_all_of_it() -> None:
    x, y = blobs(0, 6)
    assert np.allclose(KNN(k=500)(x, y, x, classes=3), KNN(k=6)(x, y, x, classes=3))


def test_multi_label_votes_per_label() -> None:
    x, y = blobs(0)
    test, truth = blobs(1, 30)
    labels = np.stack([y == 0, y >= 1], 1).astype(np.uint8)
    found = KNN(k=5)(x, labels, test, classes=2)
    assert np.allclose(found.sum(1), 1, atol=1e-5)  # these two labels exclude each other
    assert np.allclose(found[:, 0], KNN(k=5)(x, y, test, classes=3)[:, 0], atol=1e-5)


def test_tuning_finds_what_helps_and_needs_no_test() -> None:
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], [360, 40])  # the rare class sits in tight clusters: large k drowns it
    x = rng.normal(size=(400, 2)) * 0.02 + np.array([[1.0, 0.0]]) * rng.choice([-1, 1], (400, 1))
    x[y == 1] += np.array([0, 0.3])
    x = x.astype(np.float32)
    tuned = KNN(k=200, tune=True)
    found = tuned(x, y, x, classes=2, seed=1).argmax(1)
    plain = KNN(k=200)(x, y, x, classes=2).argmax(1)
    assert (found[y == 1] == 1).mean() > 0.9 > 0.1 > (plain[y == 1] == 1).mean()
    assert tuned.chosen != {"k": 200, "temperature": 1.0}


def test_tuning_without_a_validation_part_keeps_the_values() -> None:
    knn = KNN(k=3, temperature=0.5, tune=True)
    knn(np.eye(4, dtype=np.float32), np.arange(4), np.eye(4, dtype=np.float32), classes=4)
    assert knn.chosen == {"k": 3, "temperature": 0.5}


def test_interpolation() -> None:
    y = np.array([0, 1, 0, 1])
    right, wrong = np.eye(2)[y], np.eye(2)[1 - y]
    assert np.allclose(knn_interpolate(right, wrong, 0.25), 0.25 * right + 0.75 * wrong)
    assert tune_interpolation(right, wrong, y) == 1 and tune_interpolation(wrong, right, y) == 0
    assert tune_interpolation(right, right, y) == 0  # neighbours that add nothing are left out
    with pytest.raises(UsageError):
        knn_interpolate(right, wrong, 1.5)
    with pytest.raises(UsageError):
        knn_interpolate(right, wrong[:2], 0.5)


@pytest.mark.parametrize("options", [{"k": 0}, {"temperature": 0.0}, {"fraction": 1.0}])
def test_wrong_options_are_named(options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        KNN(**options)  # type: ignore[arg-type]


def test_wrong_inputs_are_named() -> None:
    x, y = blobs(0)
    broken = x.copy()
    broken[7, 2] = np.nan
    with pytest.raises(DataError, match="row 7"):
        KNN()(broken, y, x, classes=3)
    for bad in [(x, y[:-1], x), (x, y - 1, x), (x, y + 1, x), (x, y, x[:, :3]), (x[0], y[:1], x), (x, y / 2, x),
                (x, np.full((60, 3), 2), x), (x, y, x[:0])]:
        with pytest.raises(DataError):
            KNN()(*bad, classes=3)
