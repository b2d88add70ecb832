"""SparK: the decoder step by step, what hidden pixels may influence, and the loss by a loop."""

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
from tests.objectives.pairs import STEP, assert_gradients_reach, images, normal, spec
from torch.nn import functional as F

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.objectives.spark import Densify, SparK, Up, upsample_mask
from osteon.parts.targets import patchify
from osteon.parts.types import DataSpec, Draws, Step


def small(size: int = 16, stride: int = 4, **options) -> SparK:
    torch.manual_seed(1)
    network = build_backbone("resnet_tiny", channels=1, size=size, stride=stride, depths=[1, 1, 1], widths=[8, 12, 16])
    return SparK(network, spec(1, size), **({"decoder_dim": 32} | options))


def pictures(n: int = 6) -> dict[str, torch.Tensor]:
    return images(n, 1, 16)


def test_upsampled_mask_by_hand():
    mask = torch.tensor([[True, False, False, True, True, False]])  # 2 x 3 cells
    expected = [[0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1]]
    assert upsample_mask(mask, (2, 3), 2)[0].int().tolist() == expected
    assert upsample_mask(mask, (2, 3), 1)[0].int().tolist() == [[0, 1, 1], [0, 0, 1]]


def test_densify_by_hand():
    layer = Densify(1, 1, 1)
    with torch.no_grad():
        layer.token.fill_(10.0)
        layer.project.weight.fill_(2.0)
        layer.project.bias.fill_(1.0)
    x = torch.tensor([[[[1.0, 3.0], [99.0, -99.0]]]])
    visible = torch.tensor([[[True, True], [False, False]]])
    # The visible values 1 and 3 have mean 2 and deviation 1; hidden ones become the token, whatever they were.
    torch.testing.assert_close(layer(x, visible)[0, 0], torch.tensor([[-1.0, 3.0], [21.0, 21.0]]), atol=1e-4, rtol=0)
    assert layer.norm.running_mean.item() == pytest.approx(0.2)


def test_up_is_the_papers_block():
    block = Up(4, 2).eval()
    shake(block, 0.5)
    x = normal(2, 4, 3, 3)
    y = F.conv_transpose2d(x, block.up.weight, block.up.bias, stride=2, padding=1)
    y = F.conv2d(y, block.conv1.weight, padding=1)
    y = (y * block.norm1.weight[:, None, None] / (1 + 1e-5) ** 0.5 + block.norm1.bias[:, None, None]).clamp(0, 6)
    y = F.conv2d(y, block.conv2.weight, padding=1)
    y = y * block.norm2.weight[:, None, None] / (1 + 1e-5) ** 0.5 + block.norm2.bias[:, None, None]
    torch.testing.assert_close(block(x), y)
    assert block(x).shape == (2, 2, 6, 6) and y.min() < 0  # no activation at the end


def test_target_by_hand():
    patch = torch.tensor([1.0, 3.0, 5.0, 7.0]).repeat(4).view(1, 1, 4, 4)  # mean 4, unbiased variance 80 / 15
    expected = (torch.tensor([1.0, 3.0, 5.0, 7.0]).repeat(4) - 4) / (80 / 15) ** 0.5
    torch.testing.assert_close(small(4, 2).eval().target(patch[..., :2, :2])[0, 0],
                               torch.tensor([-1.0, 1.0, -1.0, 1.0]) / (4 / 3) ** 0.5)
    torch.testing.assert_close(small().target(patch)[0, 0], expected)


def test_loss_by_a_loop():
    assert_loss_is_the_mean_over_hidden(small().eval(), pictures(), power=2, standardised=True)


def test_three_fifths_are_hidden_in_every_sample():
    _, mask = seen(small(), pictures())
    assert mask.shape == (6, 16) and (mask.sum(1) == 10).all()
    assert len({tuple(row.tolist()) for row in mask}) == 6
    assert (seen(small(ratio=0.25), pictures())[1].sum(1) == 4).all()


@pytest.mark.parametrize("training", [True, False])
def test_predictions_do_not_depend_on_hidden_pixels(training):
    objective = small().train(training)
    shake(objective)
    x, mask = seen(objective, pictures())
    with torch.no_grad():
        prediction, pooled = objective.predict(x, mask)
        blind, blind_pooled = objective.predict(swap_patches(x, mask, 4), mask)
        changed, _ = objective.predict(swap_patches(x, ~mask, 4), mask)
    torch.testing.assert_close(prediction, blind)
    torch.testing.assert_close(pooled, blind_pooled)
    assert not torch.isclose(prediction, changed).all(-1).any()


