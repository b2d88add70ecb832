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
    images,
    normal,
    resnet,
    spec,
    vit,
)
from torch import nn
from torch.nn import functional as F

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.objectives.dino import DINO, cross_view_entropy, targets, teacher_temperature
from osteon.parts.norm import BatchNorm
from osteon.parts.types import Draws, Step


def small(**options) -> DINO:
    return DINO(vit(), spec(), **({"outputs": 6, "head_width": 16, "bottleneck": 4} | options))


def test_hand_computed_loss():
    # One sample, two outputs, three views with logits (log 3, 0): softmax (3/4, 1/4). Targets (1, 0) and (0, 1): each
    # meets the two other views, four pairs: (log 4/3 + log 4/3 + log 4 + log 4) / 4.
    student = torch.tensor([[[math.log(3), 0.0]] * 3])
    target = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    expected = (math.log(4 / 3) + math.log(4)) / 2
    assert cross_view_entropy(student, target, 1.0).item() == pytest.approx(expected, rel=1e-5)


def test_naive_loops_agree():
    student, target, temperature = normal(5, 4, 3), normal(5, 2, 3, seed=1).softmax(-1), 0.3
    total, pairs = 0.0, 0
    for i in range(2):
        for v in range(4):
            if v != i:
                pairs += 1
                for b in range(5):
                    top = [math.exp(s / temperature) for s in student[b, v].tolist()]
                    total -= sum(target[b, i, k].item() * math.log(top[k] / sum(top)) for k in range(3)) / 5
    assert cross_view_entropy(student, target, temperature).item() == pytest.approx(total / pairs, rel=1e-4)


def test_targets_are_centred_then_sharpened():
    logits, centre = torch.tensor([[2.0, 1.0]]), torch.tensor([1.0, 0.5])
    # (2 - 1, 1 - 0.5) / 0.25 = (4, 2): softmax 1 / (1 + e^-2).
    share = 1 / (1 + math.exp(-2))
    torch.testing.assert_close(targets(logits, centre, 0.25), torch.tensor([[share, 1 - share]]))
    assert not targets(logits.requires_grad_(), centre, 0.25).requires_grad


@pytest.mark.parametrize(("index", "expected"), [(0, 0.04), (1, 0.05), (2, 0.06), (3, 0.07), (9, 0.07)])
def test_temperature_warms_up_linearly(index: int, expected: float):
    assert teacher_temperature(Step(index, 10), 0.04, 0.07, 0.3) == pytest.approx(expected)
    assert teacher_temperature(Step(index, 10), 0.04, 0.07, 0.0) == 0.07


def loss_of(objective: DINO, z: torch.Tensor, t: torch.Tensor, centre: torch.Tensor, step: Step) -> torch.Tensor:
    teacher = F.normalize(t, dim=-1) @ F.normalize(objective.taught_last["last"].weight, dim=1).T
    student = F.normalize(z, dim=-1) @ F.normalize(objective.last.weight, dim=1).T
    q = targets(teacher, centre, teacher_temperature(step, *objective.teacher))
    return cross_view_entropy(student, q, objective.temperature)


def test_score_centres_the_teachers_logits_and_not_the_students():
    objective, z, t = small(teacher_start=0.2, teacher_end=0.6), normal(5, 3, 4), normal(5, 2, 4, seed=1)
    with torch.no_grad():
        objective.last.weight.add_(normal(6, 4, seed=2))  # the student's last layer is no longer the teacher's
    mean = (F.normalize(t, dim=-1) @ F.normalize(objective.taught_last["last"].weight, dim=1).T).mean((0, 1))
    step = Step(1, 10)
    result = objective.agree(z, None, t, step)  # the first batch is centred by itself
    torch.testing.assert_close(result.total, loss_of(objective, z, t, mean, step))
    objective.centred.fill_(True)
    objective.centre.copy_(normal(6, seed=3))
    torch.testing.assert_close(objective.agree(z, None, t, step).total,
                               loss_of(objective, z, t, objective.centre, step))


def test_centre_starts_at_the_first_mean_and_follows_by_an_average_after_each_step():
    objective, z, w = small(centre_momentum=0.75), normal(5, 2, 4), F.normalize
    weight = w(objective.taught_last["last"].weight, dim=1)
    means = []
    for i in range(2):
        t = normal(5, 2, 4, seed=i)
        means.append((w(t, dim=-1) @ weight.T).mean((0, 1)))
        before = objective.centre.clone()
        objective.agree(z, None, t, STEP)
        assert torch.equal(objective.centre, before)  # scoring changes nothing
        objective.after_step(STEP)
    torch.testing.assert_close(objective.centre, 0.75 * means[0] + 0.25 * means[1])
    again = objective.centre.clone()
    objective.after_step(STEP)  # nothing was scored since
    assert torch.equal(objective.centre, again)


def test_collapse_to_one_point_costs_the_logarithm_of_the_outputs():
    objective = small()
    with torch.no_grad():
        objective.last.weight.copy_(torch.ones(6, 4))
    objective.taught_last["last"].weight.copy_(torch.ones(6, 4))
    same = torch.ones(8, 2, 4)
    result = objective.agree(same, None, same, STEP)
    assert result.total.item() == pytest.approx(math.log(6), rel=1e-4)
    assert result.parts["teacher_entropy"].item() == pytest.approx(math.log(6), rel=1e-4)


def test_centring_undoes_a_common_preference():
    logits, shift = normal(5, 2, 6), 3 * normal(6, seed=1)
    torch.testing.assert_close(targets(logits + shift, shift, 0.1), targets(logits, torch.zeros(6), 0.1))


