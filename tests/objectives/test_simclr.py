from __future__ import annotations

import pytest
import torch
from tests.objectives.pairs import (
    STEP,
    assert_gradients_reach,
    assert_parts_equal_whole,
    images,
    resnet,
    spec,
    vit,
)
from torch import nn

from osteon.core.errors import UsageError
from osteon.objectives.simclr import SimCLR
from osteon.parts.contrastive import nt_xent
from osteon.parts.norm import BatchNorm
from osteon.parts.types import Draws


def small(**options) -> SimCLR:
    return SimCLR(vit(), spec(), **({"head_width": 16, "out": 8} | options))


def test_every_sample_of_the_batch_repels():
    assert not SimCLR.additive


def test_score_is_the_loss_of_both_views_projections():
    objective, batch = small(temperature=0.4).eval(), images()
    views = objective.views(batch["image"], Draws.of(batch, STEP))
    z = torch.stack([objective.projector(objective.backbone(v.x).pooled) for v in views], 1)
    result = objective(batch, STEP)
    torch.testing.assert_close(result.total, nt_xent(z, 0.4))
    torch.testing.assert_close(result.parts["nt_xent"], result.total.detach())
    assert len(views) == 2 and not torch.equal(views[0].x, views[1].x)


def test_head_is_simclr_v2s():
    head = small().projector
    assert [type(m) for m in head] == [nn.Linear, BatchNorm, nn.ReLU] * 2 + [nn.Linear, BatchNorm]
    assert head[0].bias is None and head[1].bias is not None  # no bias before a norm that shifts
    assert head[-2].bias is None and head[-1].weight is not None and head[-1].bias is None
    assert len(small(head_layers=2).projector) == 5
    assert SimCLR(vit(), spec()).projector[0].out_features == 128


def test_impossible_settings_are_refused():
    with pytest.raises(UsageError, match="temperature"):
        small(temperature=0.0)
    with pytest.raises(UsageError, match="layers"):
        small(head_layers=0)


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    assert_parts_equal_whole(small().eval(), images())


def test_gradient_reaches_every_trainable_parameter():
    assert_gradients_reach(SimCLR(vit(), spec()), images())
    assert_gradients_reach(SimCLR(resnet(), spec(3, 32)), images(8, 3, 32))
