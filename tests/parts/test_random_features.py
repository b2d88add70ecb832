"""Random features and sandwiched least squares: by hand, by the normal equations, and at their edges."""

from __future__ import annotations

import numpy as np
import pytest

from osteon.parts.random_features import (
    Ridge,
    gaussian_layer,
    ridge_map,
    sandwiched,
    sandwiched_diagonal,
    sandwiched_scalar,
    swim_layer,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def problem(n: int = 40, p: int = 6, d: int = 5, k: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    g = rng(1)
    return g.standard_normal((n, k)), g.standard_normal((d, k)), g.standard_normal((n, p))


def test_a_swim_feature_runs_from_minus_to_plus_the_scale_across_its_pair():
    x, y = np.array([[0.0, 1.0], [2.0, 1.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    out = swim_layer(x, y, 50, 0.5, rng())(x)
    # both directions occur, and in each the values are exactly tanh(-1/2) and tanh(1/2)
    assert sorted(set(out[0].round(9))) == [round(float(np.tanh(-0.5)), 9), round(float(np.tanh(0.5)), 9)]
    np.testing.assert_allclose(out[0], -out[1], atol=1e-12)


def test_swim_pairs_are_drawn_where_targets_differ_over_distance():
    # 0 and 1 share a target; 2 differs. From 0 the step is 1 long, from 1 it is 3: three times as likely.
    x, y = np.array([[0.0], [4.0], [1.0]]), np.array([[0.0], [0.0], [1.0]])
    layer = swim_layer(x, y, 6000, 0.5, rng())
    steps = np.round(1 / np.abs(layer.weight[0]), 9)  # the slope is 2 * 1/2 / distance
    assert set(steps) == {1.0, 3.0}
    assert (steps == 1.0).mean() == pytest.approx(0.75, abs=0.1)


def test_a_pair_of_nearly_equal_samples_has_a_bounded_slope():
    x, y = np.array([[0.0], [1e-9]]), np.array([[0.0], [1.0]])
    assert np.abs(swim_layer(x, y, 8, 0.5, rng()).weight).max() <= 1e-9 / 0.01**2 + 1e-12


@pytest.mark.parametrize("rows", [1, 6])
def test_without_targets_that_differ_weights_are_normal(rows):
    layer = swim_layer(rng().standard_normal((rows, 4)), np.ones((rows, 2)), 3000, 0.5, rng(3))
    assert layer.weight.std() == pytest.approx(0.5, rel=0.05) and layer.bias.std() == pytest.approx(1, rel=0.05)


def test_gaussian_weights_have_the_variance_they_should():
    layer = gaussian_layer(np.zeros((1, 25)), 4000, 2.0, rng())
    assert layer.weight.std() == pytest.approx(2 / 5, rel=0.02) and layer.bias.std() == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize(("n", "p"), [(30, 4), (4, 30)])
def test_ridge_is_the_solution_of_the_normal_equations(n, p):
    f, r = rng(2).standard_normal((n, p)), rng(3).standard_normal((n, 2))
    want = np.linalg.solve(f.T @ f + 0.7 * np.eye(p), f.T @ r)
    np.testing.assert_allclose(ridge_map(f, r, 0.7), want, atol=1e-10)
    np.testing.assert_allclose(Ridge(f).solve(r, np.array([0.7, 0.7])), want, atol=1e-10)
    np.testing.assert_allclose(ridge_map(f, r, 0.0), np.linalg.pinv(f) @ r, atol=1e-8)


def test_ridge_by_hand():
    # one input (1, 1), target (2, 4), penalty 1: a = 6 / 3
    assert ridge_map(np.array([[1.0], [1.0]]), np.array([[2.0], [4.0]]), 1.0).tolist() == [[2.0]]


def test_dense_maps_match_the_problem_written_out():
    r, w, f = problem()
    a = sandwiched(r, w, f, 0.01)
    # vec(F A W) = (W^T kron F) vec(A), columns one after the other
    big = np.kron(w.T, f)
    want = np.linalg.solve(big.T @ big + 40 * 0.01 * np.eye(30), big.T @ r.T.ravel())
    np.testing.assert_allclose(a, want.reshape(5, 6).T, atol=1e-9)


def test_dense_maps_match_gradient_descent():
    r, w, f = problem(n=20, p=3, d=2, k=2)
    a = np.zeros((3, 2))
    for _ in range(20000):
        a -= 0.002 * (f.T @ (f @ a @ w - r) @ w.T + 20 * 0.05 * a)
    np.testing.assert_allclose(sandwiched(r, w, f, 0.05), a, atol=1e-4)


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_diagonal_and_scalar_maps_match_the_problem_written_out(ridge):
    r, w, f = problem(p=5)
    big = np.stack([np.outer(f[:, j], w[j]).ravel() for j in range(5)], 1)
    want = np.linalg.solve(big.T @ big + 40 * ridge * np.eye(5), big.T @ r.ravel())
    np.testing.assert_allclose(sandwiched_diagonal(r, w, f, ridge), want, atol=1e-9)
    whole = (f @ w).ravel()
    assert sandwiched_scalar(r, w, f, ridge) == pytest.approx(whole @ r.ravel() / (whole @ whole + 40 * ridge))


def test_nothing_to_read_out_gives_no_map():
    r, w, f = problem()
    assert not sandwiched(r, 0 * w, f, 0.1).any() and sandwiched_scalar(r, 0 * w, f[:, :5], 0.0) == 0.0
    assert np.isfinite(sandwiched(r, w, 0 * f, 0.0)).all()
