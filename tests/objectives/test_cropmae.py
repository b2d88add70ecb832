"""CropMAE: crops nest, the partner is read through cross-attention alone, and one or two patches are visible."""

from __future__ import annotations

import pytest
import torch
from tests.objectives.pairs import (
    STEP,
    assert_gradients_reach,
    assert_parts_equal_whole,
    draws_of,
    images,
    normal,
    spec,
    vit,
)
from torch.nn import functional as F

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.objectives.cropmae import CropMAE, CrossBlock, CrossDecoder, all_tokens, inside, visible_count
from osteon.parts.targets import patchify
from osteon.parts.types import DataSpec, Draws, Features, Step

RAMP = DataSpec("image", 2, 32, (0.25, 0.5), (0.5, 2.0), scale=1.0)


def small(**options) -> CropMAE:
    return CropMAE(vit(), spec(), **{"flip": False, "decoder_depth": 2, **options})


def with_class_token() -> CropMAE:
    torch.manual_seed(0)
    backbone = build_backbone("vit_tiny", channels=1, size=8, dim=16, depth=1, heads=2, pool="cls", registers=1)
    return CropMAE(backbone, spec(), flip=False, decoder_depth=2)


def ramps(n: int = 64) -> torch.Tensor:
    """(n, 2, 32, 32): channel 0 is the place across, channel 1 the place down, as fractions of the image."""
    place = (torch.arange(32) + 0.5) / 32
    return torch.stack([place.expand(32, 32), place[:, None].expand(32, 32)]).expand(n, -1, -1, -1).clone()


def ramp_views(step: Step = STEP, **options):
    objective = CropMAE(vit(2, 32), RAMP, **options)
    return objective.views(ramps(), Draws.of({"image": ramps()}, step))


def test_a_box_in_a_box_by_hand():
    outer, inner = torch.tensor([[0.2, 0.5, 0.6, 1.0]]), torch.tensor([[0.5, 0.0, 1.0, 0.5]])
    torch.testing.assert_close(inside(outer, inner), torch.tensor([[0.4, 0.5, 0.6, 0.75]]))
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    torch.testing.assert_close(inside(outer, whole), outer)
    torch.testing.assert_close(inside(whole, inner), inner)


@pytest.mark.parametrize(("ratio", "tokens", "count"), [
    (0.985, 196, 2), (0.985, 64, 1), (0.985, 16, 1), (0.9, 64, 6), (0.9, 100, 10), (0.75, 64, 16), (0.01, 2, 1)])
def test_number_of_visible_patches(ratio: float, tokens: int, count: int):
    assert visible_count(ratio, tokens) == count


def test_impossible_ratios_and_images_are_refused():
    for ratio in (0.0, 1.0, -0.1):
        with pytest.raises(UsageError, match="share"):
            visible_count(ratio, 64)
    with pytest.raises(UsageError, match="single patch"):
        visible_count(0.9, 1)
    with pytest.raises(UsageError, match="pair"):
        small(pair="videos")


def test_exactly_that_many_patches_are_visible():
    for ratio, count in ((0.985, 1), (0.75, 4), (0.5, 8)):
        mask = small(ratio=ratio).mask(draws_of(images(), range(8)))
        assert mask.shape == (8, 16) and ((~mask).sum(1) == count).all()
        assert len(mask.unique(dim=0)) > 1


def test_the_masked_view_is_cut_out_of_the_seen_one():
    seen, masked = ramp_views()
    a, b = seen.geometry.box, masked.geometry.box
    assert (b[:, :2] >= a[:, :2] - 1e-6).all() and (b[:, 2:] <= a[:, 2:] + 1e-6).all()
    area = [((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])) for box in (a, b)]
    share = area[1] / area[0]
    assert area[0].min() > 0.18 and area[0].max() > 0.8  # one pixel of rounding
    assert share.min() > 0.25 and share.max() < 0.65 and share.std() > 0.05