def test_scale_view_and_sample_order_do_not_matter():
    objective, z, t = small(), normal(6, 2, 4), normal(6, 2, 4, seed=1)
    expected = objective.agree(z, None, t, STEP).total
    for a, b in ((5 * z, 0.1 * t), (z.flip(1), t.flip(1)), (z.roll(2, 0), t.roll(2, 0))):
        torch.testing.assert_close(objective.agree(a, None, b, STEP).total, expected)


def test_the_mean_over_the_whole_batch_is_one_state():
    assert not DINO.additive  # else micro-batches would each bring a mean of their own


def test_gradient_goes_to_the_student_and_never_to_the_teacher():
    objective, step = small(), Step(5, 10)
    z, t = normal(6, 3, 4).requires_grad_(), normal(6, 2, 4, seed=1).requires_grad_()
    objective.agree(z, None, t, step).total.backward()
    assert t.grad is None and (z.grad.norm(dim=-1) > 1e-5).all()
    assert objective.last.weight.grad.any() and objective.taught_last["last"].weight.grad is None
    assert_slope(lambda x: objective.agree(x, None, t, step).total, z)
    soft = normal(6, 2, 6).softmax(-1).requires_grad_()
    with pytest.raises(RuntimeError):
        torch.autograd.grad(cross_view_entropy(normal(6, 3, 6), soft, 0.1), soft)


def test_a_view_never_meets_its_own_target():
    objective, z = small(), normal(6, 2, 4).requires_grad_()
    student = objective.last(F.normalize(z, dim=-1))
    only_first = torch.stack([torch.full((6, 6), 1 / 6), torch.zeros(6, 6)], 1)
    cross_view_entropy(student, only_first, 0.1).backward()
    assert not z.grad[:, 0].any() and z.grad[:, 1].any()


def test_the_last_layer_is_held_at_first():
    objective, z, t = small(freeze=0.2), normal(6, 2, 4), normal(6, 2, 4, seed=1)
    for index, moves in ((0, False), (1, False), (2, True)):
        objective.zero_grad()
        objective.agree(z, None, t, Step(index, 10)).total.backward()
        assert objective.last.weight.grad.any() == moves


@pytest.mark.parametrize(("index", "momentum"), [(0, 0.9), (5, 0.95), (10, 1.0)])
def test_the_teacher_follows_by_a_rising_average(index: int, momentum: float):
    objective, step = small(momentum=0.9).train(), Step(index, 10)
    last, mine = objective.last.weight, objective.taught_last["last"].weight
    with torch.no_grad():
        last.add_(normal(6, 4, seed=5))
    before = mine.clone()
    objective.companions = lambda: [objective.companion]  # backbone and projector are looked at here
    assert_companion_follows(objective, momentum, step)
    torch.testing.assert_close(mine, momentum * before + (1 - momentum) * last)


def test_the_teacher_sees_full_crops_only_and_the_student_all():
    torch.manual_seed(0)
    net = build_backbone("resnet_tiny", channels=3, size=32)
    objective, batch = DINO(net, spec(3, 32), outputs=12, bottleneck=8), images(4, 3, 32)
    assert [v.x.shape[-1] for v in objective.views(batch["image"], Draws.of(batch, STEP))] == [32, 32, 16, 16, 16, 16]
    encoded = objective.eval().encode(batch, Draws.of(batch, STEP))
    assert encoded["z"].shape == (4, 6, 8) and encoded["t"].shape == (4, 2, 8)
    torch.testing.assert_close(encoded["t"], encoded["z"][:, :2])  # a fresh teacher is a copy
    assert not encoded["t"].requires_grad and encoded["z"].requires_grad


def test_the_run_leaves_the_teachers_backbone():
    objective = small()
    assert objective.exported() is objective.companion["backbone"]
    assert objective.exported() is not objective.backbone
    assert {id(c) for c in objective.companions()} == {id(objective.companion), id(objective.taught_last)}


def test_head_has_two_hidden_layers():
    kinds = [type(m) for m in small(head_norm="none").projector]
    assert kinds == [nn.Linear, nn.GELU, nn.Linear, nn.GELU, nn.Linear]
    assert [type(m) for m in small().projector][:3] == [nn.Linear, BatchNorm, nn.GELU]


def test_crops_of_digits_are_full_only():
    objective = small()
    assert len(objective.views) == 2 and any("n_local = 0" in n for n in objective.notes)


def test_colour_jitter_follows_the_size_of_the_images():
    for options, side, expected in (({}, 32, 0.5), ({}, 36, 1.0), ({"strength": 0.8}, 32, 0.8)):
        torch.manual_seed(0)
        net = build_backbone("resnet_tiny", channels=3, size=side, stride=4)
        objective = DINO(net, spec(3, side), outputs=6, bottleneck=4, **options)
        assert objective.views.options["strength"] == expected
        assert any("strength" in n for n in objective.notes) == (not options)


@pytest.mark.parametrize("name", ["temperature", "teacher_start", "teacher_end"])
def test_temperatures_must_be_positive(name: str):
    with pytest.raises(UsageError, match=name):
        small(**{name: 0.0})


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    assert_parts_equal_whole(small(head_norm="layer", freeze=0.0), images())


def test_gradient_reaches_every_trainable_parameter():
    assert_gradients_reach(DINO(vit(), spec(), freeze=0.0), images())
    assert_gradients_reach(DINO(resnet(), spec(3, 32), n_local=1, freeze=0.0), images(8, 3, 32))
