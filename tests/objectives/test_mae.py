"""MAE: the loss by a loop, what the encoder and the decoder see, and what does not count."""

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
from tests.objectives.pairs import STEP, assert_gradients_reach, assert_parts_equal_whole, images, normal, spec, vit
from torch import nn

from osteon.core.errors import UsageError
from osteon.objectives.mae import MAE
from osteon.parts.positions import sincos
from osteon.parts.targets import patchify
from osteon.parts.types import Draws
from osteon.views.masks import visible_indices


def small(**options) -> MAE:
    torch.manual_seed(1)
    return MAE(vit(), spec(), **({"decoder_dim": 16, "decoder_depth": 1} | options))


def test_target_by_hand():
    # One 2 x 2 patch 1, 3, 5, 7: mean 4, unbiased variance 20 / 3.
    x = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])
    expected = torch.tensor([-3.0, -1.0, 1.0, 3.0]) / (20 / 3) ** 0.5
    torch.testing.assert_close(small().target(x)[0, 0], expected, rtol=1e-5, atol=1e-5)
    assert small(norm_pix=False).target(x)[0, 0].tolist() == [1.0, 3.0, 5.0, 7.0]


def test_a_flat_patch_has_a_target_of_zero():
    assert (small().target(torch.full((1, 1, 8, 8), 3.0)) == 0).all()


def test_error_by_hand():
    assert small().error(torch.tensor([[[1.0, 4.0]]]), torch.tensor([[[3.0, 1.0]]])).item() == (4 + 9) / 2


@pytest.mark.parametrize("norm_pix", [True, False])
def test_loss_by_a_loop(norm_pix):
    assert_loss_is_the_mean_over_hidden(small(norm_pix=norm_pix), images(4), power=2, standardised=norm_pix)


def test_three_quarters_are_hidden_in_every_sample():
    objective = small()
    _, mask = seen(objective, images())
    assert mask.shape == (8, 16) and (mask.sum(1) == 12).all()
    assert len({tuple(row.tolist()) for row in mask}) == 8
    assert (seen(small(ratio=0.5), images())[1].sum(1) == 8).all()


def test_only_visible_patches_are_encoded_and_predictions_do_not_depend_on_hidden_ones():
    objective = small()
    shake(objective)
    x, mask = seen(objective, images())
    counts = []
    objective.backbone.blocks[0].register_forward_hook(lambda _m, args, _out: counts.append(args[0].shape[1]))
    with torch.no_grad():
        prediction, pooled = objective.predict(x, mask)
        blind, _ = objective.predict(swap_patches(x, mask, 2), mask)
        changed, _ = objective.predict(swap_patches(x, ~mask, 2), mask)
    assert counts == [4, 4, 4]
    assert torch.equal(prediction, blind) and not torch.isclose(prediction, changed).all(-1).any()
    torch.testing.assert_close(pooled, objective.backbone(x, keep=visible_indices(mask)).pooled)


def test_decoder_puts_tokens_back_where_they_came_from():
    objective = small()
    x, mask = seen(objective, images())
    keep, decoder = visible_indices(mask), objective.decoder
    inputs = []
    decoder.blocks[0].register_forward_hook(lambda _m, args, _out: inputs.append(args[0]))
    objective.predict(x, mask)
    tokens = decoder.embed(objective.backbone(x, keep=keep).tokens)
    positions = sincos((4, 4), 16)[0]
    for b in range(8):
        place = {int(n): i for i, n in enumerate(keep[b])}
        for n in range(16):
            token = tokens[b, place[n]] if n in place else decoder.mask_token
            torch.testing.assert_close(inputs[0][b, n], token + positions[n])


def test_predictions_at_visible_patches_do_not_count():
    assert_visible_targets_do_not_count(small(), images())


def test_pictures():
    assert_pictures_keep_the_visible(small(), images())
    objective = small()
    patches = patchify(normal(2, 1, 8, 8) * 3 + 1, 2)
    exact = objective.target(normal(2, 1, 8, 8) * 3 + 1)
    torch.testing.assert_close(objective.to_pixels(exact, patches), patches, rtol=1e-4, atol=1e-4)
    raw = small(norm_pix=False)
    assert torch.equal(raw.to_pixels(exact, patches), exact)


def test_views_are_crops_without_colour():
    (plan,) = small().views.plans
    assert plan.scale == (0.2, 1.0) and plan.flip == 0.5 and plan.jitter is None
    (plan,) = small(crop_min=0.6, flip=False).views.plans
    assert plan.scale == (0.6, 1.0) and plan.flip == 0


def test_decoder_follows_the_encoder_and_its_heads_divide_it():
    decoder = MAE(vit(), spec()).decoder
    assert decoder.positions.shape == (1, 16, 64) and len(decoder.blocks) == 2 and decoder.blocks[0].attn.heads == 2
    decoder = MAE(vit(), spec(), decoder_dim=112, decoder_depth=1).decoder  # 112 // 32 = 3 does not divide it
    assert decoder.positions.shape[-1] == 112 and decoder.blocks[0].attn.heads == 2
    assert isinstance(decoder.out, nn.Linear) and decoder.out.out_features == 4


def test_parts_of_a_batch_give_the_gradient_of_the_whole_and_it_reaches_everything():
    assert_parts_equal_whole(small(), images())
    assert_gradients_reach(small(), images())
    assert not small().encode(images(), Draws.of(images(), STEP))["features"].requires_grad


@pytest.mark.parametrize("ratio", [0.0, 0.02, 0.99, 1.0])
def test_a_ratio_that_leaves_nothing_is_refused(ratio):
    with pytest.raises(UsageError, match="some must be hidden"):
        small(ratio=ratio)


def test_a_patch_of_one_value_cannot_be_standardised():
    from osteon.backbones import build_backbone

    one = build_backbone("vit_tiny", channels=1, size=4, dim=16, depth=1, heads=2, patch=1)
    with pytest.raises(UsageError, match="deviation"):
        MAE(one, spec(1, 4))
    assert MAE(one, spec(1, 4), norm_pix=False).target(torch.ones(1, 1, 4, 4)).shape == (1, 16, 1)
