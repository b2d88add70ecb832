from __future__ import annotations

import math

import pytest
import torch
from tests.objectives.pairs import (
    STEP,
    assert_gradients_reach,
    assert_slope,
    encode_in_parts,
    images,
    normal,
    resnet,
    vit,
)
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.core.errors import UsageError
from osteon.objectives.look import LOOK, leave_one_out
from osteon.parts.losses.supcon import supcon
from osteon.parts.types import DataSpec, Draws, Step


def spec(channels: int = 1, size: int = 8, classes: int = 3, multi: bool = False) -> DataSpec:
    return DataSpec("image", channels, size, (0.5,) * channels, (0.25,) * channels, num_classes=classes,
                    multi_label=multi)


def labelled(n: int = 8, channels: int = 1, size: int = 8, classes: int = 3, start: int = 0) -> dict[str, Tensor]:
    return images(n, channels, size) | {"label": torch.arange(n) % classes, "index": torch.arange(start, start + n)}


def small(**options) -> LOOK:
    return LOOK(vit(), spec(), **({"head_width": 16, "out": 4, "queue": 12, "k": 3} | options))


def loops(z: Tensor, label: list[int], index: list[int], bank: Tensor, bank_label: list[int], bank_index: list[int],
          k: int, temperature: float) -> float:
    """The classifier sample by sample: sort the others, keep k, add the nearest of the class if none is among them."""
    losses = []
    for i in range(len(z)):
        cos = [torch.cosine_similarity(z[i], b, dim=0).item() for b in bank]
        others = sorted((j for j in range(len(bank)) if bank_index[j] != index[i]), key=lambda j: -cos[j])
        same = [j for j in others if bank_label[j] == label[i]]
        if not same:
            continue
        near = others[:k]
        if not set(near) & set(same):
            near = [*near, same[0]]
        weight = {j: math.exp(cos[j] / temperature) for j in near}
        losses.append(-math.log(sum(w for j, w in weight.items() if j in same) / sum(weight.values())))
    return sum(losses) / len(losses)


