from __future__ import annotations

import math

import pytest
import torch
from tests.objectives.pairs import (
    STEP,
    assert_gradients_reach,
    assert_parts_equal_whole,
    assert_slope,
    images,
    normal,
    resnet,
    spec,
    vit,
)
from torch.nn import functional as F

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.objectives.swav import SwAV, swapped_prediction
from osteon.parts.norm import BatchNorm
from osteon.parts.prototypes import sinkhorn
from osteon.parts.types import DataSpec, Draws, Step


def small(**options) -> SwAV:
    return SwAV(vit(), spec(), **({"prototypes": 6, "head_width": 16, "out": 4} | options))


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(normal(*shape, seed=seed), dim=-1)


def test_hand_computed_loss():
    # One sample, two clusters, three views of scores (log 3, 0): softmax (3/4, 1/4). Codes (1, 0) and (0, 1):
    # view 1 asks the two others for -log 3/4, view 2 for -log 1/4; mean over views, then over codes.
    scores = torch.tensor([[[math.log(3), 0.0]] * 3])
    codes = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    expected = (math.log(4 / 3) + math.log(4)) / 2
    assert swapped_prediction(scores, codes, 1.0).item() == pytest.approx(expected, rel=1e-5)


def test_naive_loops_agree():
    scores, codes, temperature = normal(5, 4, 3), normal(5, 2, 3, seed=1).softmax(-1), 0.3
    total = 0.0
    for i in range(2):
        for v in range(4):
            if v != i:
                for b in range(5):
                    top = [math.exp(s / temperature) for s in scores[b, v].tolist()]
                    shares = [t / sum(top) for t in top]
                    total -= sum(codes[b, i, k].item() * math.log(shares[k]) for k in range(3)) / 5 / 3 / 2
    assert swapped_prediction(scores, codes, temperature).item() == pytest.approx(total, rel=1e-4)


def test_a_view_never_predicts_its_own_code():
    scores = normal(5, 2, 3).requires_grad_()
    only_first = torch.stack([torch.full((5, 3), 1 / 3), torch.zeros(5, 3)], 1)
    (grad,) = torch.autograd.grad(swapped_prediction(scores, only_first, 0.3), scores)
    assert not grad[:, 0].any() and grad[:, 1].any()


def test_collapse_costs_the_logarithm_of_the_prototypes():
    objective = small()
    loss = objective.agree(normal(1, 1, 4).expand(8, 2, 4), None, None, STEP)
    q = objective.prototypes(F.normalize(normal(1, 4), dim=1)) / objective.temperature
    assert loss.total.item() == pytest.approx(-q.log_softmax(-1).mean().item(), rel=1e-4)  # codes are even
    assert loss.total.item() > math.log(6)
    assert loss.parts["busiest"].item() == pytest.approx(1.0, abs=1e-4)
    assert swapped_prediction(torch.zeros(8, 2, 6), torch.full((8, 2, 6), 1 / 6), 0.1).item() == pytest.approx(
        math.log(6), rel=1e-5)


def test_score_is_the_loss_of_balanced_codes_of_each_full_view():
    objective, z = small(), normal(9, 4, 4)
    scores = F.normalize(z, dim=-1) @ F.normalize(objective.prototypes.weight, dim=1).T
    codes = torch.stack([sinkhorn(scores[:, i], eps=0.03, iterations=3) for i in (0, 1)], 1)
    expected = swapped_prediction(scores, codes, 0.1)
    torch.testing.assert_close(objective.agree(z, None, None, STEP).total, expected)


def test_scale_view_and_sample_order_do_not_matter():
    objective, z = small(), normal(6, 2, 4)
    expected = objective.agree(z, None, None, STEP).total
    for other in (5 * z, z.flip(1), z.roll(2, 0)):
        torch.testing.assert_close(objective.agree(other, None, None, STEP).total, expected)


def test_the_whole_batch_is_balanced_together():
    objective, z = small(), normal(6, 2, 4)
    halves = sum(objective.agree(h, None, None, STEP).total for h in (z[:3], z[3:])) / 2
    assert not SwAV.additive and not torch.isclose(halves, objective.agree(z, None, None, STEP).total)


def test_gradient_flows_through_predictions_and_never_through_codes():
    objective, z = small(), normal(6, 3, 4)
    codes = objective.codes(F.normalize(z[:, :2], dim=-1))
    assert not codes.requires_grad

    def fixed_codes(x: torch.Tensor) -> torch.Tensor:
        return swapped_prediction(objective.prototypes(F.normalize(x, dim=-1)), codes, objective.temperature)

    x = z.clone().requires_grad_()
    (got,) = torch.autograd.grad(objective.agree(x, None, None, STEP).total, x)
    (expected,) = torch.autograd.grad(fixed_codes(x), x)
    torch.testing.assert_close(got, expected)
    assert_slope(fixed_codes, z)
    soft = codes.clone().requires_grad_()
    with pytest.raises(RuntimeError):
        torch.autograd.grad(swapped_prediction(normal(6, 3, 6), soft, 0.1), soft)


