from __future__ import annotations

import math

import pytest
import torch
from tests.objectives.pairs import normal

from osteon.core.errors import UsageError
from osteon.parts.prototypes import Prototypes, busiest, count_for, sinkhorn


def loops(scores: torch.Tensor, eps: float, iterations: int) -> torch.Tensor:
    """The paper's procedure on plain numbers: exponentials, then columns, then rows, again and again."""
    b, k = scores.shape
    q = [[math.exp(s.item() / eps) for s in row] for row in scores]
    for _ in range(iterations):
        for j in range(k):
            total = sum(q[i][j] for i in range(b))
            for i in range(b):
                q[i][j] /= total * k
        for i in range(b):
            total = sum(q[i])
            q[i] = [v / (total * b) for v in q[i]]
    return torch.tensor(q) * b


def test_hand_computed_codes():
    # exp(scores / eps) = [[2, 1], [1, 1]]; columns to 1/2: [[1/3, 1/4], [1/6, 1/4]]; rows to sum 1: 4/7, 3/7; 2/5, 3/5.
    scores = 0.1 * torch.tensor([[2.0, 1.0], [1.0, 1.0]]).log()
    torch.testing.assert_close(sinkhorn(scores, eps=0.1, iterations=1), torch.tensor([[4 / 7, 3 / 7], [2 / 5, 3 / 5]]))


def test_naive_loops_agree():
    scores = normal(6, 4)
    torch.testing.assert_close(sinkhorn(scores, eps=0.5, iterations=3), loops(scores, 0.5, 3), rtol=1e-4, atol=1e-6)


def test_samples_sum_to_one_and_prototypes_fill_evenly():
    scores = normal(40, 5) + torch.tensor([3.0, 0, 0, 0, 0])  # one prototype attracts all
    for iterations in (1, 3, 200):
        codes = sinkhorn(scores, eps=0.3, iterations=iterations)
        torch.testing.assert_close(codes.sum(1), torch.ones(40))
    torch.testing.assert_close(codes.sum(0), torch.full((5,), 8.0), rtol=1e-3, atol=1e-3)
    assert busiest(scores.softmax(1)).item() > 3


def test_a_common_preference_changes_nothing():
    scores = normal(8, 5)
    torch.testing.assert_close(sinkhorn(scores + normal(5, seed=1), eps=0.3), sinkhorn(scores, eps=0.3))
    torch.testing.assert_close(sinkhorn(scores + 7, eps=0.3), sinkhorn(scores, eps=0.3))


def test_identical_samples_get_even_codes():
    torch.testing.assert_close(sinkhorn(normal(1, 4).expand(6, 4)), torch.full((6, 4), 0.25))


def test_sample_and_prototype_order_do_not_matter():
    scores, rows, columns = normal(6, 4), [3, 0, 5, 1, 4, 2], [2, 0, 3, 1]
    codes = sinkhorn(scores, eps=0.3)
    torch.testing.assert_close(sinkhorn(scores[rows][:, columns], eps=0.3), codes[rows][:, columns])


def test_huge_scores_stay_finite_and_no_gradient_flows():
    scores = (1e4 * normal(6, 4)).requires_grad_()
    codes = sinkhorn(scores)
    assert torch.isfinite(codes).all() and not codes.requires_grad


@pytest.mark.parametrize("wrong", [{"eps": 0.0}, {"iterations": 0}])
def test_impossible_settings_are_refused(wrong: dict):
    with pytest.raises(UsageError, match="at least one iteration"):
        sinkhorn(torch.zeros(2, 2), **wrong)


def test_busiest_is_one_when_even_and_k_when_all_on_one():
    assert busiest(torch.full((3, 4), 0.25)).item() == pytest.approx(1.0)
    assert busiest(torch.eye(4)[[1, 1, 1]]).item() == pytest.approx(4.0)


def test_products_are_cosines_of_unit_embeddings():
    prototypes, z = Prototypes(3, 5), torch.nn.functional.normalize(normal(4, 3), dim=1)
    torch.testing.assert_close(prototypes.weight.norm(dim=1), torch.ones(5))
    with torch.no_grad():
        prototypes.weight.mul_(torch.arange(1.0, 6.0)[:, None])
    for i in range(4):
        for j in range(5):
            expected = torch.cosine_similarity(z[i], prototypes.weight[j], dim=0)
            torch.testing.assert_close(prototypes(z)[i, j], expected)


def test_renormalising_changes_no_product():
    prototypes, z = Prototypes(3, 5), normal(2, 4, 3)
    with torch.no_grad():
        prototypes.weight.mul_(7)
    before = prototypes(z)
    prototypes.renormalise()
    torch.testing.assert_close(prototypes.weight.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(prototypes(z), before)


def test_held_prototypes_get_zero_gradient_and_pass_it_on():
    prototypes = Prototypes(3, 5)
    z = normal(4, 3).requires_grad_()
    held = prototypes(z, held=True)
    torch.testing.assert_close(held, prototypes(z))
    held.square().sum().backward()
    assert prototypes.weight.grad is not None and not prototypes.weight.grad.any()
    kept, z.grad = z.grad.clone(), None
    prototypes(z).square().sum().backward()
    torch.testing.assert_close(kept, z.grad)
    assert prototypes.weight.grad.any()


@pytest.mark.parametrize(("asked", "classes", "count"), [(0, 0, 300), (0, 10, 200), (0, 100, 1000), (0, 1000, 3000),
                                                         (7, 100, 7)])
def test_number_of_prototypes(asked: int, classes: int, count: int):
    found, note = count_for(asked, classes)
    assert found == count and str(count) in note


def test_one_prototype_is_refused():
    with pytest.raises(UsageError, match="cannot tell samples apart"):
        count_for(1, 10)
