from __future__ import annotations

import math

import pytest
import torch
from tests.objectives.pairs import assert_slope, normal

from osteon.core.errors import UsageError
from osteon.parts.losses.supcon import supcon


def loops(z: torch.Tensor, label: list[int], temperature: float) -> float:
    """The formula, pair by pair."""
    n, losses = len(z), []

    def weight(i: int, j: int) -> float:
        return math.exp((z[i] @ z[j] / (z[i].norm() * z[j].norm())).item() / temperature)

    for i in range(n):
        positives = [p for p in range(n) if p != i and label[p] == label[i]]
        if positives:
            total = sum(weight(i, a) for a in range(n) if a != i)
            losses.append(-sum(math.log(weight(i, p) / total) for p in positives) / len(positives))
    return sum(losses) / len(losses)


def test_hand_computed_loss():
    # Two labels on orthogonal axes, two samples each: -log(e / (e + 1 + 1)) at T = 1.
    z = torch.tensor([[2.0, 0], [5, 0], [0, 1], [0, 3]])
    assert supcon(z, torch.tensor([7, 7, 4, 4]), 1.0).item() == pytest.approx(math.log(1 + 2 / math.e), rel=1e-5)


def test_naive_loops_agree_and_lonely_samples_are_left_out():
    z, label = normal(7, 3), [0, 1, 0, 2, 1, 0, 5]
    assert supcon(z, torch.tensor(label), 0.3).item() == pytest.approx(loops(z, label, 0.3), rel=1e-4)


def test_collapse_costs_the_logarithm_of_the_others():
    label = torch.tensor([0, 0, 0, 1, 1, 1])
    assert supcon(torch.ones(6, 3), label, 0.1).item() == pytest.approx(math.log(5), rel=1e-5)


def test_nothing_to_attract_costs_nothing_and_keeps_gradients_finite():
    z = normal(4, 3).requires_grad_()
    loss = supcon(z, torch.arange(4), 0.1)
    loss.backward()
    assert loss.item() == 0 and torch.isfinite(z.grad).all() and not z.grad.any()


def test_scale_order_and_names_of_labels_do_not_matter():
    z, label, order = normal(6, 4), torch.tensor([0, 1, 0, 2, 1, 2]), [4, 0, 3, 5, 1, 2]
    expected = supcon(z, label, 0.2)
    for other, names in ((3 * z, label), (z[order], label[order]), (z, 10 - label)):
        torch.testing.assert_close(supcon(other, names, 0.2), expected)


def test_gradient_reaches_both_sides_of_every_pair():
    label = torch.tensor([0, 0, 1, 1, 2, 2])
    assert_slope(lambda z: supcon(z, label, 0.3), normal(6, 4))


def test_temperature_must_be_positive():
    with pytest.raises(UsageError, match="temperature"):
        supcon(torch.zeros(2, 2), torch.zeros(2), 0.0)


def test_plain_products_keep_the_lengths():
    # two pairs; products 4 within, 0 between: -log(e^4 / (e^4 + 2)) at T = 1
    z = torch.tensor([[2.0, 0], [2, 0], [0, 2], [0, 2]])
    found = supcon(z, torch.tensor([0, 0, 1, 1]), 1.0, cosine=False)
    assert found.item() == pytest.approx(-math.log(math.exp(4) / (math.exp(4) + 2)))
