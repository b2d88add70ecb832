"""Views of text: spans within what is written, tokens hidden, nothing moved."""

from __future__ import annotations

import pytest
import torch

from osteon.core.errors import UsageError
from osteon.parts.types import DataSpec, Draws, Step
from osteon.views import make_views
from osteon.views.text import TextPlan

SPEC = DataSpec("text", 1, 16, (0.0,), (1.0,), 1.0, shape=(16,))


def draws(n: int, index: int = 0) -> Draws:
    return Draws(Step(index, 10, 1), torch.arange(n), n)


def texts(*lengths: int) -> torch.Tensor:
    """Texts of tokens 3, 4, 5... then padding, so that a token tells its place."""
    place = torch.arange(16)
    return torch.stack([torch.where(place < n, place + 3, 0) for n in lengths])[:, None].to(torch.int32)


def test_none_and_crop_flip_leave_the_window_as_it_is():
    x = texts(16, 5, 1)
    for recipe in ("none", "crop_flip"):
        (view,) = make_views(recipe, SPEC)(x, draws(3))
        assert view.x.dtype == torch.float32 and torch.equal(view.x, x.float())
        assert view.geometry.box[0].tolist() == [0.0, 0.0, 1.0, 1.0]


def test_spans_are_contiguous_and_lie_within_the_text():
    x, starts = texts(16, 12, 5).repeat(64, 1, 1), []
    first, second = make_views("simclr", SPEC, strength=0.0)(x, draws(192))
    assert first.x.shape == (192, 1, 8) and not torch.equal(first.x, second.x)
    for row, whole in zip(first.x[:, 0], x[:, 0], strict=True):
        shown = row[row > 0]
        assert torch.equal(shown, torch.arange(len(shown)) + shown[0])  # neighbours stay neighbours
        assert len(shown) == min(8, int((whole > 0).sum())) and (row[len(shown):] == 0).all()
        starts.append(int(shown[0]) - 3)
    assert set(starts[0::3]) == set(range(9)) and set(starts[1::3]) == set(range(5)) and set(starts[2::3]) == {0}
    assert first.params["start"].tolist() == starts
    box = first.geometry.box[0]
    assert box[0] == starts[0] / 16 and box[2] == (starts[0] + 8) / 16 and box[1] == 0 and box[3] == 1


def test_a_share_below_one_is_followed_by_padding():
    (view,) = make_views("crop_flip", SPEC, min_scale=0.5)(texts(*[16] * 400), draws(400))
    lengths = (view.x > 0).sum(-1)[:, 0]
    assert torch.equal(lengths, view.params["length"])
    assert view.x.shape == (400, 1, 16) and set(lengths.tolist()) == set(range(9, 17))
    assert all((row[n:] == 0).all() and row[0] > 0 for row, n in zip(view.x[:, 0], lengths, strict=True))


def test_a_tenth_is_hidden_and_strength_scales_it():
    x = texts(*[12] * 2000)
    (view,) = make_views("supervised", SPEC)(x, draws(2000))
    hidden = view.x == 1
    assert torch.equal(hidden[:, 0], view.params["hide"]) and not hidden[..., 12:].any()
    assert abs(hidden[..., :12].float().mean() - 0.1) < 0.01
    assert torch.equal(view.x[~hidden], x.float()[~hidden])
    twice = make_views("byol", SPEC, strength=2.0, min_scale=1.0)(x, draws(2000))
    assert all(abs((v.x[..., :12] == 1).float().mean() - 0.2) < 0.01 for v in twice)
    assert not torch.equal(twice[0].x, twice[1].x)


def test_multicrop_has_two_long_and_some_short_spans():
    views = make_views("multicrop", SPEC, n_local=3)
    assert [plan.length for plan in views.plans] == [8, 8, 4, 4, 4]
    assert [v.x.shape[-1] for v in views(texts(16, 3), draws(2))] == [8, 8, 4, 4, 4]


def test_a_view_depends_on_its_row_alone_and_on_the_step():
    x = texts(16, 12, 9, 14)
    views = make_views("simclr", SPEC)
    whole = views(x, draws(4))
    part = views(x[2:], Draws(Step(0, 10, 1), torch.tensor([2, 3]), 4))
    assert all(torch.equal(a.x[2:], b.x) for a, b in zip(whole, part, strict=True))
    assert not torch.equal(views(x, draws(4, 1))[0].x, whole[0].x)


def test_an_empty_text_stays_empty():
    assert not make_views("simclr", SPEC)(texts(0), draws(1))[0].x.any()


@pytest.mark.parametrize("options", [{"min_scale": 0.0}, {"min_scale": 1.5}, {"strength": 10.0}, {"flip": True}])
def test_impossible_options(options):
    with pytest.raises(UsageError):
        make_views("simclr", SPEC, **options)


def test_a_plan_is_plain():
    assert TextPlan(4).keep == 1.0 and TextPlan(4).hide == 0.0
