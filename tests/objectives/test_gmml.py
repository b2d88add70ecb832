"""GMML: what is spoilt and by what, the loss by a loop, and the blocks that are read."""

from __future__ import annotations

import pytest
import torch
from tests.objectives.masked import shake
from tests.objectives.pairs import (
    STEP,
    assert_gradients_reach,
    assert_parts_equal_whole,
    draws_of,
    images,
    normal,
    resnet,
    spec,
    vit,
)
from torch import nn

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.objectives.gmml import GMML, absolute_error, read_blocks, spoil
from osteon.parts.targets import patchify
from osteon.parts.types import Draws, Step


def small(size: int = 8, **options) -> GMML:
    torch.manual_seed(1)
    return GMML(vit(1, size), spec(1, size), **options)


def many(total: int = 400, index: int = 0) -> Draws:
    return Draws(Step(index, 1000, 3), torch.arange(total), total)


@pytest.mark.parametrize(("depth", "blocks"), [(12, [5, 7, 9, 11]), (6, [2, 3, 4, 5]), (5, [2, 3, 4]), (2, [0, 1]),
                                               (1, [0]), (24, [11, 15, 19, 23])])
def test_blocks_that_are_read(depth, blocks):
    assert read_blocks(depth) == blocks


def test_spoiling_and_error_by_hand():
    clean, filler = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]]), torch.tensor([[[[10.0, 20.0]], [[30.0, 40.0]]]])
    mask = torch.tensor([[[False, True]]])
    assert spoil(clean, filler, mask).flatten().tolist() == [1, 20, 3, 40]
    assert absolute_error(filler, clean, mask).tolist() == [(18 + 36) / 2]  # mean over channels
    assert absolute_error(filler, clean, ~mask).tolist() == [(9 + 27) / 2]
    assert absolute_error(filler, clean, mask & False).tolist() == [0]


def test_samples_weigh_by_their_spoilt_pixels():
    encoded = {"error": torch.tensor([6.0, 10.0]), "spoilt": torch.tensor([2.0, 8.0])}
    assert small().score(encoded, STEP).total.item() == pytest.approx(1.6)


def test_share_is_uniform_between_its_bounds_and_exact():
    objective, shares = small(16, alien_chance=0.0), []
    for index in range(200):
        _, mask = objective.corrupt(normal(3, 1, 16, 16), normal(3, 1, 16, 16, seed=1), many(3, index))
        counts = mask.sum((1, 2))
        assert (counts == counts[0]).all()
        shares.append(counts[0].item() / 256)
    assert 0.5 <= min(shares) < 0.53 and 0.72 < max(shares) <= 0.752
    assert sum(shares) / 200 == pytest.approx(0.625, abs=0.02)  # standard deviation 0.005


def test_a_sample_is_spoilt_by_its_donor_or_by_the_fill_and_never_by_both():
    objective, n = small(16), 400
    clean, donor = normal(n, 1, 16, 16), normal(n, 1, 16, 16, seed=1) + 100
    spoilt, mask = objective.corrupt(clean, donor, many(n))
    keep = mask[:, None]
    assert torch.equal(spoilt[~keep], clean[~keep])
    foreign = ((spoilt == donor) & keep).flatten(1).any(1)
    assert torch.equal(spoilt[foreign][keep[foreign]], donor[foreign][keep[foreign]])
    assert abs(float(foreign.float().mean()) - 0.5) < 0.1
    assert (mask[foreign].sum((1, 2)) == 77).all()  # round(0.3 * 256)
    filled = spoilt[~foreign][keep[~foreign]]
    assert (mask[~foreign].sum((1, 2)) >= 128).all() and filled.max() < 10
    assert abs(float(filled.mean())) < 0.02 and float(filled.std()) == pytest.approx(1, abs=0.02)
    assert not (filled[:, None] == clean[~foreign][keep[~foreign]][:, None]).any()


def test_fill_and_chances_are_options():
    clean, donor = normal(50, 1, 16, 16), torch.full((50, 1, 16, 16), 9.0)
    spoilt, mask = small(16, fill="zeros", alien_chance=0.0).corrupt(clean, donor, many(50))
    assert (spoilt[mask[:, None]] == 0).all()
    spoilt, mask = small(16, alien_chance=1.0, alien=0.5).corrupt(clean, donor, many(50))
    assert (spoilt[mask[:, None]] == 9).all() and (mask.sum((1, 2)) == 128).all()


def test_groups_are_rectangles_on_the_pixel_grid_or_aligned():
    mask = small(16, align=4).groups(0.5, many(20))
    cells = mask.view(20, 4, 4, 4, 4).permute(0, 1, 3, 2, 4).reshape(20, 16, 16)
    assert (cells.all(-1) == cells.any(-1)).all() and (cells.all(-1).sum(1) == 8).all()
    free = small(16).groups(0.5, many(20)).view(20, 4, 4, 4, 4).permute(0, 1, 3, 2, 4).reshape(20, 16, 16)
    assert (free.any(-1) & ~free.all(-1)).float().mean() > 0.3  # most patches are spoilt in part
    # Connected: a spoilt pixel has a spoilt neighbour far more often than one drawn alone would have.
    groups = small(32, max_side=0.3).groups(0.3, many(20))
    beside = (groups[:, :, 1:] & groups[:, :, :-1]).sum() / groups[:, :, 1:].sum()
    assert beside > 0.7


