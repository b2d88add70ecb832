"""GPHT: causal at every stage, stages that take what is left over, and tokens of any window."""

from __future__ import annotations

import pytest
import torch
from tests.objectives.masked import shake

from osteon.backbones import build_backbone
from osteon.backbones.gpht import Stage, default_patch
from osteon.core.errors import UsageError


def make(channels: int = 2, **options):
    torch.manual_seed(0)
    network = build_backbone("gpht_tiny", channels=channels, size=(32,), **{
        "dim": 8, "pools": (4, 2, 1), "patch": 4, **options})
    shake(network)
    return network.eval()


def series(n: int = 2, channels: int = 2, steps: int = 32, seed: int = 0):
    return torch.randn(n, channels, steps, generator=torch.Generator().manual_seed(seed))


def test_later_values_do_not_alter_earlier_outputs():
    network, x = make(), series()
    states, stages = network.read(x)
    assert [stage.pool for stage in network.stages] == [4, 2, 1]
    assert states.shape == (2, 2, 8, 24) and [s.shape for s in stages] == [(2, 2, 8, 4)] * 3
    for token in range(1, 8):
        later = x.clone()
        later[..., 4 * token:] = series(seed=3)[..., 4 * token:]
        other, ahead = network.read(later)
        torch.testing.assert_close(other[:, :, :token], states[:, :, :token])
        for one, two in zip(ahead, stages, strict=True):
            torch.testing.assert_close(one[:, :, :token], two[:, :, :token])
            assert not torch.isclose(one[:, :, token], two[:, :, token]).all()


def test_each_stage_reads_what_the_coarser_ones_left_of_its_own_token():
    network, x = make(), series()
    rest = x.flatten(0, 1)
    for stage, want in zip(network.stages, network.read(x)[1], strict=True):
        _, ahead = stage(rest)
        torch.testing.assert_close(ahead.view(2, 2, 8, 4), want)
        left = rest.clone()
        for token in range(1, 8):  # token n was forecast by token n - 1; the first by none
            left[:, 4 * token:4 * token + 4] -= ahead[:, token - 1]
        rest = left


def test_a_stage_by_hand():
    # No block: pooled by 2 its token (1, 5, 2, 3) is (5, 3), and position 0 adds (0, 1); normalised, then mapped.
    stage = Stage(2, 4, 2, 0, 1)
    with torch.no_grad():
        stage.embed.weight.copy_(torch.eye(2))
        stage.head.weight.copy_(torch.arange(8.0).view(4, 2))
        stage.head.bias.zero_()
    states, ahead = stage(torch.tensor([[1.0, 5.0, 2.0, 3.0]]))
    torch.testing.assert_close(states, torch.tensor([[[1.0, -1.0]]]), atol=1e-4, rtol=0)  # of 5 and 4
    torch.testing.assert_close(ahead, torch.tensor([[[-1.0, -1.0, -1.0, -1.0]]]), atol=1e-4, rtol=0)


def test_channels_are_series_of_their_own():
    network, x = make(), series()
    tokens = network(x).tokens
    assert tokens.shape == (2, 8, 48) and network.apart == 2
    torch.testing.assert_close(network(x.flip(1)).tokens, torch.cat([tokens[..., 24:], tokens[..., :24]], -1))
    torch.testing.assert_close(network(x[:, :, :20]).tokens, tokens[:, :5])  # any whole number of tokens
    torch.testing.assert_close(network(x).pooled, tokens.mean(1))


def test_the_patch_follows_the_window():
    assert default_patch(336, 8) == 48 and default_patch(512, 8) == 64 and default_patch(56, 8) == 8
    with pytest.raises(UsageError, match="in 7 tokens or more"):
        default_patch(40, 8)
    network = build_backbone("gpht_mini", channels=1, size=(336,))
    assert network.count == 7 and "leaves 7 tokens" in network.notes[0]
    again = build_backbone("gpht_mini", channels=1, size=network.size, **network.options)
    assert again.options == network.options
    network.make_causal()
    assert torch.equal(network.shown(torch.arange(336.0).view(1, 1, -1))[0, 1], torch.arange(48.0, 96))


def test_gradient_reaches_every_parameter():
    network, x = make(), series()
    sum(s.square().mean() for s in network.read(x)[1]).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_refusals():
    network, x = make(), series()
    for call in (lambda: network(x, mask=torch.zeros(2, 8, dtype=torch.bool)), lambda: network(x[..., :30]),
                 lambda: network.positions((8,)), lambda: make(pools=(3, 1)), lambda: make(heads=3),
                 lambda: make(pools=()), lambda: network.stem(x)):
        with pytest.raises(UsageError):
            call()
