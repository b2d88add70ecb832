"""PFN: what attends to what, laws of its predictions, and that it learns the posterior of a small prior."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from osteon.backbones.pfn import PFN, _rate
from osteon.core.errors import UsageError
from osteon.parts.priors import GaussianProcess, RandomNetworks


def network(classes: int = 0, features: int = 3, seed: int = 0, **options) -> PFN:
    """Small, with weights in the places that start at zero: otherwise no point would see another."""
    torch.manual_seed(seed)
    net = PFN(features=features, classes=classes, dim=16, depth=2, heads=2, buckets=10, **options)
    with torch.no_grad():
        for block in net.blocks:
            for last in (block.attn.proj, block.mlp.fc2):
                last.weight.normal_(std=0.3)
    return net.eval()


def task(classes: int = 0, n: int = 6, m: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    y = torch.randint(0, classes, (2, n), generator=g) if classes else torch.randn(2, n, generator=g)
    return torch.randn(2, n, 3, generator=g), y, torch.randn(2, m, 3, generator=g)


@pytest.mark.parametrize("classes", [0, 3])
def test_the_order_of_labelled_points_does_not_matter(classes):
    net, (x, y, query) = network(classes), task(classes)
    shuffled = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(net(x[:, shuffled], y[:, shuffled], query), net(x, y, query), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("classes", [0, 3])
def test_a_query_sees_no_other_query(classes):
    net, (x, y, query) = network(classes), task(classes)
    whole = net(x, y, query)
    torch.testing.assert_close(net(x, y, query[:, 2:3]), whole[:, 2:3], atol=1e-5, rtol=1e-4)
    changed = query.clone()
    changed[:, 1] += 5
    torch.testing.assert_close(net(x, y, changed)[:, [0, 2, 3]], whole[:, [0, 2, 3]], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(net(x, y, changed)[:, 1], whole[:, 1], atol=1e-3)


@pytest.mark.parametrize("classes", [0, 3])
def test_labels_and_samples_of_labelled_points_matter_together(classes):
    net, (x, y, query) = network(classes), task(classes)
    whole, other = net(x, y, query), y.flip(1)
    assert not torch.allclose(net(x, other, query), whole, atol=1e-3)
    torch.testing.assert_close(net(x.flip(1), other, query), whole, atol=1e-5, rtol=1e-4)


def test_residual_branches_start_at_nothing():
    """As built, a query's answer is a function of itself alone: attention and feed-forward outputs start at 0."""
    torch.manual_seed(0)
    net, (x, y, query) = PFN(features=3, classes=2, dim=16, depth=2, heads=2), task(2)
    torch.testing.assert_close(net(x, y, query), net(2 * x, 1 - y, query))


def test_without_labelled_points_there_is_an_answer():
    net, (x, y, query) = network(2), task(2)
    assert net(x[:, :0], y[:, :0], query).shape == (2, 4, 2)


def test_classes_that_no_labelled_point_has_are_never_told():
    net, (x, _, query) = network(3), task(3)
    y = torch.tensor([[0, 2, 0, 2, 2, 0], [1, 1, 1, 1, 1, 1]])
    p = net.predict(x, y, query)
    assert not p[0, :, 1].any() and (p[1] == torch.tensor([0.0, 1.0, 0.0])).all()
    torch.testing.assert_close(p.sum(-1), torch.ones(2, 4))


def test_a_gaussian_process_is_learned_and_borders_hold_equal_mass():
    torch.manual_seed(0)
    prior, net = GaussianProcess(lengthscale=0.5), PFN(features=1, dim=32, depth=2, heads=2, buckets=20)
    losses = net.fit_prior(prior, steps=150, batch=32, points=12, lr=3e-3)
    assert np.mean(losses[-20:]) < np.mean(losses[:5]) - 0.3
    assert net.bars is not None
    from osteon.parts.types import Draws, Step

    x, y = prior.draw(Draws(Step(0, 1, 9), torch.arange(100), 100, name="test"), 18)
    share = torch.bincount(net.bars.bucket(y.flatten()), minlength=20) / y.numel()
    assert float(share.max()) < 0.09
    exact = prior.posterior(x[:, :8], y[:, :8], x[:, 8:])[0]
    found = net.predict(x[:, :8], y[:, :8], x[:, 8:])
    shapes = [(v - v.mean(1, keepdim=True)).numpy().ravel() for v in (found, exact)]  # not the level alone
    assert np.corrcoef(*shapes)[0, 1] > 0.75


def test_training_is_a_function_of_the_seed():
    prior = RandomNetworks(features=3, classes=2)
    runs = [network(2).fit_prior(prior, steps=3, batch=4, points=10, seed=s) for s in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_the_number_of_labelled_points_is_drawn_at_every_step(monkeypatch):
    net, seen = network(2), []
    forward = net.forward
    monkeypatch.setattr(net, "forward", lambda x, y, q: seen.append((x.shape[1], q.shape[1])) or forward(x, y, q))
    net.fit_prior(RandomNetworks(features=3, classes=2), steps=60, batch=2, points=9, least=2, most=6)
    assert {n for n, _ in seen} == {2, 3, 4, 5, 6} and all(n + m == 9 for n, m in seen)


def test_the_rate_rises_in_a_line_and_falls_by_a_cosine():
    assert [_rate(i, 8, 0.25) for i in (0, 1)] == [0.5, 1.0]
    assert _rate(2, 8, 0.25) == 1.0 and _rate(5, 8, 0.25) == pytest.approx(0.5) and 0 < _rate(7, 8, 0.25) < 0.1


@pytest.mark.parametrize("options", [{"features": 0}, {"features": 2, "classes": 1}, {"features": 2, "dim": 9},
                                     {"features": 2, "depth": 0}])
def test_impossible_networks_are_named(options):
    with pytest.raises(UsageError):
        PFN(**options)


def test_a_prior_of_another_shape_and_impossible_tasks_are_named():
    net = network(2)
    for prior in (GaussianProcess(features=3), RandomNetworks(features=2, classes=2)):
        with pytest.raises(UsageError):
            net.fit_prior(prior, steps=1)
    for bad in ({"points": 5, "most": 5}, {"points": 5, "least": 4, "most": 3}, {"steps": 0}):
        with pytest.raises(UsageError):
            net.fit_prior(RandomNetworks(features=3, classes=2), **{"steps": 1, "points": 6, **bad})
