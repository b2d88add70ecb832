"""Two clips: gaps by their formula, clips by hand, and what is the same in every frame."""

from __future__ import annotations

import pytest
import torch

from osteon.core.errors import UsageError
from osteon.parts.types import DataSpec, Draws, Step
from osteon.views.clips import ClipPair, ClipPlan, clip_starts, start_gaps, take_clip
from osteon.views.pipeline import Plan

FULL = Plan((12, 12), (0.3, 1.0), (0.5, 2.0), flip=0.5, jitter=(0.8, 0.8, 0.8, 0.2), jitter_chance=0.8, grey=0.5,
            blur=0.5, solarise=0.5)


def draws(n: int, step: int = 0) -> Draws:
    return Draws(Step(step, 10, 3), torch.arange(n), n)


def spec(channels: int = 3, frames: int = 6) -> DataSpec:
    return DataSpec("video", channels, 12, (0.4,) * channels, (0.2,) * channels, shape=(frames, 12, 12))


def test_gaps_fall_linearly_by_the_formula():
    # Of 3 possible gaps: 5, 3 and 1 ninths. Equidistant quantiles give these shares exactly.
    u = (torch.arange(900) + 0.5) / 900
    assert torch.bincount(start_gaps(u, 2), minlength=3).tolist() == [500, 300, 100]
    counts = torch.bincount(start_gaps((torch.arange(8100) + 0.5) / 8100, 8), minlength=9)
    assert counts.tolist() == [100 * (2 * (8 - d) + 1) for d in range(9)]
    assert start_gaps(torch.tensor([0.0, 0.999999]), 0).tolist() == [0, 0]


def test_starts_lie_in_the_video_in_either_order_and_any_place():
    starts = clip_starts(16, 8, draws(4000))
    assert starts.min() == 0 and starts.max() == 8
    gap = (starts[:, 1] - starts[:, 0]).float()
    assert abs(float((gap > 0).float().mean() - (gap < 0).float().mean())) < 0.05
    shares = torch.bincount(gap.abs().long(), minlength=9) / 4000
    torch.testing.assert_close(shares, torch.tensor([(2 * (8 - d) + 1) / 81 for d in range(9)]), atol=0.025, rtol=0)
    far = starts[(gap.abs() == 2)].min(1).values  # seven places for a gap of 2, all alike
    assert set(far.tolist()) == set(range(7))
    assert (clip_starts(8, 8, draws(5)) == 0).all() and (clip_starts(4, 8, draws(5)) == 0).all()


def test_clips_are_cut_by_hand_and_short_videos_begin_again():
    x = torch.arange(5.0).view(1, 1, 5, 1, 1).expand(2, 1, 5, 2, 2)
    assert take_clip(x, torch.tensor([0, 2]), 3)[:, 0, :, 0, 0].tolist() == [[0, 1, 2], [2, 3, 4]]
    assert take_clip(x, torch.tensor([0, 0]), 7)[0, 0, :, 0, 0].tolist() == [0, 1, 2, 3, 4, 0, 1]


def test_a_still_clip_stays_still_and_two_clips_differ():
    torch.manual_seed(0)
    still = torch.rand(16, 3, 1, 12, 12).expand(-1, -1, 4, -1, -1)
    first = ClipPlan(FULL).view(still, spec(), draws(16).fork("view0"))
    assert first.x.shape == (16, 3, 4, 12, 12)
    torch.testing.assert_close(first.x, first.x[:, :, :1].expand_as(first.x), atol=1e-5, rtol=1e-5)
    second = ClipPlan(FULL).view(still, spec(), draws(16).fork("view1"))
    assert not torch.equal(first.geometry.box, second.geometry.box) and not torch.equal(first.x, second.x)
    for name in ("jitter", "grey", "blur", "solarise"):
        assert 0 < (first.params[name] > 0).float().mean() < 1


def test_contrast_is_about_the_clips_mean_not_the_frames():
    # Frames 0.2 and 0.6 under contrast alone: mean 0.4, so a factor f gives 0.4 -+ 0.2 f. A frame's own mean would
    # leave both as they are.
    x = torch.tensor([0.2, 0.6]).view(1, 1, 2, 1, 1).expand(64, 1, 2, 12, 12)
    plan = Plan((12, 12), (1.0, 1.0), (1.0, 1.0), jitter=(0.0, 0.5, 0.0, 0.0), jitter_chance=1.0)
    view = ClipPlan(plan).view(x, spec(1, 2), draws(64))
    got = (view.x * 0.2 + 0.4)[:, 0, :, 5, 5]
    factor = view.params["jitter_factor"][:, 1]
    torch.testing.assert_close(got, torch.stack([0.4 - 0.2 * factor, 0.4 + 0.2 * factor], 1), atol=1e-5, rtol=1e-4)


def test_a_blur_stays_in_its_frame():
    x = torch.zeros(1, 1, 3, 12, 12)
    x[:, :, 1] = 1.0
    plan = Plan((12, 12), (1.0, 1.0), (1.0, 1.0), blur=1.0, sigma=(1.0, 1.0))
    got = (ClipPlan(plan).view(x, spec(1, 3), draws(1)).x * 0.2 + 0.4)[0, 0]
    torch.testing.assert_close(got, x[0, 0], atol=1e-5, rtol=0)
    x[:, :, 1, :, 6:] = 0.0
    got = (ClipPlan(plan).view(x, spec(1, 3), draws(1)).x * 0.2 + 0.4)[0, 0]
    assert 0.3 < got[1, 6, 5] < 0.95 and (got[0].abs() < 1e-5).all()


def test_pairs_say_where_they_start_and_need_draws_for_their_rows():
    pair = ClipPair("cvrl", spec(1, 6), [ClipPlan(Plan((12, 12)))] * 2, [], {}, 3)
    x = (torch.arange(6.0).view(1, 1, 6, 1, 1) * 10).expand(8, 1, 6, 12, 12)
    views = pair(x.to(torch.uint8), draws(8))
    for view in views:
        frame = ((view.x * 0.2 + 0.4) * 255 / 10)[:, 0, :, 0, 0].round().long()
        assert torch.equal(frame, view.params["start"][:, None] + torch.arange(3))
    assert not torch.equal(views[0].params["start"], views[1].params["start"])
    first, second = ClipPair("cvrl", spec(1, 6), [ClipPlan(Plan((12, 12), (0.3, 0.6)))] * 2, [], {}, 3)(
        x.to(torch.uint8), draws(8))
    assert not torch.equal(first.geometry.box, second.geometry.box)
    with pytest.raises(UsageError, match="draws for 8 rows"):
        pair(x[:4].to(torch.uint8), draws(8))
