from __future__ import annotations

import pytest
import torch
from tests.objectives.pairs import (
    STEP,
    assert_companion_follows,
    assert_gradients_reach,
    assert_parts_equal_whole,
    assert_slope,
    images,
    normal,
    resnet,
    spec,
    vit,
)
from torch import nn

from osteon.objectives.tico import TiCo, crowding, second_moment
from osteon.parts.norm import BatchNorm
from osteon.parts.types import Draws, Step

EAST = torch.tensor([1.0, 0.0]).expand(4, 1, 2)  # everything collapsed onto one direction


def small(**options) -> TiCo:
    return TiCo(vit(), spec(), **({"head_width": 16, "out": 8} | options))


def test_hand_computed_moment_and_crowding():
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.6, 0.8]])
    assert second_moment(z).flatten().tolist() == pytest.approx([0.34, 0.12, 0.12, 0.66])
    c = torch.tensor([[0.3, 0.1], [0.1, 0.7]])
    # z^T C z: 0.3, 0.7, 0.7 and 0.36 * 0.3 + 2 * 0.48 * 0.1 + 0.64 * 0.7 = 0.652
    assert crowding(z, c).item() == pytest.approx((0.3 + 0.7 + 0.7 + 0.652) / 4)


def test_hand_computed_loss_of_two_steps_and_its_limit_rho():
    objective = small(out=2)
    one = objective.agree(EAST, None, EAST, STEP)
    assert one.total.item() == pytest.approx(8 * 0.1)  # C = 0.9 * 0 + 0.1 * 1 along the direction
    objective.after_step(STEP)
    two = objective.agree(EAST, None, EAST, STEP)
    assert two.total.item() == pytest.approx(8 * 0.19)  # 0.9 * 0.1 + 0.1 * 1
    assert two.parts["crowding"].item() == pytest.approx(0.19)
    for _ in range(200):
        objective.agree(EAST, None, EAST, STEP)
        objective.after_step(STEP)
    assert objective.agree(EAST, None, EAST, STEP).total.item() == pytest.approx(8.0, rel=1e-4)


def test_disagreement_is_one_minus_the_cosine():
    for target, expected in (([3.0, 0.0], 0.0), ([0.0, 2.0], 1.0), ([-1.0, 0.0], 2.0)):
        result = small(out=2, rho=0.0).agree(EAST, None, torch.tensor(target).expand(4, 1, 2), STEP)
        assert result.total.item() == result.parts["disagreement"].item() == pytest.approx(expected)


def test_memory_changes_only_after_a_step_and_only_once():
    objective, z = small(out=3), normal(5, 1, 3)
    objective.agree(z, None, z, STEP)
    assert (objective.moment == 0).all()
    objective.after_step(STEP)
    unit = z[:, 0] / z[:, 0].norm(dim=-1, keepdim=True)
    torch.testing.assert_close(objective.moment, 0.1 * unit.T @ unit / 5)
    kept = objective.moment.clone()
    objective.after_step(STEP)  # nothing was scored since
    assert torch.equal(objective.moment, kept)
    assert "moment" in objective.state_dict()


def test_memory_is_symmetric_positive_and_bounded():
    objective = small(out=4)
    for seed in range(30):
        z = normal(6, 1, 4, seed=seed) + 2  # not centred, and it must not be
        objective.agree(z, None, z, STEP)
        objective.after_step(STEP)
    c = objective.moment
    torch.testing.assert_close(c, c.T)
    assert torch.linalg.eigvalsh(c).min() > -1e-6
    assert c.trace().item() == pytest.approx(1 - 0.9**30, rel=1e-4)
    assert torch.linalg.eigvalsh(c).max() > 0.7  # the common direction is the crowded one


def test_collapse_costs_more_than_spread():
    spread = torch.eye(8)[:, None]
    collapsed = torch.eye(8)[:1].expand(8, 8)[:, None]
    scores = []
    for z in (spread, collapsed):
        objective = small()
        for _ in range(60):
            result = objective.agree(z, None, z, STEP)
            objective.after_step(STEP)
        scores.append(result.total.item())
    assert scores[0] == pytest.approx(8 / 8, rel=1e-2) and scores[1] == pytest.approx(8, rel=1e-2)


def test_scale_and_sample_order_do_not_matter():
    z, t, objective = normal(6, 1, 8), normal(6, 1, 8, seed=1), small()
    expected = objective.agree(z, None, t, STEP).total
    for q, s in ((3 * z, 0.2 * t), (z.roll(2, 0), t.roll(2, 0))):
        torch.testing.assert_close(objective.agree(q, None, s, STEP).total, expected)


def test_gradient_takes_the_memory_as_given_and_stops_at_the_target():
    objective = small(out=4, rho=2.0)
    z, t = normal(6, 1, 4).requires_grad_(), normal(6, 1, 4, seed=1).requires_grad_()
    objective.agree(z, None, t, STEP).total.backward()
    assert t.grad is None

    with torch.no_grad():
        unit = z[:, 0] / z[:, 0].norm(dim=-1, keepdim=True)
        moment = 0.1 * unit.T @ unit / 6

    def by_hand(x: torch.Tensor) -> torch.Tensor:
        u, v = (y[:, 0] / y[:, 0].norm(dim=-1, keepdim=True) for y in (x, t.detach()))
        return 1 - (u * v).sum(1).mean() + 2.0 * torch.einsum("bi,ij,bj->b", u, moment, u).mean()

    leaf = z.detach().requires_grad_()
    (expected,) = torch.autograd.grad(by_hand(leaf), leaf)
    torch.testing.assert_close(z.grad, expected)
    assert_slope(by_hand, leaf)
    assert expected.norm() > 1e-3


def test_student_sees_the_first_view_and_companion_the_second():
    objective, batch = small().eval(), images()
    with torch.no_grad():
        for p in objective.projector.parameters():
            p.add_(normal(*p.shape) * 0.3)
    encoded = objective.encode(batch, Draws.of(batch, STEP))
    first, second = (v.x for v in objective.views(batch["image"], Draws.of(batch, STEP)))
    torch.testing.assert_close(encoded["z"][:, 0], objective.projector(objective.backbone(first).pooled))
    taught = objective.companion["projector"](objective.companion["backbone"](second).pooled)
    torch.testing.assert_close(encoded["t"][:, 0], taught)
    assert encoded["z"].shape == encoded["t"].shape == (8, 1, 8)
    assert encoded["z"].requires_grad and not encoded["t"].requires_grad


@pytest.mark.parametrize(("index", "momentum"), [(0, 0.99), (5, 0.995), (10, 1.0)])
def test_companion_follows_by_a_rising_average(index: int, momentum: float):
    assert_companion_follows(small().train(), momentum, Step(index, 10))


def test_head_is_the_papers():
    head = small().projector
    assert [type(m) for m in head] == [nn.Linear, BatchNorm, nn.ReLU, nn.Linear]
    assert TiCo(vit(), spec()).moment.shape == (256, 256)


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    objective = small(head_norm="layer")
    objective.moment.copy_(second_moment(normal(20, 8)))
    assert_parts_equal_whole(objective, images())


def test_gradient_reaches_every_parameter():
    assert_gradients_reach(TiCo(vit(), spec()), images())
    assert_gradients_reach(TiCo(resnet(), spec(3, 32)), images(8, 3, 32))
