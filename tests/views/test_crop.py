"""Crops: agreement with torchvision, coordinates that survive the round trip, the law of the boxes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from osteon.core.errors import UsageError
from osteon.parts.types import Draws, Step
from osteon.views import crop
from osteon.views.crop import crop_resize, full_boxes, resample_matrix, sample_boxes


def draws(n: int, seed: int = 0, name: str = "") -> Draws:
    return Draws(Step(0, 1, seed), torch.arange(n), n, name=name)


def pixels(box: Tensor, height: int, width: int) -> list[list[int]]:
    return (box * torch.tensor([width, height, width, height])).round().int().tolist()


@pytest.mark.parametrize("cubic", [False, True])
@pytest.mark.parametrize("size", [(20, 24), (8, 8), (40, 40), (11, 7), (1, 1)])
def test_agrees_with_torchvision(size: tuple[int, int], cubic: bool) -> None:
    transforms = pytest.importorskip("torchvision.transforms.v2")
    functional = transforms.functional
    mode = transforms.InterpolationMode.BICUBIC if cubic else transforms.InterpolationMode.BILINEAR
    x = torch.rand(48, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    d = draws(48)
    box, flip = sample_boxes(d, 20, 24), d.rand() < 0.5
    got = crop_resize(x, box, size, flip, cubic=cubic)
    for i, (x0, y0, x1, y1) in enumerate(pixels(box, 20, 24)):
        want = functional.resized_crop(x[i], y0, x0, y1 - y0, x1 - x0, list(size), mode, antialias=True)
        want = want.flip(-1) if flip[i] else want
        assert (got[i] - want).abs().max() * 255 < 0.05


@pytest.mark.parametrize("cubic", [False, True])
def test_large_images_take_another_road_to_the_same_place(monkeypatch: pytest.MonkeyPatch, cubic: bool) -> None:
    x = torch.rand(6, 2, 100, 120, generator=torch.Generator().manual_seed(0))
    d = draws(6)
    box, flip = sample_boxes(d, 100, 120), d.rand() < 0.5
    assert 0 < flip.sum() < 6
    for boxes in (box, box * 0.99):  # the second is not on whole pixels
        direct = crop_resize(x, boxes, (64, 90), flip, cubic=cubic)
        with monkeypatch.context() as m:
            m.setattr(crop, "_LARGE", 10**9)
            assert torch.allclose(direct, crop_resize(x, boxes, (64, 90), flip, cubic=cubic), atol=1e-5)


def test_hand_computed_weights() -> None:
    # Four pixels to two: centres 1 and 3, triangle of half-width 2; 1/4 3/4 3/4 1/4 is cut at the border: / 2.
    w = resample_matrix(torch.tensor([0.0]), torch.tensor([4.0]), 4, 2)[0]
    assert torch.allclose(w, torch.tensor([[3.0, 3, 1, 0], [0, 1, 3, 3]]) / 7)
    # Only the stretch from 1 to 3 counts, and a mirror reverses the rows.
    w = resample_matrix(torch.tensor([1.0]), torch.tensor([3.0]), 4, 2, torch.tensor([True]))[0]
    assert torch.equal(w, torch.tensor([[0.0, 0, 1, 0], [0, 1, 0, 0]]))


def test_whole_image_at_its_own_size_is_the_identity() -> None:
    x = torch.rand(3, 2, 9, 5)
    assert torch.allclose(crop_resize(x, full_boxes(3), (9, 5)), x, atol=1e-7)


def test_coordinates_survive() -> None:
    """A crop of an image of its own coordinates shows the coordinates that the returned box and flip promise."""
    n, side, out = 64, 32, 16
    ramp = (torch.arange(side) + 0.5) / side
    x = torch.stack((ramp.expand(side, side), ramp[:, None].expand(side, side))).expand(n, 2, side, side)
    d = draws(n, 3)
    box, flip = sample_boxes(d, side, side), d.rand() < 0.5
    assert 0 < flip.sum() < n
    y = crop_resize(x, box, (out, out), flip)
    t = (torch.arange(out) + 0.5) / out
    want_x = box[:, :1] + torch.where(flip[:, None], 1 - t, t) * (box[:, 2:3] - box[:, :1])
    want_y = box[:, 1:2] + t * (box[:, 3:] - box[:, 1:2])
    # At the border the filter is cut and pulls inwards. Inside, enlarging is exact; a triangle sampled at the pixels
    # of a shrunk crop is off by under a tenth of a source pixel.
    inner = slice(2, -2)
    enlarged_x, enlarged_y = ((box[:, k + 2] - box[:, k]) * side <= out for k in (0, 1))
    bound_x, bound_y = (torch.where(e, 1e-5, 0.1 / side)[:, None, None] for e in (enlarged_x, enlarged_y))
    assert enlarged_x.any() and not enlarged_x.all()
    assert ((y[:, 0, :, inner] - want_x[:, None, inner]).abs() < bound_x).all()
    assert ((y[:, 1, inner] - want_y[:, inner, None]).abs() < bound_y).all()


@pytest.mark.parametrize("height,width", [(32, 32), (20, 45)])
def test_boxes_follow_torchvision(height: int, width: int) -> None:
    """Two-sample Kolmogorov-Smirnov at 1 % on widths, heights and places."""
    transforms = pytest.importorskip("torchvision.transforms")
    stats = pytest.importorskip("scipy.stats")
    n = 2000
    ours = np.array(pixels(sample_boxes(draws(n, 5), height, width), height, width))
    torch.manual_seed(0)
    image = torch.zeros(1, height, width)
    theirs = np.array([transforms.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n)])
    top, left, h, w = theirs.T
    pairs = [(ours[:, 0], left), (ours[:, 1], top), (ours[:, 2] - ours[:, 0], w), (ours[:, 3] - ours[:, 1], h),
             ((ours[:, 2] - ours[:, 0]) * (ours[:, 3] - ours[:, 1]), h * w), (ours[:, 2], left + w)]
    for a, b in pairs:
        assert stats.ks_2samp(a, b).pvalue > 0.01


def test_boxes_are_whole_pixels_inside_and_share_is_respected() -> None:
    box = sample_boxes(draws(4000), 8, 8, scale=(0.2, 0.5))
    edge = box * 8
    assert torch.allclose(edge, edge.round(), atol=1e-5)
    assert box.min() >= 0 and box.max() <= 1
    w, h = (edge[:, 2] - edge[:, 0]).round(), (edge[:, 3] - edge[:, 1]).round()
    assert w.min() >= 1 and h.min() >= 1
    # A side is rounded by at most half a pixel.
    assert ((w - 0.5) * (h - 0.5) <= 0.5 * 64).all() and ((w + 0.5) * (h + 0.5) >= 0.2 * 64).all()
    assert ((w - 0.5) / (h + 0.5) <= 4 / 3).all()


def test_fallback_is_the_centre() -> None:
    # Aspect 4 or more never fits a square at full area, so the largest centred box of aspect 4: 16 x 4.
    box = sample_boxes(draws(3), 16, 16, scale=(1, 1), ratio=(4, 5))
    assert pixels(box, 16, 16) == [[0, 6, 16, 10]] * 3


def test_impossible_ranges_are_refused() -> None:
    for bad in ({"scale": (0.0, 1.0)}, {"scale": (0.5, 0.2)}, {"scale": (0.5, 1.5)}, {"ratio": (2.0, 1.0)}):
        with pytest.raises(UsageError):
            sample_boxes(draws(2), 8, 8, **bad)
    assert math.isclose(float(sample_boxes(draws(1), 1, 1).sum()), 2.0)
