"""TTM: its reshape by hand, channels that stay apart until they are mixed, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from tests.objectives.masked import shake

from osteon.backbones import build_backbone
from osteon.backbones.ttm import Level, default_patch
from osteon.core.errors import UsageError


def make(channels: int = 2, size: int = 48, **options):
    torch.manual_seed(0)
    network = build_backbone("ttm_tiny", channels=channels, size=(size,), **{"dim": 16, "patch": 8, **options})
    shake(network)
    return network.eval()


def series(n: int = 3, channels: int = 2, size: int = 48, seed: int = 0):
    return torch.randn(n, channels, size, generator=torch.Generator().manual_seed(seed))


def test_levels_cut_a_vector_into_neighbouring_pieces_and_put_it_back():
    # The first half of patch 1's vector becomes piece 2, the second half piece 3, each half as wide.
    level = Level(3, 8, 2, 1, 1, 2.0, 0.0)
    seen = []
    level.layers = torch.nn.Sequential(torch.nn.Identity())
    level.layers[0].register_forward_hook(lambda _m, args, _out: seen.append(args[0]))
    x = torch.arange(24.0).view(1, 1, 3, 8)
    assert torch.equal(level(x), x)
    assert seen[0].shape == (1, 1, 6, 4) and seen[0][0, 0, 3].tolist() == [12.0, 13.0, 14.0, 15.0]


def test_levels_run_from_fine_to_coarse():
    network = make(levels=2, layers=3)
    assert [level.factor for level in network.blocks] == [2, 1] and len(network.blocks[0].layers) == 3
    assert network.blocks[0].layers[0][0].fc1.in_features == 12 and network.blocks[1].layers[0][0].fc1.in_features == 6


def test_tokens_are_the_channels_side_by_side_and_apart():
    network, x = make(), series()
    tokens = network(x).tokens
    assert tokens.shape == (3, 6, 32) and network.apart == 2
    changed = x.clone()
    changed[:, 1] += series(seed=1)[:, 1]
    other = network(changed).tokens
    assert torch.equal(other[..., :16], tokens[..., :16]) and not torch.isclose(other[..., 16:], tokens[..., 16:]).any()
    swapped = network(x.flip(1)).tokens  # the same weights for every channel
    torch.testing.assert_close(swapped, torch.cat([tokens[..., 16:], tokens[..., :16]], -1))
    mixed = make(mixing="channels")
    assert not torch.isclose(mixed(changed).tokens[..., :16], mixed(x).tokens[..., :16]).all(-1).any()


def test_the_stem_embeds_each_patch_alone_and_masks_replace_it():
    network, x = make(), series()
    want = torch.stack([torch.cat([network.patch_embed(x[:, c, 8 * n:8 * n + 8]) for c in range(2)], -1)
                        for n in range(6)], 1)
    torch.testing.assert_close(network.stem(x), want)
    mask = torch.zeros(3, 6, dtype=torch.bool)
    mask[:, 4] = True
    hidden = x.clone()
    hidden[..., 32:40] = 99.0
    token = torch.ones(32)
    assert torch.equal(network(x, mask=mask, mask_token=token).tokens,
                       network(hidden, mask=mask, mask_token=token).tokens)


def test_longer_samples_are_cut_to_their_last_steps_and_shorter_ones_refused():
    network, x = make(), series(size=60)
    assert torch.equal(network(x).pooled, network(x[..., 12:]).pooled) and network.grid(60) == (6,)
    torch.testing.assert_close(network.shown(x), network.shown(x[..., 12:]))
    with pytest.raises(UsageError, match="reads 48 steps"):
        network(x[..., :40])


def test_collected_levels_and_pooling():
    network, x = make(levels=2), series()
    out, (first, last) = network.trunk(network.stem(x), collect=(0, -1))
    assert torch.equal(out, last) and not torch.equal(first, last)
    torch.testing.assert_close(network(x).pooled, out.mean(1))


def test_sizes_stay_below_a_million_and_the_patch_follows_the_context():
    assert [default_patch(n) for n in (8, 16, 64, 336, 512)] == [1, 1, 4, 28, 32]
    for name in ("ttm_tiny", "ttm_mini", "ttm_base"):
        network = build_backbone(name, channels=1, size=(512,))
        assert sum(p.numel() for p in network.parameters()) < 1e6
    again = build_backbone(network.name, channels=1, size=network.size, **network.options)
    assert again.options == network.options and "at most 16 tokens" in network.notes[0]
    # by hand: 12 patches of width 32 in two levels of two layers, the first on 24 pieces of width 16
    tiny = build_backbone("ttm_tiny", channels=7, size=(336,))
    layer = [sum(5 * n * n + 4 * n + 2 * d for n in (p, d)) for p, d in ((24, 16), (12, 32))]
    assert sum(p.numel() for p in tiny.parameters()) == 2 * sum(layer) + 28 * 32 + 32


def test_gradient_reaches_every_parameter_and_dropout_rests_in_evaluation():
    network, x = make(dropout=0.2, mixing="channels"), series()
    network(x).tokens.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    assert torch.equal(network(x).pooled, network(x).pooled)
    network.train()
    assert not torch.equal(network(x).pooled, network(x).pooled)


def test_refusals():
    x, network = series(), make()
    for call in (lambda: network(x, keep=torch.zeros(3, 2, dtype=torch.int64)),
                 lambda: network.trunk(network.stem(x), attend=torch.ones(6, 6, dtype=torch.bool)),
                 lambda: network.trunk(network.stem(x)[:, :3]), network.make_causal,
                 lambda: build_backbone("ttm_tiny", channels=1, size=32), lambda: make(patch=7),
                 lambda: make(levels=4), lambda: make(dim=17), lambda: make(mixing="none"), lambda: make(dropout=1.0)):
        with pytest.raises(UsageError):
            call()
