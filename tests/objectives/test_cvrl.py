"""CVRL: which clips meet, what the two views are, and the loss at collapse."""

from __future__ import annotations

import math

import pytest
import torch
from tests.objectives.clips import clips, spec, vit
from tests.objectives.pairs import STEP, assert_gradients_reach
from torch import nn

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.objectives.cvrl import CVRL
from osteon.parts.contrastive import nt_xent
from osteon.parts.types import Draws


def small(**options) -> CVRL:
    torch.manual_seed(1)
    return CVRL(vit(frames=4), spec(), **({"head_width": 16, "out": 8} | options))


def test_score_is_nt_xent_of_two_clips_of_half_the_frames():
    objective, batch = small(temperature=0.4).eval(), clips()
    views = objective.views(batch["video"], Draws.of(batch, STEP))
    assert [v.x.shape for v in views] == [(8, 1, 4, 16, 16)] * 2
    z = torch.stack([objective.projector(objective.backbone(v.x).pooled) for v in views], 1)
    torch.testing.assert_close(objective(batch, STEP).total, nt_xent(z, 0.4))
    collapsed = objective.score({"z": torch.ones(8, 2, 4)}, STEP)
    assert collapsed.total.item() == pytest.approx(math.log(2 * 8 - 1), rel=1e-5)
    assert not CVRL.additive


def test_the_network_is_built_for_a_clip():
    assert CVRL.seen((16, 32, 32), {}) == (8, 32, 32) and CVRL.seen((16, 32, 32), {"frames": 4}) == (4, 32, 32)
    assert CVRL.seen((1, 32, 32), {}) == (1, 32, 32)
    with pytest.raises(UsageError, match="32 x 32"):
        CVRL.seen((32, 32), {})


def test_short_videos_are_both_clips():
    objective, batch = CVRL(vit(frames=4), spec(frames=2), frames=4, head_width=16, out=8), clips(frames=2)
    views = objective.views(batch["video"], Draws.of(batch, STEP))
    assert all((v.params["start"] == 0).all() and v.x.shape[2] == 4 for v in views)
    for v in views:  # frames 0 1 0 1
        torch.testing.assert_close(v.x[:, :, :2], v.x[:, :, 2:])


def test_views_are_asymmetric_as_in_the_authors_code():
    big = CVRL(build_backbone("resnet_tiny", channels=3, size=(4, 64, 64)), spec(3, 8, 64))
    first, second = (p.plan for p in big.views.plans)
    assert (first.blur, second.blur, first.solarise, second.solarise) == (1.0, 0.1, 0.0, 0.2)
    assert first.scale == (0.3, 1.0) and first.ratio == (0.5, 2.0) and first.flip == 0
    assert first.jitter == pytest.approx((0.8, 0.8, 0.8, 0.2)) and first.jitter_chance == 0.8 and first.grey == 0.2
    first, second = (p.plan for p in small(flip=True, strength=0.5).views.plans)  # 16 pixels, one channel
    assert first.blur == second.blur == 0 and first.flip == 0.5 and first.grey == 0
    assert first.jitter == pytest.approx((0.4, 0.4, 0, 0))
    assert any("blur = 0" in note for note in small().notes)


def test_three_hidden_layers():
    assert [m.out_features for m in small().projector if isinstance(m, nn.Linear)] == [16, 16, 16, 8]


def test_gradients_reach_everything_of_both_kinds_of_backbone():
    assert_gradients_reach(small(), clips())
    torch.manual_seed(0)
    net = build_backbone("resnet_tiny", channels=1, size=(4, 16, 16), depths=(1, 1), widths=(8, 16), stride=4)
    assert_gradients_reach(CVRL(net, spec()), clips())


@pytest.mark.parametrize(("options", "text"), [({"temperature": 0.0}, "positive"), ({"head_layers": 0}, "at least 1"),
                                               ({"crop_min": 0.0}, "crop_min"), ({"solarise": 1.5}, "chances"),
                                               ({"frames": 6}, "multiples of 4"), ({"frames": -1}, "-1 frames")])
def test_impossible_settings_are_refused(options, text):
    with pytest.raises(UsageError, match=text):
        small(**options)
