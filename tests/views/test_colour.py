"""Colour operations against torchvision's on floats, per sample, and by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from osteon.parts.types import Draws, Step
from osteon.views import colour


def images(n: int = 32, channels: int = 3) -> Tensor:
    x = torch.rand(n, channels, 12, 10, generator=torch.Generator().manual_seed(1))
    x[0], x[1], x[2] = 0.5, 0.0, 1.0
    x[3] = (x[3] * 3).round() / 3  # many ties between channels: the seams of the hexcone
    return x


def each(function, x: Tensor, *values: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    return torch.stack([function(x[i], *(float(v[i]) for v in values)) for i in range(len(x))])


def close(a: Tensor, b: Tensor) -> bool:
    return float((a - b).abs().max()) * 255 < 0.05


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_agrees_with_torchvision(name: str) -> None:
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    x = images()
    factor = torch.linspace(-0.5, 0.5, len(x)) if name == "hue" else torch.linspace(0, 1.8, len(x))
    assert close(getattr(colour, name)(x, factor), each(getattr(functional, f"adjust_{name}"), x, factor))


def test_one_channel_agrees_with_torchvision() -> None:
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    x, factor = images(channels=1), torch.linspace(0, 1.8, 32)
    assert close(colour.contrast(x, factor), each(functional.adjust_contrast, x, factor))


def test_grey_solarise_blur_agree_with_torchvision() -> None:
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    x = images()
    assert close(colour.to_grey(x), functional.rgb_to_grayscale(x, num_output_channels=3))
    assert close(colour.solarise(x), functional.solarize(x, 0.5))
    sigma = torch.linspace(0.1, 1.0, 32)
    assert close(colour.blur(x, sigma, 1.0), torch.stack([
        functional.gaussian_blur(image, [9, 9], [float(s)] * 2) for image, s in zip(x, sigma, strict=True)]))


def test_values_by_hand() -> None:
    red = torch.zeros(1, 3, 2, 2)
    red[:, 0] = 1
    third = torch.tensor([1 / 3])
    green = colour.hue(red, third)
    assert torch.allclose(green[0, :, 0, 0], torch.tensor([0.0, 1, 0]), atol=1e-6)
    assert torch.allclose(colour.to_grey(red)[0, :, 0, 0], torch.full((3,), 0.2989))
    assert torch.allclose(colour.saturation(red, torch.tensor([0.0]))[0, :, 0, 0], torch.full((3,), 0.2989))
    two = torch.tensor([[[[0.2, 0.6]]]])
    assert torch.allclose(colour.contrast(two, torch.tensor([0.5])), torch.tensor([[[[0.3, 0.5]]]]))
    assert torch.allclose(colour.brightness(two, torch.tensor([2.0])), torch.tensor([[[[0.4, 1.0]]]]))
    assert torch.allclose(colour.solarise(two, torch.tensor([0.6])), torch.tensor([[[[0.2, 0.4]]]]))


def test_neutral_parameters_change_nothing() -> None:
    x = images()
    for name in ("brightness", "contrast", "saturation"):
        assert torch.allclose(getattr(colour, name)(x, torch.ones(32)), x, atol=1e-6)
    for turn in (-1.0, 0.0, 1.0):
        assert torch.allclose(colour.hue(x, torch.full((32,), turn)), x, atol=2e-6)


def test_blur_keeps_the_mean_and_bounds_its_radius() -> None:
    x = torch.rand(2, 1, 3, 5)
    flat = torch.full((2, 1, 3, 5), 0.3)
    sigma = torch.tensor([0.5, 5.0])
    assert torch.allclose(colour.blur(flat, sigma), flat, atol=1e-6)
    assert colour.blur(x, sigma, 5.0).shape == x.shape  # the radius of 20 is cut to what can be mirrored
    assert torch.allclose(colour.blur(x, torch.full((2,), 0.01), 5.0), x, atol=1e-6)
    assert colour.blur(x, sigma)[1].std() < 0.3 * x[1].std()


def test_jitter_runs_every_order() -> None:
    """All 24 orders, with strong factors so that the clamps between the steps matter."""
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    orders = torch.tensor(list(itertools.permutations(range(4))))
    x = images(24)
    factor = torch.rand(24, 4, generator=torch.Generator().manual_seed(2)) * 1.2 + 0.5
    factor[:, 3] = (factor[:, 3] - 1.1) * 0.8
    on = torch.arange(24) % 5 != 0
    got = colour.jitter(x, colour.Jitter(factor, orders, on))
    steps = [functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation,
             functional.adjust_hue]
    for i in range(24):
        want = x[i]
        for op in orders[i].tolist() if on[i] else []:
            want = steps[op](want, float(factor[i, op]))
        assert close(got[i], want)


def test_jitter_draws_within_bounds_and_all_orders_alike() -> None:
    n = 4800
    p = colour.Jitter.draw(Draws(Step(0, 1), torch.arange(n), n), (0.4, 1.5, 0.2, 0.1), 0.8)
    low, high = torch.tensor([0.6, 0.0, 0.8, -0.1]), torch.tensor([1.4, 2.5, 1.2, 0.1])
    assert (p.factor >= low).all() and (p.factor <= high).all()
    assert torch.allclose(p.factor.mean(0), (low + high) / 2, atol=0.05)
    assert torch.allclose(p.factor.amax(0) - p.factor.amin(0), high - low, rtol=0.01)
    assert abs(float(p.on.float().mean()) - 0.8) < 0.03
    kinds, counts = p.order.unique(dim=0, return_counts=True)
    assert len(kinds) == 24 and counts.min() > 130  # 200 expected, standard deviation 14


def test_other_channel_counts_keep_brightness_and_contrast() -> None:
    for channels in (1, 2, 5):
        x = images(4, channels)
        factor = torch.tensor([[1.3, 0.6, 0.5, 0.2]]).repeat(4, 1)
        order = torch.tensor([[3, 0, 2, 1]]).repeat(4, 1)
        want = colour.contrast(colour.brightness(x, factor[:, 0]), factor[:, 1])
        assert torch.allclose(colour.jitter(x, colour.Jitter(factor, order, torch.ones(4, dtype=torch.bool))), want,
                              atol=1e-6)
