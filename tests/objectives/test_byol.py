from __future__ import annotations

import pytest
import torch
from tests.objectives.pairs import (
    STEP,
    assert_companion_follows,
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

from osteon.objectives.byol import BYOL, prediction_error
from osteon.parts.norm import BatchNorm
from osteon.parts.types import Draws, Step


def small(**options) -> BYOL:
    return BYOL(vit(), spec(), head_width=16, out=8, **options)


def loss(p: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return small().agree(torch.full_like(p, torch.nan), p, t, STEP).total  # projections play no part


def test_hand_computed_errors():
    p = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [1.0, 1.0]]])
    t = torch.tensor([[[5.0, 0.0], [0.0, 7.0], [0.0, -1.0], [1.0, 0.0]]])
    expected = [0, 2, 4, 2 - 2 * 0.5**0.5]  # 2 - 2 cos of 0, 90, 180 and 45 degrees
    assert prediction_error(p, t)[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_unit_vectors_squared_distance_agrees():
    p, t = normal(5, 2, 4), normal(5, 2, 4, seed=1)
    p1, t1 = p / p.norm(dim=-1, keepdim=True), t / t.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(prediction_error(p, t), (p1 - t1).square().sum(-1))


def test_each_prediction_meets_the_other_view():
    u, v = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    p = torch.stack([u, v])[None]
    assert loss(p, torch.stack([v, u])[None]).item() == pytest.approx(0, abs=1e-6)
    assert loss(p, p).item() == pytest.approx(4)  # both directions at 90 degrees, 2 each, added


def test_collapse_is_a_minimum():
    constant = torch.ones(4, 2, 3)
    assert loss(constant, constant).item() == pytest.approx(0, abs=1e-6)


def test_scale_view_order_and_sample_order_do_not_matter():
    p, t = normal(6, 2, 4), normal(6, 2, 4, seed=1)
    expected = loss(p, t)
    for q, s in ((3 * p, 0.2 * t), (p.flip(1), t.flip(1)), (p.roll(2, 0), t.roll(2, 0))):
        torch.testing.assert_close(loss(q, s), expected)


def test_mean_of_halves_is_the_whole():
    p, t = normal(6, 2, 4), normal(6, 2, 4, seed=1)
    assert BYOL.additive
    torch.testing.assert_close((loss(p[:3], t[:3]) + loss(p[3:], t[3:])) / 2, loss(p, t))


def test_gradient_goes_to_predictions_and_never_to_targets():
    p, t = normal(6, 2, 4).requires_grad_(), normal(6, 2, 4, seed=1).requires_grad_()
    loss(p, t).backward()
    assert t.grad is None and (p.grad.norm(dim=-1) > 1e-4).all()
    assert_slope(lambda x: loss(x, t), p)


def test_target_is_the_companions_projection_not_the_students():
    objective, batch = small().train(), images()
    encoded = objective.encode(batch, Draws.of(batch, STEP))
    torch.testing.assert_close(encoded["t"], encoded["z"])  # a fresh companion is a copy
    assert not encoded["t"].requires_grad and encoded["p"].requires_grad
    with torch.no_grad():
        for p in objective.projector.parameters():
            p.add_(1)
    again = objective.encode(batch, Draws.of(batch, STEP))
    assert torch.equal(again["t"], encoded["t"]) and not torch.allclose(again["p"], encoded["p"])


def test_companion_normalises_by_the_batch_in_training():
    objective, batch = small().train(), images()
    norm = next(m for m in objective.companion["projector"] if isinstance(m, BatchNorm))
    assert norm.training
    taught = objective.encode(batch, Draws.of(batch, STEP))["t"]
    assert norm.num_batches_tracked == 2  # once a view: views do not share statistics
    objective.companion.eval()
    assert not torch.allclose(objective.encode(batch, Draws.of(batch, STEP))["t"], taught)


@pytest.mark.parametrize(("index", "momentum"), [(0, 0.99), (5, 0.995), (10, 1.0)])
def test_companion_follows_by_a_rising_average(index: int, momentum: float):
    assert_companion_follows(small().train(), momentum, Step(index, 10))


def test_heads_are_the_papers():
    for head, ins in ((small().projector, 16), (small().predictor, 8)):
        assert [type(m) for m in head] == [nn.Linear, BatchNorm, nn.ReLU, nn.Linear]
        assert (head[0].in_features, head[0].out_features, head[-1].out_features) == (ins, 16, 8)


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    assert_parts_equal_whole(small().eval(), images())  # eval: batch norm in training is refused under accumulation


def test_views_keep_their_own_batch_statistics():
    assert_views_apart(small(), images())


def test_gradient_reaches_every_parameter():
    assert_gradients_reach(BYOL(vit(), spec()), images())
    assert_gradients_reach(BYOL(resnet(), spec(3, 32)), images(8, 3, 32))
