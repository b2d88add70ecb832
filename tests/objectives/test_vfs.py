"""VFS: which frames meet, the distance by hand, and what a view is."""

from __future__ import annotations

import pytest
import torch
from tests.objectives.clips import clips, spec
from tests.objectives.pairs import STEP, assert_gradients_reach, normal

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.objectives.vfs import VFS, pair_distance
from osteon.parts.types import Draws
from osteon.views.clips import segment_frames

INNER = {"encoder": "resnet_tiny", "encoder_options": {"depths": (1, 1), "widths": (8, 16), "stride": 4}}


def small(data=None, **options) -> VFS:
    torch.manual_seed(0)
    data = data or spec()
    network = build_backbone("per_frame", channels=data.channels, size=data.extent, **INNER)
    return VFS(network, data, head_width=16, **options)


def test_frames_come_from_equal_segments():
    draws = Draws(STEP, torch.arange(2000), 2000)
    frames = segment_frames(16, 2, draws)
    assert set(frames[:, 0].tolist()) == set(range(8)) and set(frames[:, 1].tolist()) == set(range(8, 16))
    counts = torch.bincount(frames[:, 0], minlength=8)
    assert counts.min() > 180  # alike, 250 each
    uneven = segment_frames(7, 3, draws)  # 0 1 | 2 3 | 4 5 6
    assert [set(c.tolist()) for c in uneven.T] == [{0, 1}, {2, 3}, {4, 5, 6}]
    with pytest.raises(UsageError, match="no 5 segments"):
        segment_frames(4, 5, draws)


def test_distance_by_hand():
    # Two frames: p1 against z2 at cosine 1, p2 against z1 at cosine 0: (0 + 2) / 2.
    p = torch.tensor([[[2.0, 0.0], [0.0, 3.0]]])
    z = torch.tensor([[[5.0, 0.0], [1.0, 0.0]]])
    assert pair_distance(p, z).tolist() == [1.0]
    assert pair_distance(p[:, :1].expand(-1, 2, -1), z).tolist() == [0.0]
    assert pair_distance(-z, z).tolist() == [4.0]


def test_four_frames_meet_across_the_halves_alone():
    p, z = normal(3, 4, 5), normal(3, 4, 5, seed=1)
    cos = torch.nn.functional.cosine_similarity
    pairs = [(2 - 2 * cos(p[:, i], z[:, j]) + 2 - 2 * cos(p[:, j], z[:, i])) / 2 for i in (0, 1) for j in (2, 3)]
    torch.testing.assert_close(pair_distance(p, z), torch.stack(pairs).mean(0))


def test_no_gradient_reaches_the_embeddings_that_are_predicted():
    p, z = normal(3, 2, 5).requires_grad_(), normal(3, 2, 5, seed=1).requires_grad_()
    pair_distance(p, z).sum().backward()
    assert z.grad is None and (p.grad != 0).all()


def test_score_is_the_distance_and_collapse_shows_in_the_spread():
    objective, batch = small(), clips()
    encoded = objective.encode(batch, Draws.of(batch, STEP))
    assert encoded["z"].shape == encoded["p"].shape == (8, 2, 16)
    loss = objective.score(encoded, STEP)
    torch.testing.assert_close(loss.total, pair_distance(encoded["p"], encoded["z"]).mean())
    flat = torch.ones(4, 2, 3)
    collapsed = objective.agree(flat, flat, None, STEP)
    assert collapsed.total.item() == pytest.approx(0, abs=1e-6)
    assert collapsed.parts["spread"].item() == pytest.approx(0, abs=1e-6)


def test_a_view_is_one_frame_changed_on_its_own():
    objective, batch = small(), clips()
    views = objective.views(batch["video"], Draws.of(batch, STEP))
    assert [v.x.shape for v in views] == [(8, 1, 1, 16, 16)] * 2
    assert (views[0].params["start"] < 4).all() and (views[1].params["start"] >= 4).all()
    assert not torch.equal(views[0].geometry.box, views[1].geometry.box)
    plan = objective.views.plans[0].plan
    assert plan.jitter is None and plan.blur == 0 and plan.grey == 0  # crop and mirror alone
    assert plan.scale == (0.2, 1.0) and plan.flip == 0.5
    still = small(crop_min=1.0, flip=False)
    still.views.plans = [type(p)(p.plan.__class__((16, 16))) for p in still.views.plans]
    views = still.views(batch["video"], Draws.of(batch, STEP))
    rows = torch.arange(8)
    want = (batch["video"][rows, :, views[1].params["start"]].float() / 255 - 0.4) / 0.2
    torch.testing.assert_close(views[1].x[:, :, 0], want)


def test_object_recipe_changes_colours():
    plan = small(spec(3), colour=True).views.plans[0].plan
    assert plan.jitter == pytest.approx((0.4, 0.4, 0.4, 0.1)) and plan.grey == 0.2 and plan.blur == 0.5


def test_heads_are_the_papers():
    objective = VFS(small().backbone, spec())
    assert [m.out_features for m in objective.projector if hasattr(m, "out_features")] == [256] * 3
    assert [m.out_features for m in objective.predictor if hasattr(m, "out_features")] == [64, 256]


def test_gradients_reach_everything_also_of_a_solid_network_and_four_frames():
    four = small(frames=4)
    assert four.encode(clips(), Draws.of(clips(), STEP))["z"].shape == (8, 4, 16)
    assert_gradients_reach(four, clips())
    torch.manual_seed(0)
    solid = build_backbone("resnet_tiny", channels=1, size=(8, 16, 16), depths=(1, 1), widths=(8, 16), stride=4)
    objective = VFS(solid, spec())
    assert any("per_frame" in note for note in objective.notes) and not small().notes
    assert_gradients_reach(objective, clips())


@pytest.mark.parametrize("frames", [0, 1, 3, 10])
def test_frames_that_make_no_two_groups_are_refused(frames):
    with pytest.raises(UsageError, match="two groups"):
        small(frames=frames)
