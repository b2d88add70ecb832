"""Views of spectrograms and series: amounts by hand, laws of drawing, refusals."""

from __future__ import annotations

import pytest
import torch

from osteon.core.errors import UsageError
from osteon.parts.types import DataSpec, Draws, Step
from osteon.views import make_views, normalise
from osteon.views.arrays import ArrayPlan, hidden_band, sample_spans

SPEC = DataSpec("sound", 1, 40, (2.0,), (4.0,), 1.0, shape=(16, 40))
WAVE = DataSpec("sound", 2, 60, (0.0, 1.0), (1.0, 2.0), 1.0, shape=(60,))


def draws(n: int = 64, step: int = 0) -> Draws:
    return Draws(Step(step, 10, 1), torch.arange(n), n)


def noise(spec: DataSpec, n: int = 64) -> torch.Tensor:
    return torch.randn(n, spec.channels, *spec.extent, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("spec", [SPEC, WAVE])
def test_no_augmentation_is_the_normalised_sample(spec):
    x = noise(spec)
    (view,) = make_views("none", spec)(x, draws())
    assert torch.equal(view.x, normalise(x, spec))
    mean, std = (torch.tensor(v).view(-1, *[1] * len(spec.extent)) for v in (spec.mean, spec.std))
    torch.testing.assert_close(view.x, (x - mean) / std)


def test_a_span_is_the_stretch_it_says():
    x = torch.arange(60.0).expand(64, 2, 60).clone()
    spec = DataSpec("series", 2, 60, (0.0, 0.0), (1.0, 1.0), 1.0, shape=(60,))
    view = ArrayPlan((60,), (0.5,)).view(x, spec, draws())
    start, stop = view.geometry.box[:, 0] * 60, view.geometry.box[:, 2] * 60
    want = start[:, None] + (torch.arange(60) + 0.5) * (stop - start)[:, None] / 60 - 0.5
    middle = slice(3, 57)  # at the ends the last cell stands for what lies outside
    torch.testing.assert_close(view.x[:, 0, middle], want[:, middle], atol=0.02, rtol=0)
    share = view.geometry.box[:, 2] - view.geometry.box[:, 0]
    assert 0.5 <= share.min() < 0.55 and 0.95 < share.max() <= 1
    assert torch.equal(view.geometry.box[:, 1], torch.zeros(64))
    assert torch.equal(view.geometry.box[:, 3], torch.ones(64))


def test_spans_are_uniform_and_inside():
    box = sample_spans(draws(4000), (0.25, 1.0), 4000, torch.device("cpu"))
    assert torch.equal(box[:, 0], torch.zeros(4000)) and torch.equal(box[:, 2], torch.ones(4000))  # last side: whole
    high = box[:, 3] - box[:, 1]
    assert abs(float(high.mean()) - 0.625) < 0.01 and float(box[:, 3].max()) <= 1 + 1e-6
    assert abs(float((box[:, 1] / (1 - high).clamp(min=1e-6)).mean()) - 0.5) < 0.02


def test_gain_scale_and_noise_have_the_size_they_say():
    x = torch.zeros(2000, 1, 16, 40) + 2.0  # the mean: zero after normalisation
    view = ArrayPlan((16, 40), (1.0, 1.0), gain=0.5).view(x, SPEC, draws(2000))
    assert abs(float(view.x.std()) - 0.5) < 0.03 and torch.equal(view.x.amin((1, 2, 3)), view.x.amax((1, 2, 3)))
    view = ArrayPlan((16, 40), (1.0, 1.0), noise=0.8).view(x, SPEC, draws(2000))
    torch.testing.assert_close(view.x.std((1, 2, 3)), view.params["noise"], atol=0.1, rtol=0)
    assert abs(float(view.params["noise"].mean()) - 0.4) < 0.02
    view = ArrayPlan((60,), (1.0,), scale=0.3).view(noise(WAVE), WAVE, draws())
    ratio = view.x / normalise(noise(WAVE), WAVE)
    torch.testing.assert_close(ratio.amax(2), ratio.amin(2), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ratio.amax(2), view.params["scale"], rtol=1e-4, atol=1e-4)


def test_hidden_bands_are_one_stretch_of_at_most_their_share():
    hidden = hidden_band(draws(500), 50, 0.4)
    count = hidden.sum(1)
    assert count.max() <= 20 and count.min() == 0 and abs(float(count.float().mean()) - 10) < 1
    edges = hidden.int().diff(dim=1).abs().sum(1) + hidden[:, 0].int() + hidden[:, -1].int()
    assert (edges <= 2).all()
    view = ArrayPlan((16, 40), (1.0, 1.0), hide=(0.5, 0.0)).view(noise(SPEC), SPEC, draws())
    rows = (view.x == 0).all(3)[:, 0]
    assert rows.any() and ((view.x == 0).any(3)[:, 0] == rows).all()  # whole bands, nothing else


@pytest.mark.parametrize("recipe", ["crop_flip", "simclr", "byol", "multicrop", "supervised"])
@pytest.mark.parametrize("spec", [SPEC, WAVE])
def test_a_sample_is_drawn_alike_wherever_it_is_computed(recipe, spec):
    views = make_views(recipe, spec)
    x, d = noise(spec, 12), draws(12, 3)
    whole = views(x, d)
    part = views(x[4:9], d.at(torch.arange(4, 9)))
    assert len(whole) == len(part) == len(views)
    for a, b in zip(whole, part, strict=True):
        torch.testing.assert_close(a.x[4:9], b.x, atol=1e-6, rtol=1e-5)
        assert torch.isfinite(a.x).all() and not torch.equal(a.x, views(x, draws(12, 4))[0].x)
    if len(whole) > 1:
        assert not torch.equal(whole[0].x, whole[1].x)


def test_short_views_are_whole_tokens():
    views = make_views("multicrop", SPEC, n_local=3, stride=8)(noise(SPEC), draws())
    assert [tuple(v.x.shape[2:]) for v in views] == [(16, 40)] * 2 + [(16, 16)] * 3  # half of 40 is 2.5 tokens


def test_what_images_alone_have_is_dropped_when_not_asked_and_refused_when_asked():
    assert len(make_views("crop_flip", SPEC, flip=None, min_scale=None, usual={"min_scale": 0.2})) == 1
    assert make_views("crop_flip", SPEC, flip=False, min_scale=None).plans[0].spans == (1.0, 0.8)
    with pytest.raises(UsageError, match="flip"):
        make_views("crop_flip", SPEC, flip=True)
    with pytest.raises(UsageError, match="for sound"):
        make_views("colour", SPEC)
    with pytest.raises(UsageError, match="impossible"):
        make_views("crop_flip", SPEC, min_scale=0.0)(noise(SPEC), draws())
