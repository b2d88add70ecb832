"""The booster: laws of greedy and gradient layers, its head and line search by hand, and bad input."""

from __future__ import annotations

import numpy as np
import pytest

from osteon.core.errors import DataError, UsageError
from osteon.parts.random_feature_boosting import Head, RandomFeatureBooster, fit_chosen, log_softmax, newton_step


def classes(n: int = 120, d: int = 6, k: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    g = np.random.default_rng(seed)
    x = g.standard_normal((n, d)) * np.linspace(1, 50, d) + 7
    y = (np.abs(x[:, 0] - 7) > 0.7).astype(int) + (x[:, 1] > 12)  # no line tells these apart
    return x, y % k


def numbers(n: int = 120, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    x, _ = classes(n, seed=seed)
    return x, np.stack([np.sin(x[:, 0]), x[:, 1] * x[:, 2] / 100], 1)


@pytest.mark.parametrize("maps", ["dense", "diagonal", "scalar"])
@pytest.mark.parametrize("eta", [1.0, 0.3])
def test_greedy_boosting_without_penalty_never_raises_the_training_error(maps, eta):
    model = RandomFeatureBooster(loss="mse", variant="greedy", maps=maps, ridge=0, layers=6, dim=12, width=8, eta=eta)
    losses = np.array(model.fit(*numbers()).losses)
    assert len(losses) == 7 and (np.diff(losses) <= 1e-9).all() and losses[-1] < losses[0] - 1e-3


@pytest.mark.parametrize(("loss", "data"), [("cross_entropy", classes), ("mse", numbers)])
def test_gradient_layers_lower_the_loss_much(loss, data):
    x, y = data()
    model = RandomFeatureBooster(loss=loss, layers=4, dim=16, width=32).fit(x, y)
    assert (np.diff(model.losses) < 0).all() and model.losses[-1] < 0.5 * model.losses[0]


def test_the_first_greedy_layer_is_the_sandwiched_least_squares_of_the_residual():
    """The layer, rebuilt from the model's parts: what it adds lowers the error as no other map of its features does."""
    x, y = numbers()
    model = RandomFeatureBooster(loss="mse", variant="greedy", layers=1, dim=10, width=6, ridge=1e-3).fit(x, y)
    first = RandomFeatureBooster(loss="mse", variant="greedy", layers=0, dim=10, width=6, ridge=1e-3).fit(x, y)
    assert model.losses[0] == first.losses[0]
    phi, w = first.transform(x), first.head.weight
    added = model.transform(x) - phi
    left = y - first.head(phi)
    gain = np.square(left).sum() - np.square(left - added @ w).sum()
    for scale in (0.9, 1.1):  # the optimum, but for the small penalty, along its own direction
        assert np.square(left).sum() - np.square(left - scale * added @ w).sum() < gain


def test_shrinkage_scales_what_a_layer_adds():
    x, y = numbers()
    start = RandomFeatureBooster(loss="mse", layers=0, dim=10, width=6).fit(x, y).transform(x)
    whole, half = (RandomFeatureBooster(loss="mse", layers=1, dim=10, width=6, eta=eta).fit(x, y).transform(x) - start
                   for eta in (1.0, 0.5))
    np.testing.assert_allclose(half, whole / 2, atol=1e-12)


def test_layers_read_the_input_as_well_as_the_representation():
    """A representation of one number can only learn what three inputs say because layers see the inputs again."""
    x, y = numbers(400)
    model = RandomFeatureBooster(loss="mse", layers=6, dim=1, width=60).fit(x, y[:, :1])
    assert model.losses[-1] < 0.2 * model.losses[0]


def test_the_representation_is_what_the_head_reads():
    x, y = numbers()
    model = RandomFeatureBooster(loss="mse", layers=2, dim=9, width=12).fit(x, y)
    assert model.transform(x).shape == (120, 9) and model.transform(x).dtype == np.float64
    np.testing.assert_allclose(model.head(model.transform(x)), model.predict(x))
    np.testing.assert_allclose(model.losses[-1], np.square(model.predict(x) - y).sum(1).mean())


def test_the_head_is_fitted_to_the_last_representation_as_training_made_it():
    x, y = numbers()
    for variant in ("gradient", "greedy"):
        model = RandomFeatureBooster(loss="mse", variant=variant, layers=2, dim=9, width=12, eta=0.5).fit(x, y)
        head = Head("mse", model.ridge)
        head.fit(model.transform(x), y)
        np.testing.assert_allclose(model.head.weight, head.weight, atol=1e-8)
        np.testing.assert_allclose(model.losses[-1], np.square(model.predict(x) - y).sum(1).mean())


def test_a_row_depends_on_no_other_row_and_one_row_is_enough():
    x, y = classes()
    model = RandomFeatureBooster(layers=3, dim=8, width=16).fit(x, y)
    np.testing.assert_allclose(model.predict(x[5:6]), model.predict(x)[5:6], atol=1e-12)
    assert np.allclose(model.predict(x).sum(1), 1)


def test_units_of_the_columns_do_not_matter():
    x, y = classes()
    scale, shift = np.array([1e3, 1e-3, 5, 1, 1, 1]), np.array([0, 7, -3, 0, 0, 1e4])
    one, two = (RandomFeatureBooster(layers=2, dim=8, width=16).fit(v, y).predict(v) for v in (x, x * scale + shift))
    np.testing.assert_allclose(one, two, atol=1e-4)
    constant = np.concatenate([x, np.full((len(x), 1), 3.0)], 1)
    assert np.isfinite(RandomFeatureBooster(layers=1, dim=8, width=16).fit(constant, y).predict(constant + 5)).all()


def test_the_seed_decides_everything():
    x, y = classes()
    a, b, c = (RandomFeatureBooster(layers=1, dim=8, width=16, seed=s).fit(x, y).predict(x) for s in (0, 0, 1))
    assert np.array_equal(a, b) and not np.allclose(a, c)


def test_the_heads_by_hand():
    # squared error without penalty through (0, 1), (1, 3): 1 + 2 x; a large penalty leaves the mean
    x, y = np.array([[0.0], [1.0]]), np.array([[1.0], [3.0]])
    head = Head("mse", 0.0)
    head.fit(x, y)
    assert (head.weight[0, 0], head.bias[0]) == (pytest.approx(2), pytest.approx(1))
    head = Head("mse", 1e9)
    head.fit(x, y)
    assert head(x).ravel() == pytest.approx([2, 2], abs=1e-6)
    # ridge / N: centred x = -1/2, 1/2, so x^T x = 1/2 and x^T y = 1; weight = 1 / (1/2 + 2 * 1/4) = 1
    head = Head("mse", 0.25)
    head.fit(x, y)
    assert head.weight[0, 0] == pytest.approx(1)


def test_the_logistic_head_is_scikit_learns():
    from sklearn.linear_model import LogisticRegression

    x, y = classes()
    x = (x - x.mean(0)) / x.std(0)
    head = Head("cross_entropy", 0.01)
    head.fit(x, np.eye(3)[y])
    want = LogisticRegression(C=1 / (2 * 0.01 * len(x)), max_iter=1000, tol=1e-8).fit(x, y)
    np.testing.assert_allclose(np.exp(log_softmax(head(x))), want.predict_proba(x), atol=2e-3)


def test_the_newton_step_is_the_minimum_along_the_line():
    g = np.random.default_rng(0)
    logits, move, y = g.standard_normal((50, 3)), g.standard_normal((50, 3)), np.eye(3)[g.integers(0, 3, 50)]
    grid = np.linspace(-3, 3, 6001)
    values = [-(y * log_softmax(logits + a * move)).sum() for a in grid]
    assert newton_step(logits, move, y) == pytest.approx(grid[int(np.argmin(values))], abs=2e-3)
    assert newton_step(logits, 0 * move, y) == 0.0
    # two logits, one sample of each class, move (1, 0) for both: nothing is to be gained
    assert newton_step(np.zeros((2, 2)), np.array([[1.0, 0], [1, 0]]), np.eye(2)) == pytest.approx(0, abs=1e-12)


def test_the_penalty_is_chosen_on_held_out_samples():
    """Targets of pure noise call for the largest penalty, clean ones for a small one; the winner is fitted on all."""
    g = np.random.default_rng(0)
    x = g.standard_normal((300, 5))

    def make(ridge: float) -> RandomFeatureBooster:
        return RandomFeatureBooster(loss="mse", layers=1, dim=40, width=60, ridge=ridge)

    noise, clean = g.standard_normal(300), np.sin(x[:, 0])
    assert fit_chosen(make, x, noise, ridges=(1e-6, 1e-3, 10.0), fraction=0.5).ridge == 10.0
    chosen = fit_chosen(make, x, clean, ridges=(1e-4, 1e-3, 10.0))
    assert chosen.ridge < 10
    np.testing.assert_array_equal(chosen.predict(x), make(chosen.ridge).fit(x, clean).predict(x))
    y = np.arange(4)  # nobody can be held out
    assert fit_chosen(lambda r: RandomFeatureBooster(layers=1, dim=4, width=4, ridge=r), x[:4], y).ridge == 1e-3


@pytest.mark.parametrize("options", [
    {"loss": "hinge"}, {"variant": "newton"}, {"variant": "greedy"}, {"maps": "scalar"}, {"features": "relu"},
    {"layers": -1}, {"dim": 0}, {"width": 0}, {"eta": 0}, {"eta": 1.5}, {"ridge": -1}, {"map_ridge": -1},
    {"scale": 0.0}])
def test_impossible_options_are_named(options):
    with pytest.raises(UsageError):
        RandomFeatureBooster(**options)


def test_broken_data_is_named():
    x, y = classes(10)
    model = RandomFeatureBooster(layers=1, dim=4, width=4)
    for bad in ((x[:, 0], y), (x[:5], y), (np.where(x == x[0, 0], np.nan, x), y), (x, y + 0.5), (x, y - 5)):
        with pytest.raises(DataError):
            model.fit(*bad)
    with pytest.raises(DataError):
        model.fit(x, y, 1)
