"""SimMIM: cells by hand, the loss by a loop, and what hidden pixels may influence."""

from __future__ import annotations

import pytest
import torch
from tests.objectives.masked import (
    assert_loss_is_the_mean_over_hidden,
    assert_pictures_keep_the_visible,
    assert_visible_targets_do_not_count,
    seen,
    shake,
    swap_patches,
)
from tests.objectives.pairs import STEP, assert_gradients_reach, assert_parts_equal_whole, images, spec, vit
from torch import nn

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.objectives.simmim import SimMIM, default_unit
from osteon.parts.targets import patchify
from osteon.parts.types import Draws


def small(**options) -> SimMIM:
    torch.manual_seed(1)
    return SimMIM(vit(), spec(), **options)


@pytest.mark.parametrize(("grid", "unit"), [
    ((12, 12), 2),  # 192 px in patches of 16: the paper's 32 px
    ((14, 14), 2),  # 224 px
    ((8, 8), 1), ((4, 4), 1), ((24, 24), 4),
    ((20, 20), 2),  # a sixth is 3, which does not divide 20
    ((1, 1), 1),
])
def test_unit_is_a_sixth_of_the_grid(grid, unit):
    assert default_unit(grid) == unit


def test_three_fifths_of_the_cells_are_hidden_rounded_up():
    _, mask = seen(small(), images())
    assert mask.shape == (8, 16) and (mask.sum(1) == 10).all()  # ceil(0.6 * 16)
    assert len({tuple(row.tolist()) for row in mask}) == 8
    _, mask = seen(small(unit=2), images())
    cells = mask.view(8, 2, 2, 2, 2).permute(0, 1, 3, 2, 4).reshape(8, 4, 4)
    assert (cells.all(-1) == cells.any(-1)).all() and (cells.all(-1).sum(1) == 3).all()  # ceil(0.6 * 4) of 2 x 2


def test_target_is_plain_pixels_and_error_is_absolute():
    x = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])
    assert small().target(x)[0, 0].tolist() == [1.0, 3.0, 5.0, 7.0]
    assert small().error(torch.tensor([[[1.0, 4.0]]]), torch.tensor([[[3.0, 1.0]]])).item() == (2 + 3) / 2


def test_loss_by_a_loop():
    assert_loss_is_the_mean_over_hidden(small(), images(4), power=1, standardised=False)
    assert_loss_is_the_mean_over_hidden(small(unit=2), images(4), power=1, standardised=False)


def test_hidden_tokens_are_one_learned_vector_before_positions_are_added():
    objective = small()
    shake(objective)
    x, mask = seen(objective, images())
    inputs = []
    objective.backbone.blocks[0].register_forward_hook(lambda _m, args, _out: inputs.append(args[0]))
    objective.predict(x, mask)
    positions = objective.backbone.positions((4, 4)).expand(8, -1, -1)
    plain = objective.backbone.stem(x) + positions
    torch.testing.assert_close(inputs[0][mask], (objective.mask_token + positions)[mask])
    torch.testing.assert_close(inputs[0][~mask], plain[~mask])


def test_prediction_is_one_linear_map_of_each_token_and_blind_to_hidden_pixels():
    objective = small()
    shake(objective)
    x, mask = seen(objective, images())
    with torch.no_grad():
        prediction, pooled = objective.predict(x, mask)
        features = objective.backbone(x, mask=mask, mask_token=objective.mask_token)
        blind, _ = objective.predict(swap_patches(x, mask, 2), mask)
        changed, _ = objective.predict(swap_patches(x, ~mask, 2), mask)
    assert isinstance(objective.head, nn.Linear)
    torch.testing.assert_close(prediction, features.tokens @ objective.head.weight.T + objective.head.bias)
    torch.testing.assert_close(pooled, features.pooled)
    assert torch.equal(prediction, blind) and not torch.isclose(prediction, changed).all(-1).any()


def test_predictions_at_visible_patches_do_not_count():
    assert_visible_targets_do_not_count(small(), images())


def test_pictures():
    assert_pictures_keep_the_visible(small(), images())
    objective = small()
    x, mask = seen(objective, images())
    output = patchify(objective.reconstruct(images(), STEP)[2], 2)
    torch.testing.assert_close(output[mask], objective.predict(x, mask)[0][mask])


def test_views_are_mild_crops():
    (plan,) = small().views.plans
    assert plan.scale == (0.67, 1.0) and plan.flip == 0.5 and plan.jitter is None
    (plan,) = small(crop_min=0.3, flip=False).views.plans
    assert plan.scale == (0.3, 1.0) and plan.flip == 0


def test_parts_of_a_batch_give_the_gradient_of_the_whole_and_it_reaches_everything():
    assert_parts_equal_whole(small(), images())
    assert_gradients_reach(small(), images())
    assert not small().encode(images(), Draws.of(images(), STEP))["features"].requires_grad


def test_choices_are_noted_and_impossible_ones_refused():
    assert any("unit = 1" in note and "2 px" in note for note in small().notes)
    assert not any("unit" in note for note in small(unit=2).notes)
    for options in ({"ratio": 0.0}, {"ratio": 1.0}, {"ratio": 0.9, "unit": 2}):
        with pytest.raises(UsageError, match="some must be hidden"):
            small(**options)
    with pytest.raises(UsageError, match="whole cells"):
        small(unit=3)
    with pytest.raises(UsageError, match="mask_token"):
        SimMIM(build_backbone("resnet_tiny", channels=1, size=8, stride=2), spec()).predict(
            torch.zeros(1, 1, 8, 8), torch.zeros(1, 16, dtype=torch.bool))
