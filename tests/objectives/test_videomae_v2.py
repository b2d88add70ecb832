"""VideoMAE V2: both masks by hand, what counts by a loop, what the decoder is given, and VideoMAE as a special case."""

from __future__ import annotations

import pytest
import torch
from tests.objectives.clips import clips, spec, vit
from tests.objectives.masked import shake
from tests.objectives.pairs import STEP, assert_gradients_reach, normal

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.objectives.videomae_v2 import VideoMAEV2, running_cell, standardise_cubes, tube_mask
from osteon.parts.flops import count_forward
from osteon.parts.targets import patchify
from osteon.parts.types import Draws, Step


def small(**options) -> VideoMAEV2:
    torch.manual_seed(1)
    made = VideoMAEV2(vit(), spec(), **({"decoder_dim": 16, "decoder_depth": 1, "ratio": 0.75} | options))
    shake(made)
    return made


def draws(n: int = 8, step: int = 0) -> Draws:
    return Draws(Step(step, 10, 3), torch.arange(n), n)


def seen(objective: VideoMAEV2, batch):
    stream = Draws.of(batch, STEP)
    x = objective.views(batch["video"], stream)[0].x
    grid = objective.backbone.grid(*x.shape[2:])
    hidden = objective.mask(grid, stream.fork("mask"))
    return x, hidden, objective.asked(grid, hidden, stream.fork("decoder"))


def test_tubes_hide_the_same_places_at_every_time_rounded_down():
    mask = tube_mask((3, 4, 4), 0.9, draws()).view(8, 3, 16)
    assert (mask.sum(2) == 14).all() and torch.equal(mask, mask[:, :1].expand(-1, 3, -1))  # int(14.4)
    assert len({tuple(row.tolist()) for row in mask[:, 0]}) > 1
    assert tube_mask((1, 14, 14), 0.9, draws()).sum(1).tolist() == [176] * 8  # the authors' count
    assert tube_mask((2, 2, 5), 0.75, draws()).sum(1).tolist() == [14] * 8  # int(7.5) at each of two times


def test_the_running_cell_by_hand():
    kept = running_cell((4, 4, 4), 0.5, draws(64)).view(64, 4, 2, 2, 2, 2)  # times, (rows, 2), (columns, 2)
    cell = kept[:, :, 0, :, 0, :]
    assert torch.equal(kept, cell[:, :, None, :, None, :].expand_as(kept))  # every cell alike
    flat = cell.reshape(64, 4, 4).int()
    start = flat[:, 0].tolist()
    assert {tuple(s) for s in start} == {(0, 0, 1, 1), (0, 1, 1, 0), (1, 1, 0, 0), (1, 0, 0, 1)}
    for t in range(1, 4):  # runs on by one place a time
        assert torch.equal(flat[:, t], flat[:, t - 1].roll(-1, 1))
    for ratio in (0.25, 0.5, 0.75):
        kept = running_cell((4, 4, 6), ratio, draws()).view(8, 4, 24)
        assert (kept.sum(2) == 24 * (1 - ratio)).all() and (kept.sum(1) == 4 * (1 - ratio)).all()


def test_targets_are_standardised_a_colour_channel_by_hand():
    # Channels last: red 1, 3 (mean 2, unbiased deviation sqrt 2), green 10, 30.
    shown = torch.tensor([[[1.0, 10.0, 3.0, 30.0]]])
    half = 1 / 2**0.5
    torch.testing.assert_close(standardise_cubes(shown, 2), torch.tensor([[[-half, -half, half, half]]]))
    assert (standardise_cubes(torch.full((1, 1, 8), 3.0), 1) == 0).all()
    made = VideoMAEV2(vit(3), spec(3), ratio=0.75)
    x = normal(2, 3, 8, 16, 16)
    cubes = patchify(x * 0.2 + 0.4, 4).unflatten(-1, (64, 3))
    want = (cubes - cubes.mean(2, keepdim=True)) / (cubes.std(2, keepdim=True) + 1e-6)
    torch.testing.assert_close(made.target(x), want.flatten(2))
    shown = made.backbone.shown(x)
    torch.testing.assert_close(made.to_pixels(made.target(x), shown), shown, rtol=1e-4, atol=1e-4)