@pytest.mark.parametrize("pair", ["global_to_local", "local_to_global", "random", "same"])
def test_views_show_what_their_geometry_says(pair: str):
    mean, std = (torch.tensor(v)[:, None, None] for v in (RAMP.mean, RAMP.std))
    for view in ramp_views(pair=pair):
        x = view.x * std + mean
        box, flip = view.geometry.box, view.geometry.flip
        middle = x[:, :, 15:17, 15:17].mean((2, 3))
        torch.testing.assert_close(middle, (box[:, :2] + box[:, 2:]) / 2, atol=0.02, rtol=0)
        span = (x[:, 0, 16, 28] - x[:, 0, 16, 3]) / 25 * 32  # of the inner columns, borders are blurred
        width = box[:, 2] - box[:, 0]
        torch.testing.assert_close(span, torch.where(flip, -width, width), atol=0.05, rtol=0)
        down = (x[:, 1, 28, 16] - x[:, 1, 3, 16]) / 25 * 32
        torch.testing.assert_close(down, box[:, 3] - box[:, 1], atol=0.05, rtol=0)


def test_views_are_mirrored_independently_unless_forbidden():
    seen, masked = ramp_views()
    combinations = 2 * seen.geometry.flip.int() + masked.geometry.flip.int()
    assert (torch.bincount(combinations, minlength=4) >= 6).all()  # 16 expected of each
    for view in ramp_views(flip=False):
        assert not view.geometry.flip.any()


def test_pairs_of_views():
    seen, masked = ramp_views()
    small_first, large_second = ramp_views(pair="local_to_global")
    assert torch.equal(seen.x, large_second.x) and torch.equal(masked.x, small_first.x)
    once, twice = ramp_views(pair="same")
    assert torch.equal(once.x, twice.x) and torch.equal(once.x, seen.x)
    first, second = ramp_views(pair="random")
    a, b = first.geometry.box, second.geometry.box
    assert torch.equal(first.x, seen.x)
    outside = (b[:, :2] < a[:, :2]).any(1) | (b[:, 2:] > a[:, 2:]).any(1)
    assert outside.float().mean() > 0.4
    area = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    assert area.max() > 0.8


def test_views_change_with_the_step_and_follow_the_rows():
    one, two = ramp_views(), ramp_views(Step(1, 10, seed=3))
    assert not torch.equal(one[0].geometry.box, two[0].geometry.box)
    objective = CropMAE(vit(2, 32), RAMP)
    part = objective.views(ramps(4), Draws(STEP, torch.arange(10, 14), 64))
    for whole, rows in zip(one, part, strict=True):
        torch.testing.assert_close(rows.x, whole.x[10:14])


def test_block_goes_across_then_mlp_then_own_with_norms_after():
    torch.manual_seed(0)
    block = CrossBlock(8, 2)
    assert block.fc1.out_features == 64
    with torch.no_grad():
        for i, norm in enumerate((block.norm_cross, block.norm_mlp, block.norm_own)):
            norm.weight.copy_(1 + 0.5 * normal(8, seed=i))
            norm.bias.copy_(normal(8, seed=9 + i))
    x, context = normal(2, 5, 8), normal(2, 3, 8, seed=1)

    def attention(part, queries, others):
        q = part.q(queries).unflatten(-1, (2, 4)).transpose(1, 2)
        k, v = part.kv(others).unflatten(-1, (2, 2, 4)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / 2).softmax(-1)  # sqrt of 4 values a head
        return part.proj((weights @ v).transpose(1, 2).flatten(2))

    h = block.norm_cross(x + attention(block.cross, x, context))
    h = block.norm_mlp(h + block.fc2(F.gelu(block.fc1(h))))
    h = block.norm_own(h + attention(block.own, h, h))
    torch.testing.assert_close(block(x, context), h)


def test_a_decoder_without_blocks_by_hand():
    positions = normal(1, 4, 8, seed=5)
    decoder = CrossDecoder(6, 3, positions, depth=0, dropout=0.0)
    seen, tokens = normal(2, 4, 6), normal(2, 2, 6, seed=1)
    keep = torch.tensor([[0, 2], [3, 1]])
    out = decoder(Features(seen.mean(1), seen, (2, 2)), Features(tokens.mean(1), tokens, (2, 2)), keep)
    for b in range(2):
        for n in range(4):
            at = keep[b].tolist()
            token = decoder.embed(tokens[b, at.index(n)]) if n in at else decoder.mask_token
            torch.testing.assert_close(out[b, n], decoder.out(decoder.norm(token + positions[0, n])))
    again = decoder(Features(seen.mean(1), seen, (2, 2)),
                    Features(tokens.mean(1), tokens, (2, 2), cls=normal(2, 6, seed=3)), keep)
    torch.testing.assert_close(again, out)  # the class token's own answer is dropped, the others keep their places


