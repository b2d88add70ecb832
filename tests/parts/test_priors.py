"""Priors: the exact posterior of the Gaussian process, the moments of its draws, and what random networks promise."""

from __future__ import annotations

import math

import pytest
import torch

from osteon.core.errors import UsageError
from osteon.parts.priors import GaussianProcess, RandomNetworks, standardised
from osteon.parts.types import Draws, Step


def draws(batch: int, seed: int = 0, index: int = 0) -> Draws:
    return Draws(Step(index, 10, seed), torch.arange(batch), batch)


def test_the_posterior_of_one_point_by_hand():
    gp = GaussianProcess(lengthscale=1.0, noise=0.5)
    # k(0, 1) = exp(-1/2); mean = k y / 1.5, variance = 1 + 0.5 - k^2 / 1.5
    mean, variance = gp.posterior(torch.zeros(1, 1, 1), torch.tensor([[3.0]]), torch.ones(1, 1, 1))
    k = math.exp(-0.5)
    assert float(mean) == pytest.approx(3 * k / 1.5) and float(variance) == pytest.approx(1.5 - k * k / 1.5)


def test_the_posterior_is_scikit_learns():
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, WhiteKernel

    gp = GaussianProcess(features=2, lengthscale=0.4, noise=0.03)
    x, y = gp.draw(draws(3), 12)
    mean, variance = gp.posterior(x[:, :8], y[:, :8], x[:, 8:])
    for i in range(3):
        model = GaussianProcessRegressor(RBF(0.4) + WhiteKernel(0.03), optimizer=None, alpha=0)
        want = model.fit(x[i, :8].double(), y[i, :8].double()).predict(x[i, 8:].double(), return_std=True)
        torch.testing.assert_close(mean[i], torch.from_numpy(want[0]), atol=1e-6, rtol=0)
        torch.testing.assert_close(variance[i].sqrt(), torch.from_numpy(want[1]), atol=1e-6, rtol=0)


def test_draws_have_the_kernels_covariance():
    gp = GaussianProcess(lengthscale=0.5, noise=0.1)
    x, y = gp.draw(draws(20_000), 2)
    assert 0 <= float(x.min()) and float(x.max()) <= 1
    assert float(y.var()) == pytest.approx(1.1, rel=0.03)
    near = gp.kernel(x[:, :1], x[:, 1:])[:, 0, 0]
    assert float((y[:, 0] * y[:, 1]).mean()) == pytest.approx(float(near.mean()), abs=0.03)


@pytest.mark.parametrize("prior", [GaussianProcess(features=3), RandomNetworks(features=5, classes=3)])
def test_tasks_are_a_function_of_the_seed_and_of_their_row_alone(prior):
    x, y = prior.draw(draws(6), 9)
    again = prior.draw(draws(6), 9)
    assert torch.equal(x, again[0]) and torch.equal(y, again[1]) and x.shape == (6, 9, prior.features)
    assert not torch.equal(x, prior.draw(draws(6, index=1), 9)[0])
    part = prior.draw(Draws(Step(0, 10, 0), torch.tensor([1, 4]), 6), 9)
    torch.testing.assert_close(part[0], x[[1, 4]])
    torch.testing.assert_close(part[1], y[[1, 4]])


def test_random_networks_give_standardised_columns_and_few_classes():
    x, y = RandomNetworks(features=6, classes=4).draw(draws(300), 64)
    width = (x.abs().sum(1) > 0).sum(1)
    assert set(width.tolist()) == {1, 2, 3, 4, 5, 6}
    for i in range(300):  # the columns that exist come first
        assert bool((x[i, :, :width[i]].square().mean(0) - 1).abs().max() < 1e-3) and not x[i, :, width[i]:].any()
    counts = torch.tensor([len(torch.unique(v)) for v in y])
    assert int(y.min()) == 0 and int(y.max()) == 3 and set(counts.tolist()) <= {1, 2, 3, 4} and int(counts.max()) == 4
    assert float((counts <= 2).float().mean()) > 0.25  # a third of the tasks are drawn with two
    assert all(int((y == c).sum()) > 0.15 * y.numel() for c in range(4))  # numbers of classes carry no meaning


def test_labels_of_random_networks_can_be_learned():
    """The nearest labelled row tells the class far more often than the most frequent class does."""
    x, y = RandomNetworks(features=3, classes=2).draw(draws(200), 200)
    near = torch.cdist(x[:, 150:], x[:, :150]).argmin(-1)
    found = float((y[:, :150].gather(1, near) == y[:, 150:]).float().mean())
    often = float(torch.stack([(y == c).float().mean(1) for c in range(2)]).max(0).values.mean())
    assert found > often + 0.05 and found > 0.75


def test_standardised_by_hand():
    x = torch.tensor([[[1.0, 5.0], [3.0, 5.0]]])
    assert standardised(x).tolist() == [[[-1, 0], [1, 0]]]


@pytest.mark.parametrize("make", [lambda: GaussianProcess(noise=0), lambda: GaussianProcess(lengthscale=-1),
                                  lambda: RandomNetworks(classes=1), lambda: RandomNetworks(features=0)])
def test_impossible_priors_are_named(make):
    with pytest.raises(UsageError):
        make()


def test_numbers_are_standardised_and_hang_on_the_columns():
    x, y = RandomNetworks(features=2, classes=0, noise=0.0).draw(draws(50), 128)
    assert y.shape == (50, 128) and y.dtype == torch.float32
    torch.testing.assert_close(y.mean(1), torch.zeros(50), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.square().mean(1), torch.ones(50), atol=1e-3, rtol=0)
    near = (x[:, :, None] - x[:, None]).square().sum(-1) + 1e9 * torch.eye(128)
    gap = (y - y.gather(1, near.argmin(2))).square().mean(1)
    assert gap.median() < 0.5  # of numbers without a law: 2
    noisy = RandomNetworks(features=2, classes=0, noise=3.0).draw(draws(50), 128)[1]
    assert (noisy - y).square().mean() > 0.3
