from __future__ import annotations

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

from osteon.core.errors import UsageError
from osteon.objectives.vicreg import VICReg, covariance, invariance, variance_hinge

A = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
B = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])


def small(**options) -> VICReg:
    return VICReg(vit(), spec(), head_width=16, **options)


def loss(objective: VICReg, z: torch.Tensor) -> torch.Tensor:
    return objective.agree(z, None, None, STEP).total


def test_hand_computed_terms_and_total():
    # A: deviations sqrt(2) and 0, so the hinges are 0 and 1 - sqrt(1e-4) = 0.99. B: both sqrt(2), covariance 2.
    assert invariance(A, B).item() == 0.5
    assert variance_hinge(A).item() == pytest.approx(0.495, abs=1e-6)
    assert variance_hinge(B).item() == 0
    assert (covariance(A).item(), covariance(B).item()) == (0.0, 4.0)  # (2^2 + 2^2) / 2 dimensions
    result = small().agree(torch.stack([A, B], 1), None, None, STEP)
    assert result.total.item() == pytest.approx(25 * 0.5 + 25 * 0.495 / 2 + 4, rel=1e-6)
    assert result.parts["invariance"].item() == 0.5
    assert result.parts["variance"].item() == pytest.approx(0.2475, abs=1e-6)
    assert result.parts["covariance"].item() == 4.0


def test_variance_terms_are_averaged_not_summed():
    # Deviation 0.1 in the only dimension, identical views: 25 * (1 - sqrt(0.01 + 0.0001)) = 22.49, not 44.98.
    z = torch.tensor([[0.005**0.5], [-(0.005**0.5)]])
    assert loss(small(), torch.stack([z, z], 1)).item() == pytest.approx(25 * (1 - 0.0101**0.5), rel=1e-4)


def test_weights_belong_to_their_terms():
    z = torch.stack([A, B], 1)
    assert loss(small(sim=1, var=0, cov=0), z).item() == 0.5
    assert loss(small(sim=0, var=1, cov=0), z).item() == pytest.approx(0.2475, abs=1e-6)
    assert loss(small(sim=0, var=0, cov=1), z).item() == 4.0


def test_naive_loops_agree():
    z, (n, d) = normal(6, 3) * 0.5, (6, 3)
    mean = [sum(z[i, j].item() for i in range(n)) / n for j in range(d)]
    cov = [[sum((z[i, j].item() - mean[j]) * (z[i, k].item() - mean[k]) for i in range(n)) / (n - 1) for k in range(d)]
           for j in range(d)]
    hinge = sum(max(0.0, 1 - (cov[j][j] + 1e-4) ** 0.5) for j in range(d)) / d
    off = sum(cov[j][k] ** 2 for j in range(d) for k in range(d) if j != k) / d
    assert variance_hinge(z).item() == pytest.approx(hinge, rel=1e-4)
    assert covariance(z).item() == pytest.approx(off, rel=1e-4)


def test_collapse_costs_the_full_hinge_and_nothing_else():
    result = small().agree(torch.full((5, 2, 4), 3.0), None, None, STEP)
    assert result.parts["invariance"].item() == result.parts["covariance"].item() == 0
    assert result.total.item() == pytest.approx(25 * 0.99, rel=1e-5)


def test_views_samples_and_a_common_shift_do_not_matter():
    z, objective = normal(8, 2, 4), small()
    expected = loss(objective, z)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    for other in (z.flip(1), z[order], z + normal(4, seed=5)):
        torch.testing.assert_close(loss(objective, other), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weights", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_every_term_sends_gradient_to_both_views(weights: tuple[float, float, float]):
    sim, var, cov = weights
    objective, z = small(sim=sim, var=var, cov=cov), (normal(8, 2, 4) * 0.3).requires_grad_()
    assert_slope(lambda x: loss(objective, x), z, step=3e-3)
    loss(objective, z).backward()
    assert z.grad[:, 0].norm() > 1e-3 and z.grad[:, 1].norm() > 1e-3


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    assert_parts_equal_whole(small(head_norm="layer"), images())


def test_views_keep_their_own_batch_statistics():
    assert_views_apart(small(), images())


def test_one_sample_is_refused():
    with pytest.raises(UsageError, match="at least 2 samples"):
        loss(small(), torch.zeros(1, 2, 4))


def test_gradient_reaches_every_parameter():
    assert_gradients_reach(VICReg(vit(), spec()), images())
    assert_gradients_reach(VICReg(resnet(), spec(3, 32)), images(8, 3, 32))


def test_expander_has_three_layers_and_no_last_bias():
    assert [m.out_features for m in small().projector if hasattr(m, "out_features")] == [16, 16, 16]
    assert VICReg(vit(), spec()).projector[0].out_features == 256
    assert small().projector[-1].bias is None