def both(z: Tensor, label: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Neighbours among the samples themselves."""
    index = torch.arange(len(z))
    return leave_one_out(z, label, index, z, label, index, k, temperature)


def test_hand_computed_loss():
    # The anchor's two nearest others lie at cosine 1 (its class) and 0 (not): -log(e / (e + 1)) at T = 1.
    bank = torch.tensor([[2.0, 0], [0, 3], [-1, 0]])
    loss, agree = leave_one_out(torch.tensor([[5.0, 0]]), torch.tensor([1]), torch.tensor([9]), bank,
                                torch.tensor([1, 0, 1]), torch.arange(3), 2, 1.0)
    assert loss.item() == pytest.approx(math.log(1 + 1 / math.e), rel=1e-5)
    assert agree.item() == 0.5


@pytest.mark.parametrize("k", [1, 3, 50])
def test_naive_loops_agree(k: int):
    z, bank = normal(6, 3), normal(14, 3, seed=1)
    label, index = [0, 1, 2, 0, 1, 7], [0, 1, 2, 3, 4, 5]
    bank_label, bank_index = [0, 1, 2, 0, 1, 7, 2, 1, 0, 2, 1, 0, 2, 1], [*range(6), 0, 1, *range(20, 26)]
    expected = loops(z, label, index, bank, bank_label, bank_index, k, 0.3)
    got, _ = leave_one_out(z, torch.tensor(label), torch.tensor(index), bank, torch.tensor(bank_label),
                           torch.tensor(bank_index), k, 0.3)
    assert got.item() == pytest.approx(expected, rel=1e-4)


def test_a_sample_is_never_its_own_neighbour():
    z, label = torch.eye(4), torch.tensor([0, 0, 1, 1])
    assert both(z, label, 1, 0.1)[0].item() > 0.3  # its own copy at cosine 1 would make the loss vanish
    index = torch.arange(4)
    twice = leave_one_out(z, label, index, torch.cat([z, z]), label.repeat(2), index.repeat(2), 2, 0.1)
    assert twice[0].item() > 0.3  # nor is an older embedding of it


def test_two_far_groups_of_one_class_cost_nothing_though_supcon_wants_one():
    corners = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0]])  # class 0 in two places, class 1 in one
    z = corners.repeat_interleave(4, 0) + 0.05 * normal(12, 3)
    label = torch.tensor([0] * 8 + [1] * 4)
    loss, agree = both(z, label, 3, 0.1)
    assert loss.item() < 1e-3 and agree.item() == 1.0
    assert supcon(z, label, 0.1).item() > 4


def test_all_neighbours_make_it_neighbourhood_components():
    z, label = normal(8, 3), torch.arange(8) % 2
    cos = F.normalize(z, dim=1) @ F.normalize(z, dim=1).T
    weight = (cos / 0.2).exp().fill_diagonal_(0)
    expected = -(weight * (label[:, None] == label)).sum(1).div(weight.sum(1)).log().mean()
    torch.testing.assert_close(both(z, label, 99, 0.2)[0], expected)


def test_collapse_costs_the_logarithm_of_the_class_share():
    label, index = torch.zeros(4, dtype=torch.long), torch.arange(4)
    bank_label = torch.tensor([0, 1, 1, 1])
    same = torch.ones(4, 3)
    loss, agree = leave_one_out(same, label, index, same, bank_label, torch.arange(9, 13), 4, 0.1)
    assert loss.item() == pytest.approx(math.log(4), rel=1e-5) and agree.item() == 0.25


def test_samples_without_their_class_do_not_count_and_spoil_no_gradient():
    z = normal(3, 4).requires_grad_()
    label, index = torch.tensor([0, 5, 0]), torch.arange(3)
    bank = normal(4, 4, seed=1), torch.tensor([0, 1, 1, 0]), torch.arange(9, 13)
    loss, _ = leave_one_out(z, label, index, *bank, 2, 0.1)
    pair, _ = leave_one_out(z[::2], label[::2], index[::2], *bank, 2, 0.1)
    torch.testing.assert_close(loss, pair)
    loss.backward()
    assert torch.isfinite(z.grad).all() and not z.grad[1].any() and z.grad[0].any()
    nothing, _ = both(normal(3, 4).requires_grad_(), torch.arange(3), 2, 0.1)
    nothing.backward()
    assert nothing.item() == 0


def test_only_neighbours_matter():
    z, bank = torch.tensor([[1.0, 0.1, 0]]), torch.tensor([[1.0, 0, 0], [0.9, 0.3, 0], [-1, 0.2, 0], [-0.5, 0.9, 0.3]])
    one, index = torch.tensor([0]), torch.tensor([99])
    label, ids = torch.tensor([0, 1, 1, 0]), torch.arange(4)
    moved = bank.clone()
    moved[2:] = -bank[:2] + 0.1
    expected, _ = leave_one_out(z, one, index, bank, label, ids, 2, 0.1)
    torch.testing.assert_close(leave_one_out(z, one, index, moved, label, ids, 2, 0.1)[0], expected)


def test_scale_order_and_names_of_classes_do_not_matter():
    z, label, order = normal(8, 4), torch.tensor([0, 1, 0, 2, 1, 2, 0, 1]), [4, 0, 3, 5, 7, 1, 6, 2]
    expected = both(z, label, 3, 0.2)[0]
    for other, names in ((3 * z, label), (z[order], label[order]), (z, 10 - label)):
        torch.testing.assert_close(both(other, names, 3, 0.2)[0], expected)


def test_gradient_goes_to_samples_and_never_to_the_bank():
    z, bank = normal(6, 4).requires_grad_(), normal(9, 4, seed=1).requires_grad_()
    label, bank_label, ids = torch.arange(6) % 3, torch.arange(9) % 3, torch.arange(20, 29)

    def loss(x: Tensor) -> Tensor:
        return leave_one_out(x, label, torch.arange(6), bank, bank_label, ids, 9, 0.3)[0]

    loss(z).backward()
    assert bank.grad is None and (z.grad.norm(dim=1) > 1e-4).all()
    assert_slope(loss, z)


def test_score_looks_among_the_batch_and_the_queue():
    objective, batch, past = small(), labelled(), labelled(start=100)
    encoded = objective.encode(past, Draws.of(past, STEP))
    before = {k: v.clone() for k, v in objective.state_dict().items()}
    objective.score(encoded, STEP)
    assert all(torch.equal(v, before[k]) for k, v in objective.state_dict().items())  # scoring changes nothing
    objective.after_step(STEP)
    assert torch.equal(objective.past.read(), encoded["t"]) and torch.equal(objective.past_label.read(), past["label"])
    assert torch.equal(objective.past_index.read(), past["index"])
    now = objective.encode(batch, Draws.of(batch, STEP))
    expected, agree = leave_one_out(
        now["z"], batch["label"], batch["index"], torch.cat([now["t"], encoded["t"]]),
        torch.cat([batch["label"], past["label"]]), torch.cat([batch["index"], past["index"]]), 3, 0.1)
    result = objective.score(now, STEP)
    torch.testing.assert_close(result.total, expected)
    torch.testing.assert_close(result.parts["neighbours_agree"], agree)
    assert not LOOK.additive


def test_neighbours_are_the_companions_embeddings_of_the_same_view():
    objective, batch = small().eval(), labelled()
    encoded = objective.encode(batch, Draws.of(batch, STEP))
    torch.testing.assert_close(encoded["t"], encoded["z"])  # a fresh companion is a copy
    assert not encoded["t"].requires_grad and encoded["z"].requires_grad and not encoded["features"].requires_grad
    with torch.no_grad():
        objective.backbone.norm.weight.mul_(-1)
    again = objective.encode(batch, Draws.of(batch, STEP))
    assert torch.equal(again["t"], encoded["t"]) and not torch.allclose(again["z"], encoded["z"])


@pytest.mark.parametrize(("index", "momentum"), [(0, 0.9), (5, 0.95), (10, 1.0)])
def test_companion_follows_by_a_rising_average(index: int, momentum: float):
    objective = small(momentum=0.9)
    (companion,) = objective.companions()
    mine = list(companion.parameters())
    student = [*objective.backbone.parameters(), *objective.projector.parameters()]
    assert len(mine) == len(student)
    with torch.no_grad():
        for i, p in enumerate(student):
            p.add_(normal(*p.shape, seed=i))
    before = [p.clone() for p in mine]
    objective.after_step(Step(index, 10))
    for p, q, s in zip(mine, before, student, strict=True):
        torch.testing.assert_close(p, momentum * q + (1 - momentum) * s)


def test_parts_of_a_batch_give_the_whole():
    objective, batch = small(), labelled()
    whole = encode_in_parts(objective, batch, [range(8)])
    apart = encode_in_parts(objective, batch, [range(4), range(4, 8)])
    for key in whole:
        torch.testing.assert_close(apart[key], whole[key], rtol=1e-4, atol=1e-5)


def test_without_a_head_features_are_compared():
    objective, batch = small(head_layers=0).eval(), labelled()
    encoded = objective.encode(batch, Draws.of(batch, STEP))
    torch.testing.assert_close(encoded["z"].detach(), encoded["features"])
    objective(batch, STEP).total.backward()
    objective.after_step(STEP)
    assert objective.past.read().shape == (8, 16)
    assert [type(m) for m in small().projector] == [nn.Linear, nn.ReLU, nn.Linear]
    assert [type(m) for m in small(head_layers=1).projector] == [nn.Linear]


def test_what_it_cannot_do_is_refused():
    for data in (spec(classes=0), spec(classes=1), spec(multi=True)):
        with pytest.raises(UsageError, match="labelled"):
            LOOK(vit(), data)
    for wrong in ({"k": 0}, {"temperature": 0.0}):
        with pytest.raises(UsageError, match="at least 1"):
            small(**wrong)
    with pytest.raises(UsageError, match="index"):
        small()({k: v for k, v in labelled().items() if k != "index"}, STEP)


def test_gradient_reaches_every_trainable_parameter():
    assert_gradients_reach(LOOK(vit(), spec()), labelled())
    assert_gradients_reach(LOOK(resnet(), spec(3, 32)), labelled(8, 3, 32))
