"""NT-Xent: by hand, by loops, and what it must not notice."""

from __future__ import annotations

import math

import pytest
import torch
from tests.objectives.pairs import assert_slope, normal

from osteon.parts.contrastive import nt_xent


def loops(z: torch.Tensor, temperature: float) -> float:
    """Equation 1, pair by pair: every view against its sample's other views, all other views in the denominator."""
    b, v, _ = z.shape
    places = [(i, k) for i in range(b) for k in range(v)]

    def weight(a: tuple[int, int], c: tuple[int, int]) -> float:
        return math.exp(torch.cosine_similarity(z[a], z[c], dim=0).item() / temperature)

    losses = []
    for a in places:
        total = sum(weight(a, c) for c in places if c != a)
        losses += [-math.log(weight(a, c) / total) for c in places if c != a and c[0] == a[0]]
    return sum(losses) / len(losses)


def test_hand_computed_loss():
    # Two orthogonal samples whose views agree: -log(e^(1/T) / (e^(1/T) + 1 + 1)) for every view.
    z = torch.eye(2)[:, None].repeat(1, 2, 1)
    assert nt_xent(3 * z, 1.0).item() == pytest.approx(math.log(1 + 2 / math.e), rel=1e-5)
    assert nt_xent(z, 0.5).item() == pytest.approx(math.log(1 + 2 / math.e**2), rel=1e-5)


@pytest.mark.parametrize("views", [2, 4])
def test_naive_loops_agree(views: int):
    z = normal(5, views, 3)
    assert nt_xent(z, 0.3).item() == pytest.approx(loops(z, 0.3), rel=1e-4)


def test_collapse_costs_the_logarithm_of_all_other_views():
    assert nt_xent(torch.ones(6, 2, 3), 0.1).item() == pytest.approx(math.log(11), rel=1e-5)


def test_a_view_is_its_samples_other_view():
    z = torch.eye(4)[:, None].repeat(1, 2, 1)
    wrong = torch.stack([z[:, 0], z[:, 1].roll(1, 0)], 1)  # view 2 looks like the next sample's view 1
    assert nt_xent(z, 0.1).item() < 0.01 < 5 < nt_xent(wrong, 0.1).item()


def test_scale_view_and_sample_order_do_not_matter():
    z = normal(6, 2, 4)
    expected = nt_xent(z, 0.2)
    scaled = z * torch.arange(1.0, 13.0).view(6, 2, 1)
    for other in (scaled, z.flip(1), z.roll(2, 0)):
        torch.testing.assert_close(nt_xent(other, 0.2), expected)


def test_every_sample_of_the_batch_repels():
    z = normal(6, 2, 4)
    assert not torch.isclose((nt_xent(z[:3], 0.2) + nt_xent(z[3:], 0.2)) / 2, nt_xent(z, 0.2))


def test_gradient_reaches_both_views_and_is_finite_where_similarities_are_extreme():
    assert_slope(lambda z: nt_xent(z, 0.3), normal(6, 2, 4))
    same = torch.ones(4, 2, 3, requires_grad=True)
    nt_xent(same, 0.01).backward()
    assert torch.isfinite(same.grad).all()


def test_half_precision_embeddings_are_compared_in_single():
    z = normal(6, 2, 4).bfloat16()
    torch.testing.assert_close(nt_xent(z, 0.1), nt_xent(z.float(), 0.1))
