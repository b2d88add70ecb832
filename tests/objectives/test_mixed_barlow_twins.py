from __future__ import annotations

import copy

import pytest
import torch
from tests.objectives.pairs import (
    STEP,
    assert_gradients_reach,
    assert_parts_equal_whole,
    assert_slope,
    assert_views_apart,
    draws_of,
    encode_in_parts,
    gradients,
    images,
    normal,
    resnet,
    spec,
    vit,
)
from torch import Tensor

from osteon.objectives.barlow_twins import BarlowTwins
from osteon.objectives.mixed_barlow_twins import MixedBarlowTwins, mixing_term
from osteon.parts.losses.cross_correlation import standardise
from osteon.parts.types import Draws, Step

SHARE = torch.tensor(0.75)


def small(**options) -> MixedBarlowTwins:
    return MixedBarlowTwins(vit(), spec(), head_width=16, **options)


def loops(m: Tensor, a: Tensor, b: Tensor, partner: Tensor, share: float) -> float:
    """The published formula, entry by entry: ||C(m,a) - G1||^2 + ||C(m,b) - G2||^2."""
    n, d = a.shape

    def c(x: Tensor, y: Tensor, i: int, j: int) -> float:
        return sum(x[k, i].item() * y[k, j].item() for k in range(n)) / n

    total = 0.0
    for i in range(d):
        for j in range(d):
            g1 = share * c(a, a, i, j) + (1 - share) * c(b[partner], a, i, j)
            g2 = share * c(a, b, i, j) + (1 - share) * c(b[partner], b, i, j)
            total += (c(m, a, i, j) - g1) ** 2 + (c(m, b, i, j) - g2) ** 2
    return total


def test_hand_computed_mixing_term():
    # Two samples, one feature. The blend of embeddings is 0.75 * (1, -1) + 0.25 * (-1, 1) = (0.5, -0.5): targets 0.5,
    # while m = (1, -1) correlates by 1 with both views: 0.5^2 + 0.5^2.
    a = torch.tensor([[1.0], [-1.0]])
    assert mixing_term(a, a, a, torch.tensor([1, 0]), SHARE).item() == pytest.approx(0.5)


def test_the_published_formula_agrees():
    m, a, b = normal(5, 3, seed=1), normal(5, 3, seed=2), normal(5, 3, seed=3)
    partner = torch.tensor([3, 0, 4, 2, 1])
    assert mixing_term(m, a, b, partner, SHARE).item() == pytest.approx(loops(m, a, b, partner, 0.75), rel=1e-4)


def test_embeddings_that_follow_the_blend_cost_nothing():
    a, b, partner = normal(6, 4, seed=2), normal(6, 4, seed=3), torch.tensor([1, 2, 3, 4, 5, 0])
    assert mixing_term(SHARE * a + 0.25 * b[partner], a, b, partner, SHARE).item() == 0


def test_score_adds_the_weighted_term_to_barlow_twins():
    objective = small()
    encoded = objective.encode(images(), Draws.of(images(), STEP))
    result = objective.score(encoded, STEP)
    a, b = standardise(encoded["z"][:, 0]), standardise(encoded["z"][:, 1])
    term = loops(standardise(encoded["m"]), a, b, encoded["partner"], encoded["share"][0].item())
    plain = BarlowTwins(vit(), spec(), redundancy=0.25).agree(encoded["z"], None, None, STEP).total.item()
    assert (objective.redundancy, objective.mixing) == (8 / 32, 4.0)
    assert term > 0.1
    assert result.parts["mixing"].item() == pytest.approx(term, rel=1e-3)
    assert result.total.item() == pytest.approx(plain + 4.0 * 0.25 * term, rel=1e-3)


def test_default_weight_is_the_published_one_at_a_width_of_1024():
    assert MixedBarlowTwins(vit(), spec(), head_width=512).redundancy == 1 / 128


def test_collapse_costs_one_a_dimension_and_no_mixing():
    encoded = {"z": torch.ones(6, 2, 4), "m": torch.ones(6, 4), "partner": torch.arange(6), "share": torch.ones(6)}
    result = small().score(encoded, STEP)
    assert (result.total.item(), result.parts["mixing"].item()) == (4.0, 0.0)