def test_partner_is_read_by_content_and_never_by_place():
    torch.manual_seed(0)
    decoder = CrossDecoder(6, 3, normal(1, 4, 8, seed=5), depth=2, dropout=0.0).eval()
    tokens, seen, keep = normal(1, 1, 6, seed=1), normal(1, 4, 6), torch.tensor([[2]])
    masked = Features(tokens.mean(1), tokens, (2, 2))

    def out(x: torch.Tensor, cls: torch.Tensor | None = None) -> torch.Tensor:
        return decoder(Features(x.mean(1), x, (2, 2), cls=cls), masked, keep)

    torch.testing.assert_close(out(seen), out(seen.flip(1)))
    assert not torch.allclose(out(seen), out(normal(1, 4, 6, seed=2)), atol=1e-3)
    cls = normal(1, 6, seed=4)
    assert not torch.allclose(out(seen), out(seen, cls), atol=1e-3)  # the class token is part of the context
    together = all_tokens(Features(cls, seen, (2, 2), cls=cls))
    assert torch.equal(together, torch.cat([cls[:, None], seen], 1))


def test_hidden_patches_are_wanted_and_not_seen():
    objective, mask = small().eval(), torch.ones(2, 16, dtype=torch.bool)
    mask[:, 5] = False
    seen, masked = normal(2, 1, 8, 8), normal(2, 1, 8, 8, seed=1)
    with torch.no_grad():
        guess, pooled = objective.predict(seen, masked, mask)
        other = masked.clone()
        other[:, :, :2, :2] += torch.tensor([[1.0, 2.0], [0.0, 5.0]])  # patch 0, hidden
        assert torch.equal(objective.predict(seen, other, mask)[0], guess)
        assert not torch.equal(objective.losses(guess, other, mask), objective.losses(guess, masked, mask))
        other = masked.clone()
        other[:, :, 2:4, 2:4] += torch.tensor([[1.0, 2.0], [0.0, 5.0]])  # patch 5, visible
        assert not torch.equal(objective.predict(seen, other, mask)[0], guess)
        assert torch.equal(objective.losses(guess, other, mask), objective.losses(guess, masked, mask))
        torch.testing.assert_close(pooled, objective.backbone(seen).pooled)
        assert not torch.allclose(objective.predict(seen.flip(0), masked, mask)[0], guess, atol=1e-4)