def test_donors_are_other_samples_of_the_batch_in_their_own_views():
    objective, batch = small(alien_chance=1.0, alien=0.9, crop_min=0.3), images()
    triples = objective.triples(batch, Draws.of(batch, STEP))
    clean = [view.x for view in objective.views(batch["image"], Draws.of(batch, STEP))]
    assert len(triples) == 2
    for i, (x, spoilt, mask) in enumerate(triples):
        assert torch.equal(x, clean[i])
        for b in range(8):
            donors = [d for d in range(8) if torch.equal(spoilt[b][:, mask[b]], clean[i][d][:, mask[b]])]
            assert len(donors) == 1 and donors != [b], (i, b)
    assert not (triples[0][2] == triples[1][2]).flatten(1).all(1).any()  # each view is spoilt elsewhere


def test_a_lone_sample_is_its_own_donor():
    objective, batch = small(alien_chance=1.0), images(1)
    x, spoilt, mask = objective.triples(batch, Draws.of(batch, STEP))[0]
    assert torch.equal(x, spoilt) and mask.any()


def test_rows_held_elsewhere_give_the_same_triples():
    objective, batch = small(alien_chance=0.5), images()
    whole = objective.triples(batch, Draws.of(batch, STEP))
    rows = [5, 2, 7]
    part = objective.triples({"image": batch["image"][rows]}, draws_of(batch, rows))
    shuffled = torch.randperm(8, generator=torch.Generator().manual_seed(0)).tolist()
    other = objective.triples({"image": batch["image"][shuffled]}, draws_of(batch, shuffled))
    for w, p, o in zip(whole, part, other, strict=True):
        for a, b, c in zip(w, p, o, strict=True):
            torch.testing.assert_close(b, a[rows])
            torch.testing.assert_close(c, a[shuffled])


def test_prediction_reads_the_normed_mean_of_the_blocks():
    torch.manual_seed(0)
    network = build_backbone("vit_tiny", channels=1, size=8, dim=16, depth=4, heads=2, pool="cls", registers=1)
    objective = GMML(network, spec())
    shake(objective)
    x = normal(3, 1, 8, 8)
    tokens = torch.cat([network.prefix(3), network.stem(x) + network.positions((4, 4))], 1)
    _, outputs = network.trunk(tokens, collect=[1, 2, 3])
    expected = objective.head(network.norm(sum(outputs) / 3)[:, 2:])
    prediction, pooled = objective.predict(x)
    torch.testing.assert_close(patchify(prediction, 2), expected)
    torch.testing.assert_close(pooled, network(x).pooled)
    assert [type(m) for m in objective.head] == [nn.Linear, nn.GELU] * 3 + [nn.Linear]


def test_loss_by_a_loop():
    objective, batch = small(), images(4)
    shake(objective)
    total, count, own = 0.0, 0, torch.zeros(4)
    for clean, spoilt, mask in objective.triples(batch, Draws.of(batch, STEP)):
        prediction, _ = objective.predict(spoilt)
        for b, _c, row, col in (mask[:, None]).nonzero().tolist():
            error = abs(float(prediction[b, 0, row, col].detach()) - float(clean[b, 0, row, col]))
            total, count = total + error, count + 1
            own[b] += error
    encoded = objective.encode(batch, Draws.of(batch, STEP))
    torch.testing.assert_close(encoded["error"], own, rtol=1e-4, atol=1e-4)
    assert encoded["spoilt"].sum() == count
    assert objective.score(encoded, STEP).total.item() == pytest.approx(total / count, rel=1e-4)


def test_predictions_at_clean_pixels_do_not_count():
    objective, batch = small(), images()
    mask = torch.cat([m for _, _, m in objective.triples(batch, Draws.of(batch, STEP))])
    prediction = normal(16, 1, 8, 8).requires_grad_()
    objective.predict = lambda x: (prediction, x.flatten(1))
    objective(batch, STEP).total.backward()
    assert (prediction.grad[~mask[:, None]] == 0).all() and (prediction.grad[mask[:, None]] != 0).all()


def test_features_are_those_of_the_first_view():
    objective, batch = small(), images()
    encoded = objective.encode(batch, Draws.of(batch, STEP))
    spoilt = objective.triples(batch, Draws.of(batch, STEP))[0][1]
    torch.testing.assert_close(encoded["features"], objective.backbone(spoilt).pooled)
    assert not encoded["features"].requires_grad


def test_pictures():
    objective, batch = small(), images()
    clean, spoilt, mask = objective.triples(batch, Draws.of(batch, STEP))[0]
    shown, corrupted, output = objective.reconstruct(batch, STEP)
    assert torch.equal(shown, clean) and torch.equal(corrupted, spoilt)
    torch.testing.assert_close(output, spoil(clean, objective.predict(spoilt)[0], mask))


def test_views_are_lightly_jittered_crops():
    objective = GMML(vit(3, 64), spec(3, 64))
    plan, other = objective.views.plans
    assert plan == other and plan.scale == (0.05, 1.0) and plan.flip == 0.5 and plan.blur == 0.1
    assert plan.jitter == pytest.approx((0.1, 0.1, 0.1, 0.025)) and plan.jitter_chance == 0.3 and not plan.grey
    (plan,) = small(32, n_views=1, flip=False).views.plans
    assert plan.scale == (0.2, 1.0) and plan.flip == 0 and plan.blur == 0
    assert small(32, crop_min=0.5).views.plans[0].scale == (0.5, 1.0)


def test_parts_of_a_batch_give_the_gradient_of_the_whole_and_it_reaches_everything():
    assert_parts_equal_whole(small(), images())
    assert_gradients_reach(small(), images())
    assert_gradients_reach(GMML(vit(3, 32), spec(3, 32)), images(4, 3, 32))


def test_what_makes_no_sense_is_refused():
    for options in ({"ratio_min": 0.8}, {"ratio_max": 1.0}, {"alien": 0.0}, {"align": 3}, {"fill": "pink"}):
        with pytest.raises(UsageError):
            small(**options)
    with pytest.raises(UsageError, match="inner blocks"):
        GMML(resnet(), spec(3, 32))
