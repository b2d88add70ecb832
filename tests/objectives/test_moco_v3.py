from __future__ import annotations

import math

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

from osteon.core.errors import UsageError
from osteon.objectives.moco_v3 import MoCoV3, info_nce
from osteon.parts.norm import BatchNorm
from osteon.parts.types import Draws, Step


def small(**options) -> MoCoV3:
    return MoCoV3(vit(), spec(), head_width=16, out=8, **options)


def loss(p: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return small().agree(torch.full_like(p, torch.nan), p, t, STEP).total  # projections play no part


def test_hand_computed_loss():
    # Two orthogonal samples: -log(e^(1/T) / (e^(1/T) + 1)) = log(1 + e^(-1/T)), times 2 T.
    eye = torch.eye(2)
    assert info_nce(3 * eye, 7 * eye, 0.5).item() == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-5)
    assert info_nce(eye, eye, 1.0).item() == pytest.approx(2 * math.log(1 + math.exp(-1)), rel=1e-5)


def test_naive_loops_agree():
    q, k, temperature = normal(5, 3), normal(5, 3, seed=1), 0.3

    def cos(a: torch.Tensor, b: torch.Tensor) -> float:
        return (a @ b / (a.norm() * b.norm())).item()

    total = 0.0
    for i in range(5):
        scores = [math.exp(cos(q[i], k[j]) / temperature) for j in range(5)]  # a query against all keys
        total -= math.log(scores[i] / sum(scores)) / 5
    assert info_nce(q, k, temperature).item() == pytest.approx(2 * temperature * total, rel=1e-4)


def test_both_directions_are_added_and_views_meet_crosswise():
    p, t = normal(5, 2, 3), normal(5, 2, 3, seed=1)
    expected = info_nce(p[:, 0], t[:, 1], 0.2) + info_nce(p[:, 1], t[:, 0], 0.2)
    torch.testing.assert_close(loss(p, t), expected)
    u = torch.stack([torch.eye(4), torch.eye(4).roll(1, 0)], 1)  # view 2 of a sample looks like view 1 of the next
    assert loss(u, u.flip(1)).item() < 0.1 < loss(u, u).item()


def test_collapse_costs_the_logarithm_of_the_batch():
    same = torch.ones(6, 2, 3)
    assert loss(same, same).item() == pytest.approx(2 * 2 * 0.2 * math.log(6), rel=1e-5)


def test_scale_view_order_and_sample_order_do_not_matter():
    p, t = normal(6, 2, 4), normal(6, 2, 4, seed=1)
    expected = loss(p, t)
    for q, s in ((3 * p, 0.2 * t), (p.flip(1), t.flip(1)), (p.roll(2, 0), t.roll(2, 0))):
        torch.testing.assert_close(loss(q, s), expected)


def test_every_sample_of_the_batch_is_a_key():
    p, t = normal(6, 2, 4), normal(6, 2, 4, seed=1)
    assert not MoCoV3.additive
    assert not torch.isclose((loss(p[:3], t[:3]) + loss(p[3:], t[3:])) / 2, loss(p, t))


def test_gradient_goes_to_queries_and_never_to_keys():
    p, t = normal(6, 2, 4).requires_grad_(), normal(6, 2, 4, seed=1).requires_grad_()
    loss(p, t).backward()
    assert t.grad is None and (p.grad.norm(dim=-1) > 1e-4).all()
    assert_slope(lambda x: loss(x, t), p)


def test_keys_are_the_companions_projections():
    objective, batch = small().train(), images()
    encoded = objective.encode(batch, Draws.of(batch, STEP))
    torch.testing.assert_close(encoded["t"], encoded["z"])  # a fresh companion is a copy
    assert not encoded["t"].requires_grad and encoded["p"].requires_grad
    with torch.no_grad():
        for p in objective.predictor.parameters():
            p.add_(1)
        objective.backbone.norm.weight.mul_(-1)
    again = objective.encode(batch, Draws.of(batch, STEP))
    assert torch.equal(again["t"], encoded["t"]) and not torch.allclose(again["p"], encoded["p"])


@pytest.mark.parametrize(("index", "momentum"), [(0, 0.99), (5, 0.995), (10, 1.0)])
def test_companion_follows_by_a_rising_average(index: int, momentum: float):
    assert_companion_follows(small().train(), momentum, Step(index, 10))


def test_patch_embedding_stays_at_its_initial_values():
    objective, batch = small().train(), images()
    objective(batch, STEP).total.backward()
    assert all(p.grad is None and not p.requires_grad for p in objective.backbone.patch_embed.parameters())
    assert any("patch embedding" in note for note in objective.notes)
    free = small(freeze_patch=False).train()
    free(batch, STEP).total.backward()
    assert all(p.grad is not None and p.grad.norm() > 0 for p in free.backbone.patch_embed.parameters())


def test_convolutional_backbones_are_not_frozen():
    objective = MoCoV3(resnet(), spec(3, 32), head_width=16)
    assert all(p.requires_grad for p in objective.backbone.parameters())
    assert not any("patch embedding" in note for note in objective.notes)


def test_a_transformer_without_a_convolution_is_refused():
    backbone = vit()
    backbone.patch_embed = nn.Identity()
    with pytest.raises(UsageError, match="freeze_patch"):
        MoCoV3(backbone, spec())


def test_heads_follow_the_kind_of_backbone():
    three = small()
    assert [type(m) for m in three.projector] == [nn.Linear, BatchNorm, nn.ReLU] * 2 + [nn.Linear, BatchNorm]
    assert [type(m) for m in three.predictor] == [nn.Linear, BatchNorm, nn.ReLU, nn.Linear, BatchNorm]
    assert three.projector[-1].weight is None and three.predictor[-1].weight is None
    two = MoCoV3(resnet(), spec(3, 32), head_width=16)
    assert [type(m) for m in two.projector] == [nn.Linear, BatchNorm, nn.ReLU, nn.Linear, BatchNorm]
    assert [type(m) for m in two.predictor] == [nn.Linear, BatchNorm, nn.ReLU, nn.Linear]


def test_temperature_must_be_positive():
    with pytest.raises(UsageError, match="temperature"):
        small(temperature=0.0)


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    assert_parts_equal_whole(small().eval(), images())  # eval: batch norm in training is refused under accumulation


def test_views_keep_their_own_batch_statistics():
    assert_views_apart(small(), images())


def test_gradient_reaches_every_trainable_parameter():
    assert_gradients_reach(MoCoV3(vit(), spec()), images())
    assert_gradients_reach(MoCoV3(resnet(), spec(3, 32)), images(8, 3, 32))
