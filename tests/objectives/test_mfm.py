"""MFM: discs, filters and distances by hand and by a naive transform, and which frequencies count."""

from __future__ import annotations

import cmath
import math
from dataclasses import replace

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
    resnet,
    spec,
    vit,
)

from osteon.core.errors import UsageError
from osteon.objectives.mfm import MFM, disc, keep_band, spectral_distance
from osteon.parts.norm import BatchNorm
from osteon.parts.targets import patchify
from osteon.parts.types import Draws
from osteon.views import denormalise
from osteon.views.pipeline import standardise


def small(**options) -> MFM:
    torch.manual_seed(1)
    return MFM(vit(), spec(), **options)


def naive(x: torch.Tensor) -> torch.Tensor:
    """Centred, orthonormal spectrum of one (H, W) image by its definition."""
    h, w = x.shape

    def waves(n: int) -> torch.Tensor:
        return torch.tensor([[cmath.exp(-2j * math.pi * (u - n // 2) * i / n) for i in range(n)] for u in range(n)],
                            dtype=torch.complex128)

    return waves(h) @ x.detach().to(torch.complex128) @ waves(w).T / math.sqrt(h * w)


def test_disc_by_hand():
    assert disc((4, 4), 1.0).nonzero().tolist() == [[2, 2]]  # the circle belongs to the outside
    assert disc((4, 4), 1.01).int().tolist() == [[0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 1, 1], [0, 0, 1, 0]]
    assert disc((5, 3), 1.5).int().tolist() == [[0, 0, 0], [1, 1, 1], [1, 1, 1], [1, 1, 1], [0, 0, 0]]
    assert disc((224, 224), 16.0).sum().item() == 793 and disc((8, 8), 1.5).sum().item() == 9


def test_a_low_pass_keeps_the_mean_and_a_high_pass_the_rest():
    x = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])
    low = disc((2, 2), 0.5)[None]
    torch.testing.assert_close(keep_band(x, low), torch.full_like(x, 4.0))
    torch.testing.assert_close(keep_band(x, ~low), x - 4.0)


def test_a_wave_passes_or_not_as_a_whole():
    i = torch.arange(8.0)
    slow, fast = torch.cos(2 * math.pi * i / 8), torch.cos(2 * math.pi * 3 * i / 8)
    x = (slow[None, :] + 10 * fast[:, None])[None, None]
    low = disc((8, 8), 2.0)[None]
    torch.testing.assert_close(keep_band(x, low)[0, 0], slow.expand(8, 8), atol=1e-5, rtol=0)
    torch.testing.assert_close(keep_band(x, ~low)[0, 0], 10 * fast[:, None].expand(8, 8), atol=1e-5, rtol=0)


def test_bands_add_up_and_a_filtered_image_has_nothing_in_the_other_band():
    x, band = normal(3, 2, 8, 8), torch.stack([disc((8, 8), r) for r in (1.5, 2.5, 3.0)])
    low = keep_band(x, band)
    torch.testing.assert_close(low + keep_band(x, ~band), x, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(keep_band(low, band), low, atol=1e-5, rtol=1e-5)
    assert keep_band(low, ~band).abs().max() < 1e-5


def test_distance_is_that_of_the_naive_spectra():
    p, t = normal(1, 2, 4, 6), normal(1, 2, 4, 6, seed=1)
    expected = torch.stack([(naive(p[0, c]) - naive(t[0, c])).abs() for c in range(2)]).float()
    torch.testing.assert_close(spectral_distance(p, t)[0], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(spectral_distance(p, t, 2.0)[0], expected**2, atol=1e-5, rtol=1e-5)
    # Orthonormal: a constant difference of 2 on 4 x 6 pixels is 2 * sqrt(24) at the zero frequency.
    constant = spectral_distance(p + 2, p)[0, 0]
    assert constant[2, 3].item() == pytest.approx(2 * 24**0.5, rel=1e-5) and constant.sum() < 9.8


def test_equal_images_have_no_distance_and_a_finite_gradient():
    x = normal(1, 1, 4, 4).requires_grad_()
    spectral_distance(x, x.detach()).sum().backward()
    assert spectral_distance(x, x).max() <= 1.01e-6 and torch.isfinite(x.grad).all()


@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_loss_by_a_loop_over_frequencies(gamma):
    objective, batch = small(gamma=gamma), images(4)
    shake(objective)
    draws = Draws.of(batch, STEP)
    x = objective.views(batch["image"], draws)[0].x
    band = objective.band(draws.fork("band"))
    assert 0 < band[:, 4, 4].sum() < 4  # both kinds occur
    prediction, _ = objective.predict(objective.corrupt(x, band))
    encoded = objective.encode(batch, Draws.of(batch, STEP))
    total, count = 0.0, 0
    for b in range(4):
        distance = (naive(prediction[b, 0]) - naive(x[b, 0])).abs() ** gamma
        total += float(distance[~band[b]].sum())
        count += int((~band[b]).sum())
        assert encoded["error"][b].item() == pytest.approx(float(distance[~band[b]].sum()), rel=1e-4)
    assert encoded["hidden"].tolist() == [float((~m).sum()) for m in band]
    assert objective.score(encoded, STEP).total.item() == pytest.approx(total / count, rel=1e-4)


def test_channels_are_averaged():
    torch.manual_seed(0)
    objective, batch = MFM(vit(3, 8), spec(3, 8)), images(4, 3)
    draws = Draws.of(batch, STEP)
    x = objective.views(batch["image"], draws)[0].x
    band = objective.band(draws.fork("band"))
    prediction, _ = objective.predict(objective.corrupt(x, band))
    expected = spectral_distance(prediction, x).sum(1).masked_fill(band, 0).sum((1, 2)) / 3
    torch.testing.assert_close(objective.encode(batch, Draws.of(batch, STEP))["error"], expected)


def test_samples_weigh_by_the_frequencies_they_lost():
    encoded = {"error": torch.tensor([6.0, 10.0]), "hidden": torch.tensor([2.0, 8.0])}
    assert small().score(encoded, STEP).total.item() == pytest.approx(1.6)  # 16 / 10, not the mean of 3 and 1.25


def test_kept_frequencies_do_not_count():
    objective, batch = small(), images()
    draws = Draws.of(batch, STEP)
    x = objective.views(batch["image"], draws)[0].x
    band = objective.band(draws.fork("band"))
    before = objective.encode(batch, Draws.of(batch, STEP))["error"]
    predict = objective.predict
    for other, same in ((keep_band(normal(8, 1, 8, 8), band), True), (keep_band(normal(8, 1, 8, 8), ~band), False)):
        objective.predict = lambda z, other=other: (predict(z)[0] + 3 * other, z.flatten(1))
        after = objective.encode(batch, Draws.of(batch, STEP))["error"]
        assert torch.isclose(before, after, rtol=1e-3, atol=1e-3).all() == same
    assert x.shape == (8, 1, 8, 8)


def test_backbone_sees_the_filtered_image_only():
    objective, batch = small(), images()
    inputs = []
    objective.backbone.register_forward_hook(lambda _m, args, _out: inputs.append(args[0]))
    objective.encode(batch, Draws.of(batch, STEP))
    draws = Draws.of(batch, STEP)
    x = objective.views(batch["image"], draws)[0].x
    band = objective.band(draws.fork("band"))
    unit = denormalise(inputs[0], objective.data)
    assert len(inputs) == 1 and unit.min() >= -1e-6 and unit.max() <= 1 + 1e-6  # clamped
    expected = standardise(keep_band(denormalise(x, objective.data), band).clamp(0, 1), objective.data)
    torch.testing.assert_close(inputs[0], expected)


def test_clamp_follows_the_range_of_the_data_and_without_it_the_filter_is_exact():
    assert small().clamp and not MFM(vit(), replace(spec(), scale=1.0)).clamp and not small(clamp=False).clamp
    objective = small(clamp=False)
    x, band = normal(2, 1, 8, 8), torch.stack([objective.low, ~objective.low])
    unit = denormalise(objective.corrupt(x, band), objective.data)
    assert keep_band(unit, ~band).abs().max() < 1e-5
    assert keep_band(denormalise(small().corrupt(x, band), objective.data), ~band).abs().max() > 1e-2


def test_share_of_low_passes():
    assert small().low_pass == 0.5 and MFM(resnet(), spec(3, 32)).low_pass == 0.3
    draws = Draws(STEP, torch.arange(2000), 2000)
    low = (small(low_pass=0.3).band(draws) == small().low).flatten(1).all(1)
    assert abs(float(low.float().mean()) - 0.3) < 0.04  # standard deviation 0.01
    assert (small(low_pass=1.0).band(draws) == small().low).all()
    assert (small(low_pass=0.0).band(draws) == ~small().low).all()


def test_radius_follows_the_image():
    assert small().radius == 1.5 and MFM(resnet(), spec(3, 32)).radius == pytest.approx(32 / 14)
    assert small(radius=2.0).low.sum() == 9 and small(radius=2.01).low.sum() == 13
    for radius in (-2.0, 100.0):
        with pytest.raises(UsageError, match="nothing to predict"):
            small(radius=radius)


def test_prediction_is_one_linear_map_of_each_place():
    for objective, x in ((small(), normal(2, 1, 8, 8)), (MFM(resnet(), spec(3, 32)).eval(), normal(2, 3, 32, 32))):
        prediction, pooled = objective.predict(x)
        features = objective.backbone(x)
        torch.testing.assert_close(patchify(prediction, objective.patch), objective.head(features.tokens))
        torch.testing.assert_close(pooled, features.pooled)


def test_running_statistics_are_those_of_unfiltered_images():
    objective, batch = MFM(resnet(), spec(3, 32)).train(), images(8, 3, 32)
    other = resnet().train()
    objective(batch, STEP).total.backward()
    other(objective.views(batch["image"], Draws.of(batch, STEP))[0].x)
    found, expected = dict(objective.backbone.named_buffers()), dict(other.named_buffers())
    for name, value in expected.items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(found[name], value, msg=name)
    assert {m.momentum for m in objective.backbone.modules() if isinstance(m, BatchNorm)} == {0.1}
    objective.eval()
    before = objective.backbone.bn1.running_mean.clone()
    objective.encode(batch, Draws.of(batch, STEP))
    assert torch.equal(objective.backbone.bn1.running_mean, before)


def test_pictures_complete_what_was_kept():
    objective, batch = small(), images()
    shown, corrupted, output = objective.reconstruct(batch, STEP)
    draws = Draws.of(batch, STEP)
    x = objective.views(batch["image"], draws)[0].x
    band = objective.band(draws.fork("band"))
    assert torch.equal(shown, x)
    torch.testing.assert_close(corrupted, objective.corrupt(x, band))
    torch.testing.assert_close(keep_band(output, band), keep_band(x, band), atol=1e-5, rtol=1e-4)
    prediction, _ = objective.predict(corrupted)
    torch.testing.assert_close(keep_band(output, ~band), keep_band(prediction, ~band), atol=1e-5, rtol=1e-4)


def test_views_are_crops_without_colour():
    (plan,) = small().views.plans
    assert plan.scale == (0.2, 1.0) and plan.flip == 0.5 and plan.jitter is None
    (plan,) = small(crop_min=0.6, flip=False).views.plans
    assert plan.scale == (0.6, 1.0) and plan.flip == 0


def test_gradient_is_the_slope_and_reaches_everything():
    t, band = normal(2, 1, 8, 8, seed=1), torch.stack([disc((8, 8), 2.0), ~disc((8, 8), 2.0)])
    assert_slope(lambda p: spectral_distance(p, t).mean(1).masked_fill(band, 0).sum() / (~band).sum(),
                 normal(2, 1, 8, 8))
    assert_parts_equal_whole(small(), images())
    assert_gradients_reach(small(), images())
    assert_gradients_reach(MFM(resnet(), spec(3, 32)), images(8, 3, 32))


def test_maps_that_do_not_tile_the_image_are_refused():
    with pytest.raises(UsageError, match="tile"):
        MFM(resnet(1, 18), spec(1, 18))