def test_loss_by_a_loop_over_cubes_hidden_and_asked_for():
    objective, batch = small(), clips()
    x, hidden, asked = seen(objective, batch)
    encoded = objective.encode(batch, Draws.of(batch, STEP))
    decoder, backbone, want = objective.decoder, objective.backbone, []
    target = objective.target(x)
    for b in range(len(x)):
        keep = (~hidden[b]).nonzero()[:, 0]
        place = asked[b].nonzero()[:, 0]
        tokens = torch.cat([decoder.embed(backbone(x[b:b + 1], keep=keep[None]).tokens[0]) + decoder.positions[0, keep],
                            decoder.mask_token + decoder.positions[0, place]])[None]
        assert tokens.shape[1] == 8 + 16  # visible and half of the grid, hidden or not
        out = decoder.out(decoder.norm(decoder.blocks[0](tokens)))[0, len(keep):]
        errors = [(out[i] - target[b, n]).square().mean() for i, n in enumerate(place.tolist()) if hidden[b, n]]
        assert 0 < len(errors) < len(place)
        want.append(torch.stack(errors).mean())
    torch.testing.assert_close(encoded["loss"], torch.stack(want), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(objective.score(encoded, STEP).total, torch.stack(want).mean(), rtol=1e-4, atol=1e-5)


def test_no_gradient_to_targets_outside_both_masks():
    objective, batch = small(), clips()
    x, hidden, asked = seen(objective, batch)
    target = normal(*objective.backbone.shown(x).shape).requires_grad_()
    objective.target = lambda _x: target  # type: ignore[method-assign]
    objective.encode(batch, Draws.of(batch, STEP))["loss"].sum().backward()
    counts = (hidden & asked)
    assert (target.grad[~counts] == 0).all() and (target.grad[counts] != 0).any(-1).all()


def test_ratio_zero_is_videomae_and_its_loss():
    objective, batch = small(decoder_ratio=0), clips()
    x, hidden, asked = seen(objective, batch)
    assert torch.equal(hidden, asked)
    encoded = objective.encode(batch, Draws.of(batch, STEP))
    keep = (~hidden).nonzero()[:, 1].view(8, -1)
    whole = objective.decoder(objective.backbone(x, keep=keep).tokens, keep)  # the image MAE's decoder, on the grid
    error = (whole - objective.target(x)).square().mean(-1)
    torch.testing.assert_close(encoded["loss"], (error * hidden).sum(1) / hidden.sum(1))
    torch.testing.assert_close(objective.predict(x, hidden)[0][hidden], whole[hidden])
    assert (objective.predict(x, hidden)[0][~hidden] == 0).all()


def test_decoder_tokens_and_operations_drop_by_the_stated_ratio():
    batch, lengths, flops = clips(), [], []
    for ratio in (0, 0.5, 0.75):
        objective = small(decoder_ratio=ratio, decoder_dim=64)
        block = objective.decoder.blocks[0]
        hook = block.register_forward_hook(lambda _m, args, _out: lengths.append(args[0].shape[1]))
        objective.encode(batch, Draws.of(batch, STEP))
        hook.remove()
        flops.append(count_forward(block, normal(8, lengths[-1], 64)))
    assert lengths == [32, 8 + 16, 8 + 8]  # of 32: 8 visible; all 24 hidden, half the grid, a quarter of it
    assert flops[1] < 0.76 * flops[0] and flops[2] < 0.51 * flops[0]


def test_the_encoder_sees_visible_cubes_alone():
    objective, batch, counts = small(), clips(), []
    objective.backbone.blocks[0].register_forward_hook(lambda _m, args, _out: counts.append(args[0].shape[1]))
    objective.encode(batch, Draws.of(batch, STEP))
    assert counts == [8]


def test_tubes_of_two_frames_and_gradients_reach_everything():
    torch.manual_seed(0)
    network = build_backbone("vit_tiny", channels=1, size=(8, 16, 16), dim=16, depth=1, heads=2, stem="tubes")
    assert network.grid(8, 16, 16) == (4, 4, 4) and network.shown_width == 32
    objective = VideoMAEV2(network, spec(), decoder_dim=16, decoder_depth=1, ratio=0.75)
    assert_gradients_reach(objective, clips())
    x, corrupted, output = objective.reconstruct(clips(), STEP)
    assert x.shape == corrupted.shape == output.shape == (8, 1, 8, 16, 16) and not torch.equal(x, output)


def test_defaults_are_the_papers():
    made = VideoMAEV2(vit(size=32), spec(size=32))
    assert made.ratio == 0.9 and made.decoder_ratio == 0.5 and len(made.decoder.blocks) == 4


@pytest.mark.parametrize(("options", "text"), [({"ratio": 0.01}, "nothing hidden"), ({"ratio": 1.0}, "nothing hidden"),
                                               ({"decoder_ratio": 0.4}, "2 x 2 tokens")])
def test_masks_that_leave_nothing_are_refused(options, text):
    with pytest.raises(UsageError, match=text):
        small(**options)


def test_networks_without_whole_cells_or_clips_are_refused():
    odd = vit(size=12)
    with pytest.raises(UsageError, match="3 x 3 tokens"):
        VideoMAEV2(odd, spec(size=12))
    assert VideoMAEV2(odd, spec(size=12), decoder_ratio=0.0).decoder_ratio == 0
    with pytest.raises(UsageError, match="one pixel"):
        VideoMAEV2(vit(patch=1, frames=2, size=4), spec(frames=2, size=4))
