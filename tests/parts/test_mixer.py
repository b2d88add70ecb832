"""Mixing along one side: the gate by hand, and what a change of one value reaches."""

from __future__ import annotations

import torch
from tests.objectives.masked import shake
from torch.nn import functional as F

from osteon.parts.mixer import Mix, MixerLayer


def test_a_mix_by_hand():
    # One channel, two patches of one feature; layer norm of a single feature gives its bias, here 1, everywhere.
    mix = Mix(1, side=2, size=2, expansion=1)
    with torch.no_grad():
        mix.norm.bias.fill_(1.0)
        for layer in (mix.fc1, mix.fc2, mix.gate):
            layer.weight.zero_()
            layer.bias.zero_()
        mix.fc2.bias.copy_(torch.tensor([2.0, 4.0]))  # the MLP's output
        mix.gate.bias.copy_(torch.log(torch.tensor([1.0, 3.0])))  # weights 1/4 and 3/4
    x = torch.tensor([10.0, 20.0]).view(1, 1, 2, 1)
    torch.testing.assert_close(mix(x).flatten(), torch.tensor([10 + 0.5, 20 + 3.0]))


def test_each_mix_works_along_its_side_alone():
    x, other = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 4, 8)
    for side, size in ((1, 3), (2, 4), (3, 8)):
        mix = Mix(8, side=side, size=size)
        shake(mix)
        changed = x.clone()
        place = [0, 1, 2, 5]
        changed[0, 1, 2] = other[0, 1, 2]  # all features of one patch of one channel
        moved = (mix(changed) - mix(x)).abs().amax((0, 3)) > 0
        want = torch.zeros(3, 4, dtype=torch.bool)
        want[(slice(None) if side == 1 else 1), (slice(None) if side == 2 else 2)] = True
        assert torch.equal(moved, want), (side, place)
    assert [m.side for m in MixerLayer(4, 8, 3)] == [1, 2, 3] and [m.side for m in MixerLayer(4, 8)] == [2, 3]


def test_the_layers_and_the_gate_of_a_mix():
    mix = Mix(4, side=3, size=4)
    shake(mix)
    x = torch.randn(1, 1, 2, 4)
    y = mix.fc2(F.gelu(mix.fc1(mix.norm(x))))
    torch.testing.assert_close(mix(x), x + y * mix.gate(y).softmax(-1))
