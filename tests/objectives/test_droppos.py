"""DropPos: targets that sum to one, weights without gradient, and patches that do not know where they are."""

from __future__ import annotations

import math

import pytest
import torch
from tests.objectives.pairs import (
    STEP,
    assert_gradients_reach,
    assert_parts_equal_whole,
    assert_slope,
    images,
    normal,
    resnet,
    spec,
    vit,
)

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.objectives.droppos import DropPos, position_targets, resemblance
from osteon.parts.types import Draws, Features, Step
from osteon.views.masks import random_mask, visible_indices


def small(**options) -> DropPos:
    return DropPos(vit(), spec(), flip=False, **options)


def with_class_token() -> DropPos:
    torch.manual_seed(0)
    backbone = build_backbone("vit_tiny", channels=1, size=8, dim=16, depth=1, heads=2, pool="cls", registers=1)
    return DropPos(backbone, spec(), flip=False)


def test_targets_of_a_square_by_hand():
    e = math.exp(-1)
    row = torch.tensor([1.0, e, e, e * e]) / (1 + e) ** 2  # itself, two neighbours at 1, the diagonal at sqrt 2
    torch.testing.assert_close(position_targets((2, 2), 1.0)[0], row)


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.0])
def test_targets_by_loops(sigma: float):
    rows, columns = 2, 3
    for i in range(6):
        mass = [math.exp(-((i // columns - j // columns) ** 2 + (i % columns - j % columns) ** 2) / sigma**2)
                for j in range(6)]
        torch.testing.assert_close(position_targets((rows, columns), sigma)[i], torch.tensor(mass) / sum(mass))


def test_rows_of_targets_sum_to_one_and_narrow_to_one_place():
    for sigma in (5.0, 1.0, 0.5, 0.02, 1e-3, 1e-8, 1e-200, 0.0):
        targets = position_targets((4, 3), sigma)
        torch.testing.assert_close(targets.sum(1), torch.ones(12))
        assert (targets.argmax(1) == torch.arange(12)).all()
        if sigma <= 0.02:
            assert torch.equal(targets, torch.eye(12))
    columns = position_targets((14, 14), 1.0).sum(0)  # why the axis matters: the other one is off by a tenth
    assert columns.min() < 0.9 and columns.max() > 1.1


def test_resemblance_by_hand():
    whole, tokens = torch.tensor([[2.0, 0.0]]), torch.tensor([[[3.0, 0.0], [0.0, 1.0], [-5.0, 0.0]]])
    mass = torch.tensor([[math.exp(2.0), 1.0, math.exp(-2.0)]])  # cosines 1, 0, -1 over a temperature of 1/2
    torch.testing.assert_close(resemblance(whole, tokens, 0.5), mass / mass.sum())
    same = torch.ones(1, 4, 2)
    torch.testing.assert_close(resemblance(whole, same, 0.1), torch.full((1, 4), 0.25))


def loop_loss(objective: DropPos, batch: dict[str, torch.Tensor], step: Step) -> tuple[float, float]:
    """Loss and accuracy patch by patch, from the definition."""
    draws = Draws.of(batch, step)
    x = objective.views(batch["image"], draws)[0].x
    keep = visible_indices(random_mask((4, 4), objective.ratio, draws.fork("mask")))
    lost = random_mask((1, keep.shape[1]), objective.position_ratio, draws.fork("positions"))
    whole = objective.backbone(x)
    place = objective.backbone.positions((4, 4))[0]
    targets = position_targets((4, 4), objective.sigma * (1 - step.index / step.total))
    above = below = hits = 0.0
    for b in range(len(x)):
        tokens = objective.backbone.stem(x[b:b + 1])[0]
        rows = [tokens[i] + (objective.position_token if lost[b, k] else place[i]) for k, i in enumerate(keep[b])]
        out = objective.backbone.trunk(torch.stack(rows)[None])
        logits = objective.decoder(out)[0]
        mean = whole.tokens[b].mean(0)
        mass = [math.exp(torch.cosine_similarity(mean, t, dim=0).item() / objective.attention_temperature)
                for t in whole.tokens[b]]
        shown = sum(mass[i] for i in keep[b])
        for k, i in enumerate(keep[b]):
            if lost[b, k]:
                weight = mass[i] / shown if objective.attentive else 1.0
                chance = logits[k].softmax(0)
                above -= weight * sum(targets[i, j].item() * math.log(chance[j].item()) for j in range(16))
                hits += weight * float(chance.argmax() == i)
                below += weight
    return above / below, hits / below


@pytest.mark.parametrize("options", [{}, {"attentive": False}, {"sigma": 0.0, "ratio": 0.5, "position_ratio": 0.5},
                                     {"sigma": 2.0, "attention_temperature": 0.5}])
@pytest.mark.parametrize("index", [0, 5])
def test_loss_by_loops(options: dict[str, float], index: int):
    objective, batch, step = small(**options).eval(), images(4), Step(index, 10, seed=3)
    with torch.no_grad():
        objective.decoder.out.weight.mul_(10)  # sharp answers, so that right and wrong ones differ
        loss = objective(batch, step)
        error, accuracy = loop_loss(objective, batch, step)
    assert loss.total.item() == pytest.approx(error, rel=1e-4)
    assert loss.parts["accuracy"].item() == pytest.approx(accuracy, abs=1e-5)


@pytest.mark.parametrize("attentive", [True, False])
def test_ignorance_costs_the_logarithm_of_the_places(attentive: bool):
    objective = small(attentive=attentive)
    with torch.no_grad():
        objective.decoder.out.weight.zero_()
        objective.decoder.out.bias.zero_()
    assert objective(images(), STEP).total.item() == pytest.approx(math.log(16), rel=1e-5)


def test_score_is_the_weighted_mean_over_all_lost_positions():
    encoded = {"error": torch.tensor([3.0, 1.0]), "weight": torch.tensor([1.0, 3.0]), "hits": torch.tensor([0.0, 1.0])}
    loss = small().score(encoded, STEP)
    assert loss.total.item() == 1.0 and loss.parts["accuracy"].item() == 0.25
    assert not DropPos.additive  # samples weigh differently, so the mean of means is another number
    turned = small().score({k: v.flip(0) for k, v in encoded.items()}, STEP)
    assert turned.total.item() == 1.0
    error = normal(5).abs()
    assert_slope(lambda e: small().score({"error": e, "weight": error + 1, "hits": error}, STEP).total, error)


def test_counts_of_shown_and_lost_patches():
    encoded = small(attentive=False).encode(images(), Draws.of(images(), STEP))
    assert encoded["weight"].tolist() == [3.0] * 8  # 16 patches, 4 shown, 3 of them without position
    encoded = small().encode(images(), Draws.of(images(), STEP))
    assert (encoded["weight"] < 1).all()  # the weights of all 4 sum to 1, one of them keeps its position


def swap_patches(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Patch i of the result is patch order[i] of 8 x 8 images."""
    cells = x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(2, 3)[:, :, order]  # (B, C, 16, 2, 2)
    return cells.unflatten(2, (4, 4)).permute(0, 1, 2, 4, 3, 5).reshape(x.shape)


def test_a_patch_without_position_does_not_know_where_it_lies():
    objective, x = small().eval(), normal(3, 1, 8, 8)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    keep = torch.tensor([[0, 5, 6, 11]] * 3)
    moved = torch.stack([(order == i).nonzero()[0, 0] for i in keep[0]])[None].expand(3, -1)
    for lost, known in ((True, False), (False, True)):
        everywhere = torch.full((3, 4), lost)
        with torch.no_grad():
            here = objective.locate(objective.look(x, keep, everywhere))
            there = objective.locate(objective.look(swap_patches(x, order), moved, everywhere))
        assert torch.allclose(here, there, atol=1e-5) is not known


def test_the_order_of_the_shown_patches_is_the_order_of_the_answers():
    objective, x = small().eval(), normal(2, 1, 8, 8)
    keep, lost = torch.tensor([[1, 4, 7, 9]] * 2), torch.tensor([[True, False, True, True]] * 2)
    turn = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        straight = objective.locate(objective.look(x, keep, lost))
        turned = objective.locate(objective.look(x, keep[:, turn], lost[:, turn]))
    torch.testing.assert_close(turned, straight[:, turn])


def test_patches_left_out_matter_only_to_the_weights():
    x = normal(2, 1, 8, 8)
    keep, lost = torch.tensor([[1, 4]] * 2), torch.tensor([[True, True]] * 2)
    changed = x.clone()
    changed[:, :, :2, :2] += 1  # patch 0
    objective = small().eval()
    assert torch.equal(objective.look(x, keep, lost).tokens, objective.look(changed, keep, lost).tokens)
    weights = objective.weights(x, keep)
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    assert not torch.allclose(weights, objective.weights(changed, keep))


def test_weights_carry_no_gradient():
    objective, batch = small().train(), images()
    encoded = objective.encode(batch, Draws.of(batch, STEP))
    assert encoded["error"].requires_grad and not encoded["weight"].requires_grad
    objective(batch, STEP).total.backward()
    expected = {n: p.grad.clone() for n, p in objective.named_parameters()}
    constant, objective.weights = objective.weights, lambda x, keep: constant(x, keep).clone().detach()
    objective.zero_grad()
    objective(batch, STEP).total.backward()
    for name, p in objective.named_parameters():
        assert torch.equal(p.grad, expected[name]), name


def test_gradient_of_the_position_token_vanishes_where_no_position_is_lost():
    objective, x, keep = small(), normal(2, 1, 8, 8), torch.tensor([[0, 3], [1, 2]])
    for lost in (True, False):
        objective.zero_grad()
        objective.look(x, keep, torch.full((2, 2), lost)).tokens.square().sum().backward()
        assert bool(objective.position_token.grad.abs().sum() > 0) is lost


def test_the_class_token_takes_part_and_weighs_the_patches():
    objective, x = with_class_token().eval(), normal(2, 1, 8, 8)
    keep = torch.tensor([[1, 4, 9]] * 2)
    features = objective.look(x, keep, torch.ones(2, 3, dtype=torch.bool))
    logits = objective.locate(features)
    assert logits.shape == (2, 3, 16)
    other = Features(features.pooled, features.tokens, features.grid, cls=-features.cls)
    assert not torch.allclose(objective.locate(other), logits)
    changed = features.tokens.clone()
    changed[:, 2] = 0
    last = objective.locate(Features(features.pooled, changed, features.grid, cls=features.cls))
    moved = (last - logits).abs().amax((0, 2))
    assert moved[2] > 2 * moved[:2].max()  # answers stand at their own patch, not one off for the class token
    whole = objective.backbone(x)
    mass = torch.cosine_similarity(whole.cls[:, None], whole.tokens, dim=-1).div(0.1).exp().gather(1, keep)
    torch.testing.assert_close(objective.weights(x, keep), mass / mass.sum(1, keepdim=True))


def test_the_networks_and_options_it_cannot_use_are_refused():
    with pytest.raises(UsageError, match="positions"):
        DropPos(resnet(), spec(3, 32))
    with pytest.raises(UsageError, match="loses its position"):
        small(ratio=1.0)
    with pytest.raises(UsageError, match="sigma"):
        small(sigma=-1.0)
    with pytest.raises(UsageError, match="attention_temperature"):
        small(attention_temperature=0.0)


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    assert_parts_equal_whole(small(), images())


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32)])
def test_gradient_reaches_every_trainable_parameter(channels: int, size: int):
    assert_gradients_reach(DropPos(vit(channels, size), spec(channels, size)), images(8, channels, size))
    assert_gradients_reach(with_class_token(), images())
