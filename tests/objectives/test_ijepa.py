"""I-JEPA: the predictor by the authors' definition, targets, distances by hand, and where gradient stops."""

from __future__ import annotations

import pytest
import torch
from tests.objectives.masked import shake
from tests.objectives.pairs import (
    STEP,
    assert_gradients_reach,
    assert_parts_equal_whole,
    assert_slope,
    images,
    normal,
    spec,
    vit,
)
from torch.nn import functional as F

from osteon.core.errors import UsageError
from osteon.objectives.ijepa import IJEPA, Predictor, feature_distance, gather_tokens
from osteon.parts.positions import sincos
from osteon.parts.types import Draws, Step
from osteon.views.masks import ijepa_blocks


def small(**options) -> IJEPA:
    torch.manual_seed(1)
    return IJEPA(vit(), spec(), **({"predictor_dim": 8, "predictor_depth": 2} | options))


def blocks(objective: IJEPA, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The view, the context's places and the targets' places of a step."""
    draws = Draws.of(batch, STEP)
    x = objective.views(batch["image"], draws)[0].x
    at, wanted = ijepa_blocks((4, 4), draws.fork("mask"))
    return x, at, torch.stack(wanted, 1)


def test_distances_by_hand():
    p, t = torch.tensor([[[0.5, 3.0]], [[0.0, -1.0]]]), torch.zeros(2, 1, 2)
    # Smooth L1: half a square up to 1, the distance less a half beyond.
    assert feature_distance(p, t, "smooth_l1").tolist() == [(0.125 + 2.5) / 2, 0.25]
    assert feature_distance(p, t, "l2").tolist() == [(0.25 + 9) / 2, 0.5]


def test_gathering_by_hand():
    tokens = torch.arange(12.0).view(1, 6, 2)
    assert gather_tokens(tokens, torch.tensor([[4, 0]])).tolist() == [[[8.0, 9.0], [0.0, 1.0]]]


def test_predictor_by_its_definition_one_block_of_one_sample_at_a_time():
    predictor = Predictor(6, sincos((3, 4), 8), 2)
    shake(predictor)
    context, at = normal(2, 3, 6), torch.tensor([[0, 5, 11], [2, 3, 7]])
    wanted = torch.tensor([[[1, 2], [6, 10]], [[0, 4], [8, 9]]])
    found = predictor(context, at, wanted)
    positions = sincos((3, 4), 8)[0]
    for b in range(2):
        for t in range(2):
            known = predictor.embed(context[b]) + positions[at[b]]
            x = torch.cat([known, predictor.mask_token + positions[wanted[b, t]]])[None]
            for block in predictor.blocks:
                x = block(x)
            torch.testing.assert_close(found[b, t], predictor.out(predictor.norm(x))[0, 3:])
    assert found.shape == (2, 2, 2, 6)


def test_predictor_starts_small_and_smaller_with_depth():
    torch.manual_seed(0)
    predictor = Predictor(64, sincos((4, 4), 64), 3)
    assert predictor.embed.weight.std().item() == pytest.approx(0.02, rel=0.05) and (predictor.out.bias == 0).all()
    for layer, block in enumerate(predictor.blocks, 1):
        assert block.mlp.fc2.weight.std().item() == pytest.approx(0.02 / (2 * layer) ** 0.5, rel=0.05)
        assert block.attn.proj.weight.std().item() == pytest.approx(0.02 / (2 * layer) ** 0.5, rel=0.05)
        assert block.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("loss", ["smooth_l1", "l2"])
def test_loss_by_a_loop(loss):
    objective, batch = small(loss=loss), images(4)
    shake(objective.backbone, 0.3)
    shake(objective.predictor, 0.3)
    x, at, wanted = blocks(objective, batch)
    teacher = objective.companion["backbone"](x).tokens
    prediction = objective.predictor(objective.backbone(x, keep=at).tokens, at, wanted)
    expected = []
    for b in range(4):
        errors = []
        for t in range(4):
            for m, place in enumerate(wanted[b, t].tolist()):
                token = teacher[b, place]
                target = (token - token.mean()) / (token.var(unbiased=False) + 1e-5).sqrt()
                difference = (prediction[b, t, m] - target).abs()
                errors.append(difference**2 if loss == "l2" else
                              torch.where(difference < 1, difference**2 / 2, difference - 0.5))
        expected.append(torch.stack(errors).mean())
    encoded = objective.encode(batch, Draws.of(batch, STEP))
    torch.testing.assert_close(encoded["loss"], torch.stack(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(objective.score(encoded, STEP).total, torch.stack(expected).mean())


def test_encoder_sees_the_context_and_the_teacher_everything():
    objective, batch = small(), images()
    counts = {"student": [], "teacher": []}
    objective.backbone.blocks[0].register_forward_hook(lambda _m, a, _o: counts["student"].append(a[0].shape[1]))
    objective.companion["backbone"].blocks[0].register_forward_hook(
        lambda _m, a, _o: counts["teacher"].append(a[0].shape[1]))
    objective.encode(batch, Draws.of(batch, STEP))
    _, at, wanted = blocks(objective, batch)
    assert counts == {"student": [at.shape[1]], "teacher": [16]}
    for b in range(8):
        assert not set(at[b].tolist()) & set(wanted[b].flatten().tolist())


def test_targets_come_from_the_teacher_alone_and_are_normalised():
    objective, batch = small(), images()
    x, _, wanted = blocks(objective, batch)
    before = objective.taught(x, wanted)
    shake(objective.backbone)
    shake(objective.predictor)
    assert torch.equal(objective.taught(x, wanted), before) and not before.requires_grad
    shake(objective.companion, 0.5)
    after = objective.taught(x, wanted)
    assert not torch.isclose(after, before).all(-1).any()
    torch.testing.assert_close(after.mean(-1), torch.zeros(after.shape[:-1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(after.var(-1, unbiased=False), torch.ones(after.shape[:-1]), atol=1e-2, rtol=0)
    tokens = objective.companion["backbone"](x).tokens
    torch.testing.assert_close(after[3, 2, 1], F.layer_norm(tokens[3, wanted[3, 2, 1]], (16,)))


def test_a_perfect_prediction_costs_nothing():
    objective, batch = small(), images()
    x, _, wanted = blocks(objective, batch)
    exact = objective.taught(x, wanted)
    objective.predictor.forward = lambda _c, _a, _w, _p: exact
    assert objective(batch, STEP).total.item() == 0


@pytest.mark.parametrize(("index", "momentum"), [(0, 0.996), (5, 0.998), (10, 1.0)])
def test_teacher_follows_by_a_linearly_rising_average(index, momentum):
    objective = small()
    shake(objective.backbone)
    teacher, student = list(objective.companion.parameters()), list(objective.backbone.parameters())
    before = [p.clone() for p in teacher]
    objective(images(), Step(index, 10))
    assert all(torch.equal(p, q) for p, q in zip(teacher, before, strict=True))
    objective.after_step(Step(index, 10))
    for p, q, s in zip(teacher, before, student, strict=True):
        torch.testing.assert_close(p, momentum * q + (1 - momentum) * s)


def test_the_teacher_is_exported():
    objective = small()
    shake(objective.backbone)
    assert objective.exported() is objective.companion["backbone"] and objective.exported().name == "vit_tiny"
    x = normal(2, 1, 8, 8)
    assert not torch.allclose(objective.exported()(x).pooled, objective.backbone(x).pooled)
    assert objective.companions() == [objective.companion]
    assert any(key.startswith("companion.") for key in objective.state_dict())


def test_options_reach_the_policy_the_views_and_the_predictor():
    objective = IJEPA(vit(), spec())
    assert objective.predictor.positions.shape == (1, 16, 32) and len(objective.predictor.blocks) == 3
    assert objective.predictor.blocks[0].attn.heads == 1
    assert Predictor(16, sincos((4, 4), 112), 1).blocks[0].attn.heads == 2  # 3 does not divide 112
    (plan,) = objective.views.plans
    assert plan.scale == (0.3, 1.0) and plan.flip == 0 and plan.jitter is None
    (plan,) = small(crop_min=0.6, flip=True).views.plans
    assert plan.scale == (0.6, 1.0) and plan.flip == 0.5
    places = []
    for options in ({"targets": 2}, {"target_min": 0.5, "target_max": 0.5}, {"context_min": 0.2}):
        objective = small(**options)
        objective.predictor.register_forward_hook(lambda _m, a, _o: places.append((a[1].shape[1], a[2].shape[1:])))
        objective.encode(images(), Draws.of(images(), STEP))
    draws = Draws.of(images(), STEP).fork("mask")
    for i, options in enumerate(({"targets": 2}, {"target_scale": (0.5, 0.5)}, {"context_scale": (0.2, 1.0)})):
        at, wanted = ijepa_blocks((4, 4), Draws.of(images(), STEP).fork("mask"), **options)
        assert places[i] == (at.shape[1], (len(wanted), wanted[0].shape[1])), options
    assert draws.total == 8
    with pytest.raises(UsageError, match="loss"):
        small(loss="huber")


def test_gradient_is_the_slope_and_reaches_student_and_predictor_only():
    t = normal(2, 3, 4, seed=1)
    assert_slope(lambda p: feature_distance(p, t, "smooth_l1").sum(), 2 * normal(2, 3, 4))
    objective = small()
    shake(objective.predictor)
    assert_gradients_reach(objective, images())
    assert_parts_equal_whole(objective, images())
    assert not objective.encode(images(), Draws.of(images(), STEP))["features"].requires_grad
