"""Forecasting patch by patch: causality, the loss by a loop, and horizons that begin alike."""

from __future__ import annotations

import pytest
import torch
from tests.objectives.masked import shake

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.objectives.next_patch import NextPatch
from osteon.parts.types import DataSpec, Draws, Step

STEP = Step(3, 10, 7)
SPEC = DataSpec("series", 2, 32, (1.0, 1.0), (2.0, 2.0), 1.0, shape=(32,), traits={"window": 32, "norm": "series"})
BOTH = pytest.mark.parametrize("backbone", ["gpht_tiny", "vit_tiny"])


def small(backbone: str = "gpht_tiny") -> NextPatch:
    torch.manual_seed(1)
    options = {"pools": (2, 1)} if backbone == "gpht_tiny" else {"registers": 1}
    network = build_backbone(backbone, channels=2, size=(32,), dim=8, depth=1, heads=2, patch=4, **options)
    method = NextPatch(network, SPEC)
    shake(method)
    return method.eval()


def windows(n: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    return {"series": torch.randn(n, 2, 32, generator=torch.Generator().manual_seed(seed)).cumsum(-1) + 1,
            "index": torch.arange(n)}


@BOTH
def test_the_loss_by_a_loop(backbone):
    method, batch = small(backbone), windows()
    encoded = method.encode(batch, Draws.of(batch, STEP))
    x = (batch["series"] - 1) / 2
    ahead, _ = method.following(x[..., :28])
    assert ahead.shape == (3, 2, 7, 4)
    for row in range(3):
        errors = torch.stack([(ahead[row, :, n] - x[row, :, 4 * n + 4:4 * n + 8]).square().mean() for n in range(7)])
        torch.testing.assert_close(encoded["loss"][row], errors.mean())
        torch.testing.assert_close(encoded["last"][row], errors[-1])
    loss = method.score(encoded, STEP)
    torch.testing.assert_close(loss.total, encoded["loss"].mean())
    torch.testing.assert_close(loss.parts["last"], encoded["last"].mean())


@BOTH
def test_forecasts_are_in_the_units_of_the_context(backbone):
    method, past = small(backbone), windows()["series"][..., :28]
    scale, shift = torch.tensor([3.0, 0.1]).view(1, 2, 1), torch.tensor([-7.0, 40.0]).view(1, 2, 1)
    want = method.forecast(past, 8) * scale + shift
    torch.testing.assert_close(method.forecast(past * scale + shift, 8), want, rtol=1e-3, atol=1e-3)


@BOTH
def test_tokens_see_only_what_came_before(backbone):
    method, x = small(backbone), windows()["series"][..., :28]
    # later values with the same mean and deviation, which alone may tell of the future
    later = torch.cat([x[..., :16], x[..., 16:].flip(-1)], -1)
    torch.testing.assert_close(method.following(later)[0][:, :, :4], method.following(x)[0][:, :, :4], rtol=1e-4,
                               atol=1e-4)
    assert not torch.isclose(method.following(later)[0][:, :, 4], method.following(x)[0][:, :, 4]).all()


@BOTH
def test_a_longer_horizon_begins_like_a_shorter_one(backbone):
    method, past = small(backbone), windows()["series"][..., :28]
    long = method.forecast(past, 16)
    torch.testing.assert_close(method.forecast(past, 6), long[..., :6])
    torch.testing.assert_close(long[..., :4], method.following(past)[0][:, :, -1])
    moved = torch.cat([past, long[..., :4]], -1)[..., 4:]
    torch.testing.assert_close(long[..., 4:8], method.following(moved)[0][:, :, -1])


def test_stages_are_summed_and_channels_permute():
    method, past = small(), windows()["series"][..., :28]
    mean, std = past.mean(-1, keepdim=True), past.std(-1, keepdim=True, unbiased=False)
    first, second = method.backbone.read((past - mean) / std)[1]
    torch.testing.assert_close(method.following(past)[0], (first + second) * std[..., None] + mean[..., None])
    torch.testing.assert_close(method.forecast(past.flip(1), 8), method.forecast(past, 8).flip(1))


def test_patches_of_a_transformers_head_lie_in_order():
    method = small("vit_tiny")
    with torch.no_grad():  # what a patch shows: step by step, channels within a step
        method.head.weight.zero_()
        method.head.bias.copy_(torch.arange(8.0))
    past = torch.tensor([[-1.0, 1.0] * 14, [-10.0, 10.0] * 14])[None]
    want = torch.tensor([[0.0, 2, 4, 6], [10.0, 30, 50, 70]])
    torch.testing.assert_close(method.forecast(past, 4)[0], want)


@BOTH
def test_what_is_left(backbone):
    method = small(backbone)
    assert method.backbone.options.get("causal", True) is True and method.exported_data().extent == (28,)
    other = small(backbone)
    shake(other, 0.3)
    other.backbone.load_state_dict(method.backbone.state_dict())
    other.load_state_dict(method.kept(), strict=False)
    past = windows()["series"][..., :28]
    assert torch.equal(other.forecast(past, 8), method.forecast(past, 8)) and "context" in method.kept()
    x, corrupted, output = method.reconstruct(windows(), STEP)
    assert torch.equal(output[..., :28], x[..., :28])
    torch.testing.assert_close(output[..., 28:], method.forecast(x[..., :28], 4))
    torch.testing.assert_close(corrupted[..., 28:], x[..., :28].mean(-1, keepdim=True).expand(-1, -1, 4))


def test_the_network_that_is_left_is_used_as_it_was_trained():
    method, x = small("vit_tiny"), windows()["series"]
    changed = torch.cat([x[..., :16], windows(seed=4)["series"][..., 16:]], -1)
    torch.testing.assert_close(method.exported()(changed).tokens[:, :4], method.exported()(x).tokens[:, :4])
    again = build_backbone("vit_tiny", channels=2, size=(32,), **method.exported().options).eval()
    again.load_state_dict(method.exported().state_dict())
    assert torch.equal(again(x).pooled, method.exported()(x).pooled)


def test_refusals():
    whole = build_backbone("vit_tiny", channels=2, size=(32,), patch=32)
    picture = build_backbone("vit_tiny", channels=1, size=16)
    for wrong, data in ((whole, SPEC), (picture, DataSpec("image", 1, 16, (0.0,), (1.0,))),
                        (build_backbone("vit_tiny", channels=2, size=(32,), pool="cls"), SPEC),
                        (build_backbone("ttm_tiny", channels=2, size=(32,)), SPEC)):
        with pytest.raises(UsageError):
            NextPatch(wrong, data)
