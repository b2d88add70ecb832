from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.objectives.pairs import assert_slope, normal

from osteon.core.errors import UsageError
from osteon.parts.losses.cross_correlation import (
    barlow_loss,
    cross_correlation,
    distance_to_identity,
    redundancy_weight,
    standardise,
)

X = [1.0, -1.0, 1.0, -1.0]  # two features that are standardised and uncorrelated
Y = [1.0, 1.0, -1.0, -1.0]


def columns(*features: list[float]) -> torch.Tensor:
    return torch.tensor(features).T


def test_hand_computed_loss():
    # C between (x, y) and (x, x) is [[1, 1], [0, 0]]: on = (1-1)^2 + (1-0)^2 = 1, off = 1^2 + 0^2 = 1.
    total, on, off = barlow_loss(torch.stack([columns(X, Y), columns(X, X)], 1), redundancy=0.25)
    assert on.item() == pytest.approx(1.0, abs=1e-4)
    assert off.item() == pytest.approx(1.0, abs=1e-4)
    assert total.item() == pytest.approx(1.25, abs=1e-4)


def test_correlation_is_numpys():
    a, b = normal(7, 3), normal(7, 3, seed=1)
    expected = np.corrcoef(a.numpy(), b.numpy(), rowvar=False)[:3, 3:]
    np.testing.assert_allclose(cross_correlation(standardise(a), standardise(b)).numpy(), expected, atol=1e-4)


def test_standardise_uses_the_biased_variance_and_the_batch_axis():
    z = standardise(columns([0.0, 2.0, 4.0], [5.0, 5.0, 5.0]))
    half = 2 / (8 / 3) ** 0.5  # deviation 2, biased variance 8/3
    torch.testing.assert_close(z, columns([-half, 0.0, half], [0.0, 0.0, 0.0]), rtol=1e-4, atol=1e-5)


def test_distance_counts_diagonal_and_rest_apart():
    on, off = distance_to_identity(torch.tensor([[0.0, 2.0], [3.0, 5.0]]))
    assert (on.item(), off.item()) == (1 + 16, 4 + 9)


def test_collapsed_embeddings_cost_one_a_dimension_and_keep_a_finite_gradient():
    z = torch.ones(6, 2, 5, requires_grad=True)
    total, on, off = barlow_loss(z, 0.01)
    total.backward()
    assert (total.item(), on.item(), off.item()) == (5.0, 5.0, 0.0)
    assert torch.isfinite(z.grad).all()


def test_whitened_identical_views_cost_nothing():
    z = columns(X, Y)
    assert barlow_loss(torch.stack([z, z], 1), 1.0)[0].item() == pytest.approx(0.0, abs=1e-4)


def test_shift_scale_view_and_sample_order_do_not_matter():
    z = normal(16, 2, 4)
    loss = barlow_loss(z, 0.1)[0]
    for other in (3 * z + 7, z.flip(1), z[torch.randperm(16, generator=torch.Generator().manual_seed(0))]):
        torch.testing.assert_close(barlow_loss(other, 0.1)[0], loss, rtol=1e-4, atol=1e-5)


def test_gradient_of_both_views():
    assert_slope(lambda z: barlow_loss(z, 0.3)[0], normal(8, 2, 4))


def test_one_sample_is_refused():
    with pytest.raises(UsageError, match="at least 2 samples"):
        standardise(torch.zeros(1, 3))


@pytest.mark.parametrize(("asked", "dim", "expected"), [(0.0, 8192, 0.0051), (0.0, 1024, 1 / 128), (0.0, 256, 1 / 32),
                                                        (0.5, 256, 0.5)])
def test_weight_rule_gives_the_published_choices(asked: float, dim: int, expected: float):
    assert redundancy_weight(asked, dim) == pytest.approx(expected)