def test_the_blend_is_the_own_first_view_and_the_partners_second_view():
    objective, batch = small().eval(), images()
    encoded = objective.encode(batch, Draws.of(batch, STEP))
    first, second = (v.x for v in objective.views(batch["image"], Draws.of(batch, STEP)))
    share, partner = encoded["share"][0], encoded["partner"]
    assert sorted(partner.tolist()) == list(range(8)) and partner.tolist() != list(range(8))
    assert 0 < share < 1 and (encoded["share"] == share).all()
    blend = share * first + (1 - share) * second[partner]
    torch.testing.assert_close(encoded["m"], objective.projector(objective.backbone(blend).pooled))


def test_partner_and_share_change_from_step_to_step():
    objective, batch = small(), images()
    one, two = (objective.encode(batch, Draws.of(batch, Step(i, 10))) for i in (0, 1))
    assert one["share"][0] != two["share"][0] and not torch.equal(one["partner"], two["partner"])


def test_shares_are_uniform():
    objective, batch = small(), images(2)
    shares = [objective.encode(batch, Draws.of(batch, Step(i, 200)))["share"][0].item() for i in range(60)]
    assert 0.35 < sum(shares) / 60 < 0.65 and min(shares) < 0.15 and max(shares) > 0.85


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    assert_parts_equal_whole(small(head_norm="layer"), images())


def test_scattered_rows_find_their_partners_too():
    objective, batch, order = small(head_norm="layer").eval(), images(), [6, 1, 3, 0, 7, 2, 5, 4]
    whole = objective.encode(batch, draws_of(batch, range(8)))
    apart = encode_in_parts(objective, batch, [order[:3], order[3:]])
    for key in whole:
        torch.testing.assert_close(apart[key], whole[key][order], rtol=1e-4, atol=1e-5)


def test_no_mixing_is_barlow_twins_bit_for_bit():
    mixed = small(mixing=0.0).train()
    plain = BarlowTwins(vit(), spec(), head_width=16, redundancy=mixed.redundancy).train()
    plain.projector = copy.deepcopy(mixed.projector)
    calls = []
    mixed.backbone.register_forward_hook(lambda *_: calls.append(1))
    batch = images()
    ours, theirs = mixed.encode(batch, Draws.of(batch, STEP)), plain.encode(batch, Draws.of(batch, STEP))
    assert len(calls) == 2 and "m" not in ours
    assert torch.equal(mixed.score(ours, STEP).total, plain.score(theirs, STEP).total)
    expected = gradients(plain, theirs)
    for name, grad in gradients(mixed, ours).items():
        assert torch.equal(grad, expected[name])
    for name, value in mixed.projector.state_dict().items():  # running statistics too
        assert torch.equal(value, plain.projector.state_dict()[name])


def test_gradient_flows_through_blends_and_targets():
    partner, objective = torch.tensor([3, 0, 1, 2, 5, 4]), small(mixing=50.0)
    fixed = {"z": normal(6, 2, 3), "m": normal(6, 3, seed=4), "partner": partner, "share": SHARE.expand(6)}
    for key in ("z", "m"):
        assert_slope(lambda x, key=key: objective.score(fixed | {key: x}, STEP).total, fixed[key])


def test_sample_order_does_not_matter():
    order, objective = torch.tensor([2, 0, 3, 1, 5, 4]), small()
    fixed = {"z": normal(6, 2, 3), "m": normal(6, 3, seed=4), "partner": torch.tensor([3, 0, 1, 2, 5, 4]),
             "share": SHARE.expand(6)}
    place = torch.empty(6, dtype=torch.long).scatter_(0, order, torch.arange(6))  # where each row went
    moved = {k: v[order] for k, v in fixed.items()} | {"partner": place[fixed["partner"][order]]}
    torch.testing.assert_close(objective.score(moved, STEP).total, objective.score(fixed, STEP).total)


def test_views_keep_their_own_batch_statistics():
    assert_views_apart(small(), images())


def test_gradient_reaches_every_parameter():
    assert_gradients_reach(MixedBarlowTwins(vit(), spec()), images())
    assert_gradients_reach(MixedBarlowTwins(resnet(), spec(3, 32)), images(8, 3, 32))
