"""The linear probe equals the textbook solution, scikit-learn's logistic regression, and works with ten labels."""

import time

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from osteon.core.errors import UsageError
from osteon.evaluators._logistic import Logistic
from osteon.evaluators._ridge import Moments, RidgePath, solve_moments
from osteon.evaluators.linear_probe import LinearProbe
from osteon.parts.metrics import accuracy


def task(seed: int, n: int, d: int, classes: int = 4, signal: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    centres = np.random.default_rng(77).normal(size=(classes, d))
    x = signal * centres[y] + rng.normal(size=(n, d))
    scales = np.random.default_rng(78).uniform(0.1, 50, d)  # features of mixed units, far from 0
    return (x * scales + 5 * scales).astype(np.float32), y


def textbook(x: np.ndarray, y: np.ndarray, test: np.ndarray, classes: int, strength: float) -> np.ndarray:
    """Ridge outputs in float64 by scikit-learn."""
    mean, std = x.astype(float).mean(0), x.astype(float).std(0)
    model = Ridge(alpha=strength * len(x)).fit((x - mean) / std, np.eye(classes)[y])
    return model.predict((test - mean) / std)


@pytest.mark.parametrize("n, d", [(120, 8), (30, 64), (40, 40)])
@pytest.mark.parametrize("strength", [1e-3, 1.0, 30.0])
def test_ridge_equals_the_textbook(n: int, d: int, strength: float) -> None:
    (x, y), (test, _) = task(0, n, d), task(1, 25, d)
    xt, hot = torch.from_numpy(x), torch.eye(4)[y]
    path = RidgePath(xt, hot, torch.arange(n), xt.mean(0))
    wanted = textbook(x, y, test, 4, strength)
    assert np.allclose(path.solve(strength)(torch.from_numpy(test)), wanted, atol=2e-3)
    assert np.allclose(path.predict_path(torch.from_numpy(test), [7.0, strength])[1], wanted, atol=2e-3)
    shift = xt.mean(0)
    by_cholesky = solve_moments(Moments.of(xt, hot, shift, torch.arange(n)), shift, strength)
    assert np.allclose(by_cholesky(torch.from_numpy(test)), wanted, atol=2e-3)


def test_moments_add_up_over_blocks_and_parts() -> None:
    x, _ = task(0, 9000, 150)
    xt = torch.from_numpy(x)
    shift, y = xt.mean(0), torch.ones(9000, 2)
    whole = Moments.of(xt, y, shift, torch.arange(9000))
    parts = Moments.of(xt, y, shift, torch.arange(0, 9000, 2)) + Moments.of(xt, y, shift, torch.arange(1, 9000, 2))
    exact = (xt.double() - shift).T @ (xt.double() - shift)
    size = exact.diagonal().sqrt()
    for found in (whole, parts):
        assert found.n == 9000 and ((found.xx - exact) / size / size[:, None]).abs().max() < 1e-5


def test_dual_and_primal_are_one_solution() -> None:
    x, y = task(0, 30, 29)
    probe = LinearProbe(solver="ridge", strength=0.1)
    narrow = probe(x, y, x, classes=4)
    wide = probe(np.concatenate([x, np.ones((30, 10))], 1), y, np.concatenate([x, np.ones((30, 10))], 1), classes=4)
    assert np.allclose(narrow, wide, atol=1e-4)  # ten constant features change the path, not the answer


@pytest.mark.parametrize("n, d", [(200, 6), (30, 50)])
def test_lbfgs_equals_scikit_learn(n: int, d: int) -> None:
    (x, y), (test, _) = task(0, n, d), task(1, 40, d)
    mean, std = x.mean(0), x.std(0)
    wanted = LogisticRegression(C=0.1, tol=1e-8, max_iter=2000).fit((x - mean) / std, y)
    found = LinearProbe(solver="lbfgs", strength=10.0, iterations=500)(x, y, test, classes=4)
    assert np.allclose(found, wanted.predict_proba((test - mean) / std), atol=2e-3)


def test_lbfgs_multi_label_is_one_regression_a_label() -> None:
    (x, y), (test, _) = task(0, 200, 6, signal=0.3), task(1, 40, 6, signal=0.3)
    labels = np.stack([y == 0, y <= 1, y == 3], 1).astype(np.uint8)
    mean, std = x.mean(0), x.std(0)
    found = LinearProbe(solver="lbfgs", strength=10.0, iterations=500)(x, labels, test, classes=3)
    for k in range(3):
        wanted = LogisticRegression(C=0.1, tol=1e-8).fit((x - mean) / std, labels[:, k])
        assert np.allclose(found[:, k], wanted.predict_proba((test - mean) / std)[:, 1], atol=2e-3)


@pytest.mark.parametrize("solver", ["ridge", "lbfgs"])
@pytest.mark.parametrize("per_class", [1, 2])
def test_ten_labels_and_512_features(solver: str, per_class: int) -> None:
    (x, y), (test, truth) = task(0, 10 * per_class, 512, 10), task(1, 200, 512, 10)
    scores = LinearProbe(solver=solver)(x, y, test, classes=10)
    assert np.isfinite(scores).all() and accuracy(scores, truth) > 0.9


@pytest.mark.parametrize("solver", ["ridge", "lbfgs"])
def test_one_class_only_and_one_sample(solver: str) -> None:
    x, _ = task(0, 5, 8)
    assert (LinearProbe(solver=solver)(x, np.full(5, 2), x, classes=3).argmax(1) == 2).all()
    assert (LinearProbe(solver=solver)(x[:1], np.array([1]), x, classes=3).argmax(1) == 1).all()


def test_units_of_features_do_not_matter_and_constants_are_ignored() -> None:
    (x, y), (test, _) = task(0, 100, 10), task(1, 20, 10)
    wanted = LinearProbe(solver="ridge")(x, y, test, classes=4)
    assert np.allclose(LinearProbe(solver="ridge")(x * 1000 - 3, y, test * 1000 - 3, classes=4), wanted, atol=1e-3)
    constant = np.full((100, 1), 3.3, dtype=np.float32)
    wild = np.full((20, 1), -1e6, dtype=np.float32)  # says nothing in training: must say nothing in test
    found = LinearProbe(solver="ridge")(np.hstack([x, constant]), y, np.hstack([test, wild]), classes=4)
    assert np.allclose(found, wanted, atol=1e-3)


def test_penalty_is_chosen_by_what_generalises() -> None:
    """With pure noise strong penalties win; with clean signal in few directions weak ones do."""
    rng = np.random.default_rng(0)
    noise, y = rng.normal(size=(600, 300)).astype(np.float32), np.arange(600) % 2
    x = noise.copy()
    probe = LinearProbe(solver="ridge")
    x[:, :40] = 0.05 * noise[:, :40] + noise[:, [299]]  # forty noisy copies; the label hides in their differences
    clean = (x[:, 0] - x[:, 1] + x[:, 2] - x[:, 3] > 0).astype(int)
    probe(x[:, :40], clean, x[:, :40], classes=2)
    weak = probe.chosen["strength"]
    probe(noise, y, noise, classes=2)
    assert weak < 0.01 < 0.03 <= probe.chosen["strength"]


def test_probabilities_are_calibrated_on_validation() -> None:
    (x, y), (test, truth) = task(0, 3000, 10, signal=0.3), task(1, 2000, 10, signal=0.3)
    scores = LinearProbe(solver="ridge")(x, y, test, classes=4)
    assert np.allclose(scores.sum(1), 1, atol=1e-5)
    assert scores.max(1).mean() == pytest.approx(accuracy(scores, truth), abs=0.05)


def test_auto_rule() -> None:
    (x, y), (wide, _) = task(0, 60, 15), task(0, 60, 16)
    probe = LinearProbe()
    probe(x, y, x, classes=4)
    assert probe.chosen["solver"] == "lbfgs"
    probe(wide, y, wide, classes=4)
    assert probe.chosen["solver"] == "ridge"
    probe(x, np.eye(4, dtype=np.uint8)[y], x, classes=4)
    assert probe.chosen["solver"] == "ridge"


def test_logistic_sees_the_class_between_others() -> None:
    """Three classes on a line: least squares hides the middle one, which is why narrow features go to L-BFGS."""
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3
    x = (y[:, None] + 0.1 * rng.normal(size=(300, 1))).astype(np.float32)
    assert accuracy(LinearProbe(solver="ridge")(x, y, x, classes=3), y) < 0.8
    assert accuracy(LinearProbe()(x, y, x, classes=3), y) > 0.97


def test_warm_start_does_not_change_the_answer() -> None:
    x, y = task(0, 200, 6, signal=0.5)
    path = Logistic(torch.from_numpy(x), y, 4, 500)
    for c in (1e-4, 1e-2, 1.0):
        warm = path.fit(c)
    cold = Logistic(torch.from_numpy(x), y, 4, 500).fit(1.0)
    assert torch.allclose(warm(torch.from_numpy(x)), cold(torch.from_numpy(x)), atol=5e-3)


@pytest.mark.parametrize("solver", ["ridge", "lbfgs"])
@pytest.mark.parametrize("n", [20, 3000])
def test_rounding_of_a_constant_is_no_signal(solver: str, n: int) -> None:
    """A constant whose float32 mean is off by a little must not be blown up to unit variance."""
    (x, y), (test, _) = task(0, n, 30), task(1, 20, 30)
    probe = LinearProbe(solver=solver, strength=0.1)
    wanted = probe(x, y, test, classes=4)
    for value in (0.1, 3.3, 1234.567, 1e4 / 3):
        found = probe(np.hstack([x, np.full((n, 1), value, dtype=np.float32)]), y,
                      np.hstack([test, np.full((20, 1), 1.001 * value, dtype=np.float32)]), classes=4)
        assert np.allclose(found, wanted, atol=1e-3), value


@pytest.mark.parametrize("n", [8, 5000])
def test_constants_are_recognised_about_an_imperfect_shift(n: int) -> None:
    rng = np.random.default_rng(0)
    x = torch.full((n, 3), 3.3)
    x[:, 1] += torch.from_numpy(1e-3 * rng.normal(size=n)).float()  # small, but real
    x[:, 2] *= torch.from_numpy(1 + 2e-7 * rng.integers(-1, 2, n)).float()  # the last bit of float32
    path = RidgePath(x, torch.eye(2)[torch.arange(n) % 2], torch.arange(n), torch.full((3,), 3.3 * (1 + 1e-6)))
    assert (path.scale > 0).tolist() == [False, True, False]
    logistic = Logistic(x, np.arange(n) % 2, 2, 5)
    assert (logistic.scale > 0).tolist() == [False, True, False]


@pytest.mark.slow
def test_closed_form_is_as_good_and_far_faster() -> None:
    """A tenth of the CPU time and within a point, at a size that still runs in seconds."""
    (x, y), (test, truth) = task(0, 12_000, 256, 10, 0.12), task(1, 4000, 256, 10, 0.12)
    results = {}
    for solver in ("ridge", "lbfgs"):
        start = time.process_time()
        results[solver] = accuracy(LinearProbe(solver=solver)(x, y, test, classes=10), truth)
        results[f"{solver} seconds"] = time.process_time() - start
    assert results["ridge"] > results["lbfgs"] - 0.01
    assert results["ridge seconds"] < results["lbfgs seconds"] / 10


@pytest.mark.parametrize("options", [{"solver": "sgd"}, {"fraction": 0.0}, {"strength": -1.0}, {"iterations": 0}])
def test_wrong_options_are_named(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        LinearProbe(**options)  # type: ignore[arg-type]
