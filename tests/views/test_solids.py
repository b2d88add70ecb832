"""Views of volumes and clips: crops against interpolation by hand, mirrors, amounts, and what is drawn for whom."""

from __future__ import annotations

import pytest
import torch

from osteon.core.errors import UsageError
from osteon.parts.types import DataSpec, Draws, Step
from osteon.views import make_views, normalise
from osteon.views.solids import SolidPlan, along, blur, cut, sample_edges

VOLUME = DataSpec("volume", 2, 12, (0.5, 0.1), (0.25, 2.0), 1.0, shape=(8, 10, 12))
VIDEO = DataSpec("video", 1, 16, (0.0,), (1.0,), 1.0, shape=(8, 16, 16))
ZERO = DataSpec("volume", 1, 12, (0.0,), (1.0,), 1.0, shape=(8, 10, 12))


def draws(n: int = 64, step: int = 0) -> Draws:
    return Draws(Step(step, 10, 1), torch.arange(n), n)


def noise(spec: DataSpec, n: int = 64) -> torch.Tensor:
    return torch.randn(n, spec.channels, *spec.extent, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("spec", [VOLUME, VIDEO])
def test_no_augmentation_is_the_normalised_sample(spec):
    x = noise(spec)
    (view,) = make_views("none", spec)(x, draws())
    assert torch.equal(view.x, normalise(x, spec))
    assert torch.equal(view.geometry.box, torch.tensor([[0.0, 0, 1, 1]]).expand(64, 4))
    assert torch.equal(view.geometry.depth, torch.tensor([[0.0, 1]]).expand(64, 2))


def test_a_crop_shows_the_stretch_it_says_on_every_side():
    place = torch.stack(torch.meshgrid(*[torch.arange(n).float() for n in ZERO.extent], indexing="ij"))
    for side, length in enumerate(ZERO.extent):
        x = place[side].expand(64, 1, *ZERO.extent).clone()
        view = SolidPlan((8, 10, 12), (0.4, 0.5, 0.6)).view(x, ZERO, draws())
        box, depth = view.geometry.box, view.geometry.depth
        start, stop = ((depth[:, 0], depth[:, 1]), (box[:, 1], box[:, 3]), (box[:, 0], box[:, 2]))[side]
        cell = torch.arange(length) + 0.5
        want = start[:, None] * length + cell * (stop - start)[:, None] - 0.5
        got = view.x[:, 0].movedim(1 + side, 1).flatten(2)
        assert float((got.amax(2) - got.amin(2)).max()) < 1e-4  # along the other sides nothing changes
        torch.testing.assert_close(got[:, 2:-2, 0], want[:, 2:-2], atol=1e-3, rtol=0)


@pytest.mark.parametrize("spec", [VOLUME, VIDEO])
def test_views_are_computed_in_float32_under_autocast_too(spec):
    made, x = make_views("simclr", spec), noise(spec, 8)
    plain = made(x, draws(8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = made(x, draws(8))
    assert all(torch.equal(a.x, b.x) for a, b in zip(plain, inside, strict=True))


def test_a_smaller_crop_equals_trilinear_interpolation_by_hand():
    x = noise(ZERO, 1)
    edges = torch.tensor([[[0.25, 0.75], [0.2, 0.6], [0.0, 0.5]]])  # cells 2-6, 2-6, 0-6
    got = cut(x, edges, (2, 4, 3), torch.zeros(1, 3, dtype=torch.bool))
    # two cells become one on the first and last side: a triangle 2 wide weighs its own cells 3/4, the next ones 1/4
    inner = x[0, 0, 2:6, 2:6, 0:6]
    first = torch.tensor([[0.75, 0.75, 0.25, 0.0], [0.0, 0.25, 0.75, 0.75]])
    last = torch.tensor([[0.75, 0.75, 0.25, 0, 0, 0], [0, 0.25, 0.75, 0.75, 0.25, 0], [0, 0, 0, 0.25, 0.75, 0.75]])
    first, last = (w / w.sum(1, keepdim=True) for w in (first, last))
    torch.testing.assert_close(got[0, 0], torch.einsum("oa,abc,pc->obp", first, inner, last), atol=1e-5, rtol=1e-5)


def test_mirrors_are_exact_and_only_of_the_sides_that_are_asked_for():
    x = noise(VOLUME)
    view = SolidPlan((8, 10, 12), flips=(0.5, 0.5, 0.5)).view(x, VOLUME, draws())
    want = normalise(x, VOLUME)
    seen = set()
    for i, flips in enumerate(view.params["flips"].tolist()):
        seen.add(tuple(flips))
        torch.testing.assert_close(view.x[i], want[i].flip([1 + s for s in range(3) if flips[s]]), atol=1e-6, rtol=0)
    assert len(seen) == 8 and torch.equal(view.geometry.flip, view.params["flips"][:, 2])
    film = noise(VIDEO)
    view = make_views("crop_flip", VIDEO, flip=True, min_scale=1.0)(film, draws())[0]
    assert not view.params["flips"][:, :2].any() and 16 < int(view.params["flips"][:, 2].sum()) < 48
    still = torch.equal(make_views("crop_flip", VIDEO, flip=None, min_scale=1.0)(film, draws())[0].x, film)
    assert still  # nothing is mirrored without being asked


def test_time_keeps_its_direction_in_every_recipe():
    film = (torch.arange(8.0)[:, None, None] * torch.ones(8, 16, 16)).expand(64, 1, 8, 16, 16).clone()
    for recipe in ("crop_flip", "simclr", "byol", "multicrop", "supervised"):
        for view in make_views(recipe, VIDEO, flip=True, **({} if recipe == "crop_flip" else {"strength": 0.0}))(
                film, draws()):
            assert (view.x.mean((1, 3, 4)).diff(dim=1) > 0).all()


def test_spans_are_uniform_and_inside():
    edges = sample_edges(draws(4000), (0.25, 1.0, 0.5))
    share = edges[..., 1] - edges[..., 0]
    assert abs(float(share[:, 0].mean()) - 0.625) < 0.01 and abs(float(share[:, 2].mean()) - 0.75) < 0.01
    torch.testing.assert_close(edges[:, 1], torch.tensor([0.0, 1]).expand(4000, 2))
    assert edges.min() >= 0 and edges.max() <= 1 + 1e-6
    place = edges[:, 0, 0] / (1 - share[:, 0]).clamp(min=1e-6)
    assert abs(float(place.mean()) - 0.5) < 0.02 and abs(float(place.std()) - 12**-0.5) < 0.02
    volume = make_views("crop_flip", VOLUME, min_scale=0.125).plans[0].spans
    assert volume == pytest.approx((0.5, 0.5, 0.5))  # of a volume the cube root, of a frame the square root
    assert make_views("crop_flip", VIDEO, min_scale=0.25).plans[0].spans == pytest.approx((0.5, 0.5, 0.5))


def test_gain_contrast_and_noise_have_the_size_they_say():
    x = noise(VOLUME, 500)
    plain = normalise(x, VOLUME)
    view = SolidPlan((8, 10, 12), gain=0.5).view(x, VOLUME, draws(500))
    shift = view.x - plain
    assert abs(float(view.params["gain"].std()) - 0.5) < 0.04
    torch.testing.assert_close(shift.amax((2, 3, 4)), view.params["gain"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(shift.amin((2, 3, 4)), view.params["gain"], atol=1e-4, rtol=1e-4)
    view = SolidPlan((8, 10, 12), contrast=0.4).view(x, VOLUME, draws(500))
    assert abs(float(view.params["contrast"].log().std()) - 0.4) < 0.03
    torch.testing.assert_close(view.x.std((2, 3, 4)), plain.std((2, 3, 4)) * view.params["contrast"])
    torch.testing.assert_close(view.x.mean((2, 3, 4)), plain.mean((2, 3, 4)), atol=1e-4, rtol=1e-4)
    view = SolidPlan((8, 10, 12), noise=0.8).view(x, VOLUME, draws(500))
    torch.testing.assert_close((view.x - plain).std((1, 2, 3, 4)), view.params["noise"], atol=0.05, rtol=0.05)
    assert abs(float(view.params["noise"].mean()) - 0.4) < 0.04


def test_blur_is_a_gaussian_of_its_side_alone():
    x = torch.zeros(2, 1, 9, 9, 9)
    x[:, :, 4, 4, 4] = 1
    got = blur(x, torch.tensor([1.0, 0.0]), 1)
    bell = torch.exp(-(torch.arange(9) - 4.0) ** 2 / 2)
    want = torch.stack([torch.exp(-(torch.arange(9) - o) ** 2 / 2).div(
        torch.exp(-(torch.arange(9) - o) ** 2 / 2).sum())[4] for o in range(9)])
    torch.testing.assert_close(got[0, 0, 4, :, 4], want)
    torch.testing.assert_close(want[3:6], (bell / bell.sum())[3:6], atol=2e-3, rtol=0)
    assert torch.equal(got[1], x[1]) and float(got[0, 0, 3].abs().sum()) == 0
    flat = blur(torch.ones(2, 1, 4, 5, 6), torch.tensor([2.0, 0.5]), 0)
    torch.testing.assert_close(flat, torch.ones(2, 1, 4, 5, 6))  # the border does not darken
    view = make_views("simclr", VIDEO, min_scale=1.0)
    assert view.plans[0].blur[0] == 0  # time is not blurred


def test_along_is_a_matrix_product_of_one_side():
    x, weights = noise(VOLUME, 3), torch.randn(3, 5, 10)
    torch.testing.assert_close(along(x, weights, 1), torch.einsum("bok,bcdkw->bcdow", weights, x))


@pytest.mark.parametrize("recipe", ["crop_flip", "simclr", "byol", "multicrop", "supervised"])
@pytest.mark.parametrize("spec", [VOLUME, VIDEO])
def test_a_sample_is_drawn_alike_wherever_it_is_computed(recipe, spec):
    views = make_views(recipe, spec, flip=True)
    x, d = noise(spec, 12), draws(12, 3)
    whole, part = views(x, d), views(x[4:9], d.at(torch.arange(4, 9)))
    assert len(whole) == len(part) == len(views)
    for a, b in zip(whole, part, strict=True):
        torch.testing.assert_close(a.x[4:9], b.x, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(a.geometry.depth[4:9], b.geometry.depth)
        assert torch.isfinite(a.x).all() and not torch.equal(a.x, views(x, draws(12, 4))[0].x)
    if len(whole) > 1:
        assert not torch.equal(whole[0].x, whole[1].x)


def test_small_views_are_whole_tokens():
    views = make_views("multicrop", VIDEO, n_local=3, stride=4)(noise(VIDEO), draws())
    assert [tuple(v.x.shape[2:]) for v in views] == [(8, 16, 16)] * 2 + [(4, 8, 8)] * 3
    views = make_views("multicrop", VIDEO, n_local=1, stride=8)(noise(VIDEO), draws())
    assert tuple(views[2].x.shape[2:]) == (8, 8, 8)  # half of 8 is no whole token of 8


def test_bad_options_are_refused():
    for options in ({"min_scale": 0.0}, {"min_scale": 1.5}):
        with pytest.raises(UsageError, match="impossible"):
            make_views("crop_flip", VOLUME, **options)
    with pytest.raises(UsageError, match="strength"):
        make_views("simclr", VOLUME, strength=-1.0)
    with pytest.raises(UsageError, match="jitter"):
        make_views("simclr", VOLUME, jitter=0.5)
    with pytest.raises(UsageError, match="sides of a sample"):
        SolidPlan((8, 10, 12), (0.0, 1.0, 1.0)).view(noise(VOLUME), VOLUME, draws())