def test_decoder_adds_every_scale_where_it_belongs():
    objective = small().eval()
    shake(objective, 0.3)
    x, mask = seen(objective, pictures())
    levels = objective.backbone(x, mask=mask).levels
    assert [level.shape[-1] for level in levels] == [16, 8, 4]
    coarse, middle = objective.skips["4"], objective.skips["2"]
    assert coarse.project.kernel_size == (1, 1) and middle.project.kernel_size == (3, 3)
    y = objective.ups[0](coarse(levels[2], upsample_mask(mask, (4, 4), 1)))
    y = objective.ups[1](y + middle(levels[1], upsample_mask(mask, (4, 4), 2)))
    expected = patchify(objective.out(y), 4)
    torch.testing.assert_close(objective.predict(x, mask)[0], expected)
    assert expected.shape == (6, 16, 16)


def test_widths_halve_down_to_sixteen_and_a_map_of_stride_one_is_not_decoded():
    objective = small(decoder_dim=48)
    assert [(u.conv2.in_channels, u.conv2.out_channels) for u in objective.ups] == [(48, 24), (24, 16)]
    assert set(objective.skips) == {"4", "2"} and objective.out.in_channels == 16
    assert small(decoder_dim=0).ups[0].conv2.in_channels == 64  # the last map has 16 channels
    # Two maps of stride 1 before the last, of stride 2: one doubling, one skip connection.
    assert set(small(8, 2).skips) == {"2"} and len(small(8, 2).ups) == 1
    # Of two maps of stride 2 the deepest is taken.
    network = build_backbone("resnet_tiny", channels=1, size=16, stride=4, depths=[1, 1, 1, 1], widths=[8, 8, 8, 8])
    assert network.level_strides == (1, 1, 2, 4)


def test_predictions_at_visible_patches_do_not_count():
    assert_visible_targets_do_not_count(small(), pictures())


def test_pictures():
    assert_pictures_keep_the_visible(small().eval(), pictures())
    patches = patchify(normal(2, 1, 16, 16) * 3 + 1, 4)
    exact = small().target(normal(2, 1, 16, 16) * 3 + 1)
    torch.testing.assert_close(small().to_pixels(exact, patches), patches, rtol=1e-4, atol=1e-4)


def test_views_are_mild_crops():
    (plan,) = small().views.plans
    assert plan.scale == (0.67, 1.0) and plan.flip == 0.5 and plan.jitter is None
    (plan,) = small(crop_min=0.3, flip=False).views.plans
    assert plan.scale == (0.3, 1.0) and plan.flip == 0


def test_gradient_reaches_every_parameter():
    objective = small()
    shake(objective)
    assert_gradients_reach(objective, pictures())
    assert not objective.encode(pictures(), Draws.of(pictures(), STEP))["features"].requires_grad


def test_exported_network_is_a_dense_one():
    objective = small().eval()
    x = normal(2, 1, 16, 16)
    nothing = torch.zeros(2, 16, dtype=torch.bool)
    torch.testing.assert_close(objective.exported()(x).pooled, objective.backbone(x, mask=nothing).pooled)


@pytest.mark.parametrize(("size", "stride", "options"), [(8, 1, {}), (18, 4, {}), (16, 4, {"ratio": 0.0}),
                                                         (16, 4, {"ratio": 1.0}), (4, 4, {})])
def test_what_cannot_be_decoded_is_refused(size, stride, options):
    with pytest.raises(UsageError):
        small(size, stride, **options)


def test_volumes_are_rebuilt_from_visible_cells_alone():
    spec = DataSpec("volume", 1, 8, (0.0,), (1.0,), 1.0, shape=(8, 8, 8))
    torch.manual_seed(0)
    network = build_backbone("resnet_tiny", channels=1, size=(8, 8, 8), depths=(1, 1), widths=(8, 16), stride=4)
    method = SparK(network, spec, ratio=0.5)
    x = torch.randn(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[True, False] * 4, [False, False, True, True] * 2])
    hidden = mask.view(2, 1, 2, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3).repeat_interleave(4, 4)
    first, _ = method.predict(x, mask)
    second, _ = method.predict(torch.where(hidden, torch.full_like(x, 3.0), x), mask)
    assert first.shape == (2, 8, 64)
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)
    assert torch.equal(upsample_mask(mask, (2, 2, 2), 4)[:, None], ~hidden)
    batch = {"volume": x, "index": torch.arange(2)}
    shown = method.reconstruct(batch, Step(0, 1, 0))
    assert shown is not None and all(part.shape == x.shape for part in shown)
    with pytest.raises(UsageError, match="8 x 8 x 6"):
        SparK(network, DataSpec("volume", 1, 8, (0.0,), (1.0,), 1.0, shape=(8, 8, 6)))
