from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.objectives.masked import shake

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.data import Dataset, open_source
from osteon.objectives._masked import hidden_mean
from osteon.objectives.point_cmae import PointCMAE, agreement, agreement_of_rows
from osteon.parts.types import Draws, Step

STEP = Step(3, 10, 1)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return open_source("shapes:test", limit=12, cache=False, points=64)


def method(data: Dataset, stem: str = "points", **options: object) -> PointCMAE:
    torch.manual_seed(0)
    net = build_backbone("vit_tiny", channels=3, size=(64,), dim=16, depth=1, heads=2, stem=stem)
    made = PointCMAE(net, data.spec, **options)
    shake(made)
    return made


def encode(made: PointCMAE, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return made.encode(batch, Draws.of(batch, STEP))


def test_agreement_by_hand():
    first = torch.tensor([[[1.0, 0], [0, 2], [3, 0], [1, 1]]])
    second = torch.tensor([[[5.0, 0], [0, -1], [0, 7], [1, 1]]])
    both = torch.tensor([[True, True, True, False]])
    # cosines of tokens 0, 1, 2 with themselves: 1, -1, 0
    assert float(agreement(first, second, both)) == pytest.approx((0 + 2 + 1) / 3)
    half = 0.5**0.5
    rows = [(1 + 0 + 0 + half) / 4, (0 - 1 + 1 + half) / 4, (1 + 0 + 0 + half) / 4]  # with all four of the second
    assert float(agreement_of_rows(first, second, both)) == pytest.approx(1 - sum(rows) / 3)
    nothing = torch.zeros(1, 4, dtype=torch.bool)
    assert float(agreement(first, second, nothing)) == float(agreement_of_rows(first, second, nothing)) == 0


def test_equal_masks_and_tied_decoders_agree_perfectly(data):
    made = method(data)
    made.decoders[1].load_state_dict(made.decoders[0].state_dict())
    mask = made.mask((8,), Draws(STEP, torch.arange(12), 12))
    made.mask = lambda grid, draws: mask  # type: ignore[method-assign]
    encoded = encode(made, data.batch(np.arange(12)))
    assert encoded["agreement"].abs().max() < 1e-5 and (encoded["both"] == 5).all()
    made.decoders[1].load_state_dict(method(data).decoders[1].state_dict())
    assert encode(made, data.batch(np.arange(12)))["agreement"].min() > 1e-3


def test_the_loss_is_what_a_loop_over_both_masks_gives(data):
    made, batch = method(data, weight=0.5), data.batch(np.arange(6))
    draws = Draws.of(batch, STEP)
    encoded = made.encode(batch, draws)
    x = made.views(batch["points"], Draws.of(batch, STEP))[0].x
    assert not torch.equal(x, batch["points"])  # stretched and moved
    sides, masks = [], []
    for side in range(2):
        mask = random_mask_of(made, batch, side)
        assert mask.sum(1).eq(5).all()
        prediction, state, _ = made.look(x, mask, side)
        error = made.backbone.shown_error(prediction, made.backbone.shown(x))
        sides.append((torch.stack([error[b][mask[b]].mean() for b in range(6)]), state))
        masks.append(mask)
    both = masks[0] & masks[1]
    cosine = torch.nn.functional.cosine_similarity(sides[0][1], sides[1][1], dim=-1)
    agree = torch.stack([(1 - cosine[b][both[b]]).mean() if both[b].any() else torch.tensor(0.0) for b in range(6)])
    want = 1000 * (sides[0][0] + sides[1][0]) + 0.5 * agree
    torch.testing.assert_close(encoded["loss"], want)
    loss = made.score(encoded, STEP)
    torch.testing.assert_close(loss.total, want.mean())
    torch.testing.assert_close(loss.parts["both"], both.sum(1).float().mean())
    assert not torch.equal(masks[0], masks[1])


def random_mask_of(made: PointCMAE, batch: dict[str, torch.Tensor], side: int) -> torch.Tensor:
    return made.mask((8,), Draws.of(batch, STEP).fork(f"mask{side}"))


def test_what_counts_is_hidden_in_both(data):
    both = torch.tensor([[True, False, False], [True, True, False]])
    first = torch.randn(2, 3, 4, requires_grad=True)
    second = torch.randn(2, 3, 4, requires_grad=True)
    agreement(first, second, both).sum().backward()
    for grad in (first.grad, second.grad):  # nothing is stopped: both sides are pulled
        assert torch.equal((grad.abs().sum(-1) > 0), both)


def test_weight_0_is_the_sum_of_two_reconstructions_and_each_decoder_serves_one(data):
    made, batch = method(data, weight=0.0, reconstruction_weight=2.0), data.batch(np.arange(6))
    encoded = encode(made, batch)
    torch.testing.assert_close(encoded["loss"], 2 * encoded["reconstruction"])
    x = made.views(batch["points"], Draws.of(batch, STEP))[0].x
    mask = random_mask_of(made, batch, 1)
    prediction, _, _ = made.look(x, mask, 1)
    alone = hidden_mean(made.error(prediction, made.target(x)), mask)
    for p in made.decoders[0].parameters():
        p.data.zero_()
    shaken = encode(made, batch)["reconstruction"]
    zeroed = hidden_mean(made.error(torch.zeros_like(prediction), made.target(x)), random_mask_of(made, batch, 0))
    torch.testing.assert_close(shaken, alone + zeroed)


def test_the_encoder_sees_the_visible_groups_alone(data):
    made, batch = method(data), data.batch(np.arange(4))
    x, stem = batch["points"], made.backbone.patch_embed
    mask, tokens = random_mask_of(made, batch, 0), stem(batch["points"])
    before = made.look(x, mask, 0)[0]
    for where, same in ((mask, True), (~mask, False)):
        changed = torch.where(where[..., None], tokens + 3, tokens)
        stem.forward = lambda _x, changed=changed: changed  # type: ignore[method-assign]
        assert torch.equal(made.look(x, mask, 0)[0], before) == same


def test_no_common_hidden_token_gives_0_not_nan(data):
    made = method(data, ratio=0.5)
    turns = iter([torch.tensor([True, False] * 4), torch.tensor([False, True] * 4)] * 2)
    made.mask = lambda grid, draws: next(turns).expand(3, -1)  # type: ignore[method-assign]
    encoded = encode(made, data.batch(np.arange(3)))
    assert (encoded["both"] == 0).all() and (encoded["agreement"] == 0).all() and encoded["loss"].isfinite().all()


def test_the_released_form_is_an_option_and_differs(data):
    batch = data.batch(np.arange(6))
    paper, code = encode(method(data), batch), encode(method(data, agreement="code"), batch)
    torch.testing.assert_close(paper["reconstruction"], code["reconstruction"])
    assert not torch.allclose(paper["agreement"], code["agreement"])


def test_voxel_tokens_that_only_fill_up_do_not_count(data):
    made, batch = method(data, stem="voxels"), data.batch(np.arange(6))
    x = made.views(batch["points"], Draws.of(batch, STEP))[0].x
    count = made.backbone.present(x).sum(1)
    assert (count < 64).all()
    encoded = encode(made, batch)
    assert (encoded["both"] < count).all() and encoded["loss"].isfinite().all()


def test_pictures_and_settings(data):
    made = method(data)
    before, corrupted, after = made.reconstruct(data.batch(np.arange(4)), STEP)
    assert before.shape == corrupted.shape == after.shape == (4, 3, 64)
    text = " ".join(made.notes)
    assert "5 of 8 tokens each, 3.1 of them hidden by both" in text and "1000" in text
    for wrong in ({"ratio": 0.0}, {"ratio": 1.0}, {"agreement": "row"}, {"weight": -1.0}):
        with pytest.raises(UsageError):
            method(data, **wrong)
    assert method(data, decoder_depth=1).decoders[1].embed.out_features == 64
    assert len(method(data, decoder_depth=3).decoders[0].blocks) == 3