@pytest.mark.parametrize("norm_pix", [True, False])
def test_loss_by_loops(norm_pix: bool):
    objective = small(norm_pix=norm_pix, ratio=0.5)
    masked, guess = normal(3, 1, 8, 8), normal(3, 16, 4, seed=1)
    mask = objective.mask(draws_of(images(3), range(3)))
    got = objective.losses(guess, masked, mask)
    for b in range(3):
        errors = []
        for n in range(16):
            r, c = 2 * (n // 4), 2 * (n % 4)
            patch = masked[b, 0, r:r + 2, c:c + 2].flatten()
            if norm_pix:
                patch = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
            if mask[b, n]:
                errors.append((guess[b, n] - patch).square().mean())
        assert len(errors) == 8
        torch.testing.assert_close(got[b], torch.stack(errors).mean())


def test_predicting_nothing_costs_the_variance_of_a_patch():
    objective = small(crop_min=1.0, inner_min=0.6)
    with torch.no_grad():
        objective.decoder.out.weight.zero_()
        objective.decoder.out.bias.zero_()
    # Unbiased variance 1 over 4 pixels: the mean square is 3/4.
    assert objective(images(), STEP).total.item() == pytest.approx(0.75, rel=1e-2)
    flat = {"image": torch.full((4, 1, 8, 8), 7, dtype=torch.uint8)}
    assert objective(flat, STEP).total.item() == pytest.approx(0, abs=1e-6)  # nothing to tell in a blank image


def test_encoding_joins_views_mask_and_loss():
    objective, batch = small().eval(), images()
    encoded = objective.encode(batch, Draws.of(batch, STEP))
    seen, masked = objective.views(batch["image"], Draws.of(batch, STEP))
    mask = objective.mask(Draws.of(batch, STEP))
    guess, pooled = objective.predict(seen.x, masked.x, mask)
    assert torch.equal(encoded["loss"], objective.losses(guess, masked.x, mask))
    assert torch.equal(encoded["features"], pooled) and not encoded["features"].requires_grad
    assert CropMAE.additive
    torch.testing.assert_close(objective.score(encoded, STEP).total, encoded["loss"].sum() / 8)


def test_both_views_train_the_one_network():
    objective, mask = small(), torch.ones(2, 16, dtype=torch.bool)
    mask[:, 5] = False
    seen, masked = normal(2, 1, 8, 8).requires_grad_(), normal(2, 1, 8, 8, seed=1).requires_grad_()
    objective.predict(seen, masked, mask)[0].square().sum().backward()
    assert (patchify(seen.grad, 2).abs().sum(-1) > 0).all()
    shown = patchify(masked.grad, 2).abs().sum(-1) > 0
    assert torch.equal(shown, ~mask)
    assert sum(1 for m in objective.modules() if type(m) is type(objective.backbone)) == 1


def test_a_target_carries_no_gradient_to_the_network():
    objective, batch = small().train(), images()
    assert not objective.views(batch["image"], Draws.of(batch, STEP))[1].x.requires_grad
    objective.decoder.requires_grad_(False)
    with torch.no_grad():
        objective.decoder.out.weight.zero_()
    total = objective(batch, STEP).total
    assert not any(g.any() for g in torch.autograd.grad(total, list(objective.backbone.parameters()),
                                                         allow_unused=True) if g is not None)


def test_dropout_is_off_unless_asked_for():
    assert all(m.p == 0 for m in small().modules() if isinstance(m, torch.nn.Dropout))
    noisy, batch = small(dropout=0.5), images()

    def loss(mode: bool) -> float:
        return noisy.train(mode)(batch, STEP).total.item()

    torch.manual_seed(0)
    assert loss(True) != loss(True) and loss(False) == loss(False)
    torch.manual_seed(1)
    block = CrossBlock(8, 2, dropout=1.0).train()  # all branches dropped: three norms remain
    x = normal(2, 4, 8)
    torch.testing.assert_close(block(x, x), F.layer_norm(x, (8,), eps=1e-6), atol=1e-5, rtol=1e-4)


def test_size_of_the_larger_crop_follows_the_images():
    assert small().outer_scale == (0.2, 1.0)
    assert CropMAE(vit(1, 64), spec(1, 64)).outer_scale == (0.1, 1.0)
    assert small(crop_min=0.5).outer_scale == (0.5, 1.0)
    assert any("crop_min = 0.2" in n for n in small().notes) and any("1 of 16" in n for n in small().notes)


def test_pictures_keep_the_visible_patches_and_paste_the_predictions():
    objective, batch = small(ratio=0.75).eval(), images(5)
    x, left, filled = objective.reconstruct(batch, STEP)
    seen, masked = objective.views(batch["image"], Draws.of(batch, STEP))
    mask = objective.mask(Draws.of(batch, STEP))
    assert torch.equal(x, masked.x)
    true, corrupted, output = (patchify(v, 2) for v in (x, left, filled))
    assert torch.equal(output[~mask], true[~mask]) and torch.equal(corrupted[~mask], true[~mask])
    assert not corrupted[mask].any()
    guess = objective.predict(seen.x, masked.x, mask)[0]
    mean, deviation = true.mean(-1, keepdim=True), (true.var(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(output[mask], (guess * deviation + mean)[mask])


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    assert_parts_equal_whole(small(), images())


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32)])
def test_gradient_reaches_every_trainable_parameter(channels: int, size: int):
    assert_gradients_reach(CropMAE(vit(channels, size), spec(channels, size)), images(8, channels, size))
    assert_gradients_reach(with_class_token(), images())
