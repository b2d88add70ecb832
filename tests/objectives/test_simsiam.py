from __future__ import annotations

import pytest
import torch
from tests.objectives.pairs import (
    STEP,
    assert_gradients_reach,
    assert_parts_equal_whole,
    assert_slope,
    assert_views_apart,
    images,
    normal,
    resnet,
    spec,
    vit,
)
from torch import nn

from osteon.objectives.simsiam import SimSiam, embedding_spread, negative_cosine
from osteon.parts.norm import BatchNorm
from osteon.parts.types import Draws


def small(**options) -> SimSiam:
    return SimSiam(vit(), spec(), head_width=16, **options)


def loss(p: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return small().agree(z, p, None, STEP).total


def test_hand_computed_cosines():
    p = torch.tensor([[[2.0, 0.0], [1.0, 0.0], [3.0, 4.0]]])
    z = torch.tensor([[[9.0, 0.0], [0.0, 1.0], [-6.0, -8.0]]])
    assert negative_cosine(p, z)[0].tolist() == pytest.approx([-1, 0, 1])


def test_each_prediction_meets_the_other_view():
    u, v = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    p = torch.stack([u, v])[None]
    assert loss(p, torch.stack([v, u])[None]).item() == -1  # half the sum of -1 and -1
    assert loss(p, p).item() == 0
    assert loss(p, torch.stack([v, v])[None]).item() == -0.5


def test_collapse_reaches_the_minimum_and_shows_in_the_spread():
    constant = torch.ones(4, 2, 3)
    result = small().agree(constant, constant, None, STEP)
    assert result.total.item() == pytest.approx(-1)
    assert result.parts["spread"].item() == pytest.approx(0, abs=1e-6)


def test_spread_of_embeddings_all_around_is_one():
    around = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 5.0], [0.0, -5.0]])[:, None]
    assert embedding_spread(around).item() == pytest.approx(1)  # deviation sqrt(1/2) in each of 2 dimensions
    assert embedding_spread(normal(2000, 1, 64)).item() == pytest.approx(1, abs=0.02)


def test_scale_view_order_and_sample_order_do_not_matter():
    p, z = normal(6, 2, 4), normal(6, 2, 4, seed=1)
    expected = loss(p, z)
    for q, s in ((3 * p, 0.2 * z), (p.flip(1), z.flip(1)), (p.roll(2, 0), z.roll(2, 0))):
        torch.testing.assert_close(loss(q, s), expected)


def test_mean_of_halves_is_the_whole():
    p, z = normal(6, 2, 4), normal(6, 2, 4, seed=1)
    assert SimSiam.additive
    torch.testing.assert_close((loss(p[:3], z[:3]) + loss(p[3:], z[3:])) / 2, loss(p, z))


def test_gradient_goes_to_predictions_and_stops_at_embeddings():
    p, z = normal(6, 2, 4).requires_grad_(), normal(6, 2, 4, seed=1).requires_grad_()
    loss(p, z).backward()
    assert z.grad is None and (p.grad.norm(dim=-1) > 1e-4).all()
    assert_slope(lambda x: loss(x, z), p)


def test_gradient_reaches_the_projector_through_the_predictor_only():
    objective, batch = small().train(), images()
    encoded = objective.encode(batch, Draws.of(batch, STEP))
    encoded["z"].retain_grad()
    objective.score(encoded, STEP).total.backward()
    # What arrives at z is what the predictions alone send back: nothing comes from z's own role as a target.
    leaf = encoded["z"].detach().requires_grad_()
    first, second = leaf.unbind(1)
    alone = (negative_cosine(objective.predictor(first), second) + negative_cosine(objective.predictor(second), first))
    (expected,) = torch.autograd.grad(alone.sum() / 16, leaf)
    torch.testing.assert_close(encoded["z"].grad, expected, rtol=1e-4, atol=1e-6)
    assert expected.norm() > 1e-4


def test_heads_are_the_papers():
    projector, predictor = small().projector, small().predictor
    assert [type(m) for m in projector] == [nn.Linear, BatchNorm, nn.ReLU] * 2 + [nn.Linear, BatchNorm]
    assert projector[-1].weight is None and projector[-1].bias is None
    assert [type(m) for m in predictor] == [nn.Linear, BatchNorm, nn.ReLU, nn.Linear]
    assert [m.out_features for m in predictor if isinstance(m, nn.Linear)] == [4, 16]
    assert small(bottleneck=5).predictor[0].out_features == 5


def test_embeddings_are_standardised_by_the_projector():
    batch = images(16)
    z = small().train().encode(batch, Draws.of(batch, STEP))["z"]
    torch.testing.assert_close(z.mean(0), torch.zeros(2, 16), rtol=0, atol=1e-4)


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    assert_parts_equal_whole(small().eval(), images())  # eval: batch norm in training is refused under accumulation


def test_views_keep_their_own_batch_statistics():
    assert_views_apart(small(), images())


def test_there_is_no_companion():
    assert small().companions() == []


def test_gradient_reaches_every_parameter():
    assert_gradients_reach(SimSiam(vit(), spec()), images())
    assert_gradients_reach(SimSiam(resnet(), spec(3, 32)), images(8, 3, 32))