def test_prototypes_are_held_at_first_and_learn_later():
    objective, z = small(freeze=0.2), normal(6, 2, 4)
    for index, moves in ((0, False), (1, False), (2, True)):
        objective.zero_grad()
        objective.agree(z, None, None, Step(index, 10)).total.backward()
        assert objective.prototypes.weight.grad.any() == moves


def test_prototypes_are_of_unit_length_after_every_step():
    objective = small()
    with torch.no_grad():
        objective.prototypes.weight.mul_(3)
    objective.after_step(STEP)
    torch.testing.assert_close(objective.prototypes.weight.norm(dim=1), torch.ones(6))


def test_the_queue_fills_late_serves_once_full_and_changes_only_after_steps():
    objective, steps = small(queue=8, queue_start=0.5), 10
    state = {k: v.clone() for k, v in objective.queue.state_dict().items()}
    z = [normal(4, 3, 4, seed=i) for i in range(4)]
    objective.agree(z[0], None, None, Step(4, steps))
    objective.after_step(Step(4, steps))
    assert len(objective.queue) == 0
    objective.agree(z[1], None, None, Step(5, steps))
    assert all(torch.equal(v, state[k]) for k, v in objective.queue.state_dict().items())
    objective.after_step(Step(5, steps))
    torch.testing.assert_close(objective.queue.read(), F.normalize(z[1][:, :2], dim=-1))
    alone = small()
    alone.load_state_dict(objective.state_dict() | alone.queue.state_dict(prefix="queue."))
    torch.testing.assert_close(objective.agree(z[2], None, None, Step(6, steps)).total,  # half full: not used
                               alone.agree(z[2], None, None, Step(6, steps)).total)
    objective.after_step(Step(6, steps))
    assert objective.queue.full
    fresh = F.normalize(z[3], dim=-1)
    codes = objective.codes(fresh[:, :2])
    for view in (0, 1):
        past = objective.queue.read()[:, view]
        together = sinkhorn(objective.prototypes(torch.cat([fresh[:, view], past])), eps=0.03, iterations=3)
        torch.testing.assert_close(codes[:, view], together[:4])


def test_small_crops_only_predict():
    objective, z = small(), normal(6, 4, 4)
    other = z.clone()
    other[:, 2:] = normal(6, 2, 4, seed=9)
    torch.testing.assert_close(objective.codes(F.normalize(z[:, :2], dim=-1)),
                               objective.codes(F.normalize(other[:, :2], dim=-1)))
    assert objective.agree(z, None, None, STEP).total != objective.agree(other, None, None, STEP).total
    objective.after_step(Step(9, 10))
    assert objective.queue.entries.shape[1:] == (2, 4)


def test_crops_follow_the_options():
    torch.manual_seed(0)
    net = build_backbone("resnet_tiny", channels=3, size=32)
    objective = SwAV(net, spec(3, 32), global_size=24, local_size=16, prototypes=12, out=8)
    batch = images(4, 3, 32)
    sizes = [v.x.shape[-1] for v in objective.views(batch["image"], Draws.of(batch, STEP))]
    assert sizes == [24, 24, 16, 16, 16, 16]
    encoded = objective.eval().encode(batch, Draws.of(batch, STEP))
    assert encoded["z"].shape == (4, 6, 8) and not encoded["features"].requires_grad
    assert len(small().views) == 2  # 8 pixels: no small crops


def test_number_of_prototypes_is_printed():
    unlabelled = SwAV(vit(), spec())
    assert len(unlabelled.prototypes.weight) == 300 and any("prototypes = 300" in n for n in unlabelled.notes)
    labelled = SwAV(vit(), DataSpec("image", 1, 8, (0.5,), (0.25,), num_classes=40))
    assert len(labelled.prototypes.weight) == 400 and any("40 classes" in n for n in labelled.notes)


def test_head_has_one_hidden_layer_with_batch_norm():
    kinds = [type(m) for m in small().projector]
    assert kinds == [torch.nn.Linear, BatchNorm, torch.nn.ReLU, torch.nn.Linear]


def test_temperature_must_be_positive():
    with pytest.raises(UsageError, match="temperature"):
        small(temperature=0.0)


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    assert_parts_equal_whole(small(freeze=0.0).eval(), images())


def test_gradient_reaches_every_trainable_parameter():
    assert_gradients_reach(SwAV(vit(), spec(), freeze=0.0), images())
    assert_gradients_reach(SwAV(resnet(), spec(3, 32), n_local=1, freeze=0.0), images(8, 3, 32))
