"""The state-space trunk: its scan against the recurrence, both directions, and memory that grows with length."""

from __future__ import annotations

import pytest
import torch
from tests.objectives.masked import shake
from torch.nn import functional as F

from osteon.backbones import build_backbone
from osteon.backbones._mamba import CHUNK, MambaBlock, Selective, _scan, scan
from osteon.core.errors import UsageError
from osteon.objectives.ssast import SSAST
from osteon.parts.types import DataSpec, Step


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def recurrence(decay, inflow):
    state, out = torch.zeros_like(inflow[:, 0]), []
    for t in range(inflow.shape[1]):
        state = decay[:, t] * state + inflow[:, t]
        out.append(state)
    return torch.stack(out, 1)


def test_the_scan_by_hand():
    decay, inflow = torch.tensor([[9.0, 0.5, 0.5]]), torch.tensor([[1.0, 2.0, 4.0]])
    assert scan(decay, inflow).tolist() == [[1.0, 2.5, 5.25]]


@pytest.mark.parametrize("length", [1, 2, 7, CHUNK, CHUNK + 1, 2 * CHUNK + 5])
def test_the_scan_and_its_gradient_are_those_of_the_recurrence(length):
    decay = torch.rand(2, length, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inflow, weight = normal(2, length, 3).double(), normal(2, length, 3, seed=2).double()
    want_in, got_in = ([v.clone().requires_grad_() for v in (decay, inflow)] for _ in range(2))
    want, got = recurrence(*want_in), scan(*got_in)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(_scan(decay, inflow, chunk=4), want)
    for one, two in zip(torch.autograd.grad((got * weight).sum(), got_in),
                        torch.autograd.grad((want * weight).sum(), want_in), strict=True):
        torch.testing.assert_close(one, two)


def test_strong_decay_over_many_tokens_stays_finite():
    decay = torch.full((1, 500, 2), 1e-30)
    out = scan(decay, torch.ones(1, 500, 2))
    assert torch.equal(out, torch.ones(1, 500, 2))


def test_one_direction_token_by_token():
    torch.manual_seed(0)
    part = Selective(6, 4)
    part.initialise()
    shake(part)
    x = normal(2, 9, 6)
    padded = F.pad(x, (0, 0, 3, 0))
    conv, bias = part.conv.weight[:, 0], part.conv.bias
    u = torch.stack([F.silu((padded[:, t:t + 4] * conv.T).sum(1) + bias) for t in range(9)], 1)
    state, out = torch.zeros(2, 6, 4), []
    for t in range(9):
        step, enter, leave = part.select(u[:, t]).split([1, 4, 4], -1)
        step = F.softplus(part.step(step))
        decay = torch.exp(-step[..., None] * part.log_decay.exp())
        state = decay * state + (step * u[:, t])[..., None] * enter[:, None]
        out.append((state * leave[:, None]).sum(-1) + part.skip * u[:, t])
    torch.testing.assert_close(part(x), torch.stack(out, 1), rtol=1e-4, atol=1e-5)


def test_steps_start_between_a_thousandth_and_a_tenth():
    torch.manual_seed(0)
    part = Selective(64, 4)
    part.initialise()
    size = F.softplus(part.step.bias).detach()
    assert 0.00099 < float(size.min()) < 0.01 < float(size.max()) < 0.1001
    torch.testing.assert_close(part.log_decay[0].detach().exp(), torch.tensor([1.0, 2.0, 3.0, 4.0]))


def test_with_tied_directions_a_reversed_text_gives_a_reversed_answer():
    torch.manual_seed(0)
    block = MambaBlock(8, state=4)
    shake(block)
    block.back.load_state_dict(block.ahead.state_dict())
    x = normal(2, 11, 8)
    torch.testing.assert_close(block(x.flip(1)), block(x).flip(1), rtol=1e-4, atol=1e-5)
    shake(block.back, 0.3)
    assert not torch.isclose(block(x.flip(1)), block(x).flip(1), atol=1e-3).all()
    for place in (0, 10):  # every token sees both ends
        other = x.clone()
        other[:, place, 0] += 3
        assert ((block(other) - block(x)).abs().amax(-1) > 0).all()
    value, gate = block.enter(block.norm(x)).chunk(2, -1)
    mixed = (block.ahead(value) + block.back(value.flip(1)).flip(1)) / 2
    torch.testing.assert_close(block(x), x + block.leave(mixed * F.silu(gate)))


def test_memory_of_the_gradient_grows_with_length():
    kept = []
    for length in (128, 256, 512):
        total = 0

        def count(tensor):
            nonlocal total
            total += tensor.numel()
            return tensor

        block = MambaBlock(8, state=4)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            block(normal(1, length, 8)).sum()
        kept.append(total)
    assert 1.9 < kept[1] / kept[0] < 2.1 and 1.9 < kept[2] / kept[1] < 2.1
    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t.numel()) or t, lambda t: t):
        scan(normal(1, 500, 3).requires_grad_(), normal(1, 500, 3))
    assert held == [1500, 1500]  # decays and states, no pass in between


def test_the_trunk_is_an_option_of_the_transformer_and_ssast_trains_it():
    torch.manual_seed(0)
    spec = DataSpec("sound", 1, 48, (1.0,), (2.0,), 1.0, shape=(32, 48))
    network = build_backbone("vit_tiny", channels=1, size=(32, 48), dim=16, depth=2, heads=2, patch=4, trunk="mamba",
                             state=4)
    assert all(isinstance(b, MambaBlock) for b in network.blocks) and network.options["trunk"] == "mamba"
    method = SSAST(network, spec)
    batch = {"sound": normal(4, 1, 32, 48) * 2 + 1, "index": torch.arange(4)}
    method(batch, Step(3, 10, 7)).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    keep = torch.tensor([[0, 5, 9]] * 4)
    assert network(batch["sound"], keep=keep).tokens.shape == (4, 3, 16)
    again = build_backbone("vit_tiny", channels=1, size=(32, 48), **network.options)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(batch["sound"]).pooled, network(batch["sound"]).pooled)
    assert "trunk" not in build_backbone("vit_tiny", channels=1, size=(32, 48)).options


def test_refusals():
    network = build_backbone("vit_tiny", channels=1, size=16, depth=1, trunk="mamba")
    with pytest.raises(UsageError, match="no attention to restrict"):
        network.trunk(normal(1, 4, 64), attend=torch.ones(4, 4, dtype=torch.bool))
    with pytest.raises(UsageError):
        network.make_causal()
    for wrong in ({"trunk": "lstm"}, {"trunk": "mamba", "state": 0}, {"trunk": "mamba", "causal": True}):
        with pytest.raises(UsageError):
            build_backbone("vit_tiny", channels=1, size=16, **wrong)
