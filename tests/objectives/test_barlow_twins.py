from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.objectives.pairs import (
    STEP,
    assert_gradients_reach,
    assert_parts_equal_whole,
    assert_slope,
    assert_views_apart,
    images,
    normal,
    resnet,
    spec,
    vit,
)

from osteon.objectives.barlow_twins import BarlowTwins


def small(**options) -> BarlowTwins:
    return BarlowTwins(vit(), spec(), head_width=16, **options)


def test_hand_computed_loss_and_its_parts():
    # Standardised, uncorrelated features x and y: C between (x, y) and (x, x) is [[1, 1], [0, 0]].
    x, y = torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.tensor([1.0, 1.0, -1.0, -1.0])
    z = torch.stack([torch.stack([x, y], 1), torch.stack([x, x], 1)], 1)
    result = small(redundancy=0.25).agree(z, None, None, STEP)
    assert result.total.item() == pytest.approx(1 + 0.25 * 1, abs=1e-4)
    assert result.parts["invariance"].item() == pytest.approx(1, abs=1e-4)
    assert result.parts["redundancy"].item() == pytest.approx(1, abs=1e-4)


def test_numpys_correlation_agrees_with_the_default_weight():
    z = normal(12, 2, 3)
    c = np.corrcoef(z[:, 0].numpy(), z[:, 1].numpy(), rowvar=False)[:3, 3:]
    on, off = ((1 - np.diag(c)) ** 2).sum(), (c**2).sum() - (np.diag(c) ** 2).sum()
    assert small().redundancy == 0.5  # 8 / 16
    assert BarlowTwins(vit(), spec()).redundancy == pytest.approx(1 / 32)
    assert small().agree(z, None, None, STEP).total.item() == pytest.approx(on + 0.5 * off, rel=1e-4)


def test_collapse_costs_one_a_dimension():
    assert small().agree(torch.full((5, 2, 4), 3.0), None, None, STEP).total.item() == 4.0


def test_view_order_sample_order_and_scale_do_not_matter():
    z, objective = normal(16, 2, 4), small()
    expected = objective.agree(z, None, None, STEP).total
    for other in (z.flip(1), z.roll(3, 0), 5 * z - 2):
        torch.testing.assert_close(objective.agree(other, None, None, STEP).total, expected, rtol=1e-4, atol=1e-5)


def test_gradient_goes_to_both_views():
    objective, z = small(redundancy=0.3), normal(8, 2, 4).requires_grad_()
    assert_slope(lambda x: objective.agree(x, None, None, STEP).total, z)
    objective.agree(z, None, None, STEP).total.backward()
    assert z.grad[:, 0].norm() > 1e-3 and z.grad[:, 1].norm() > 1e-3


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    assert_parts_equal_whole(small(head_norm="layer"), images())


def test_views_keep_their_own_batch_statistics():
    assert_views_apart(small(), images())


def test_projector_has_three_layers_and_no_last_bias():
    assert [m.out_features for m in small().projector if hasattr(m, "out_features")] == [16, 16, 16]
    assert small().projector[-1].bias is None


def test_gradient_reaches_every_parameter():
    assert_gradients_reach(BarlowTwins(vit(), spec()), images())
    assert_gradients_reach(BarlowTwins(resnet(), spec(3, 32)), images(8, 3, 32))
