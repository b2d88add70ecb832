from __future__ import annotations

import pytest
import torch
from torch import nn

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.parts.taps import taps


class Two(nn.Module):
    """Doubles, then adds one, and returns more than a tensor."""

    def forward(self, x, *, extra=None):
        return {"note": "text", "values": (x * 2 + 1,)}


@pytest.fixture
def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Sequential(nn.Linear(3, 2), nn.ReLU()))


def test_outputs_and_inputs(net):
    x = torch.randn(4, 3)
    with taps(net, ["1", "2.*"]) as t:
        y = net(x)
    assert list(t) == ["1", "2.0", "2.1"] and len(t) == 3
    assert torch.equal(t["1"], net[0](x).relu()) and torch.equal(t["2.1"], y)
    with taps(net, "2.0", kind="input") as t:
        net(x)
    assert torch.equal(t["2.0"], net[0](x).relu())


def test_detach_is_a_choice(net):
    with taps(net, "1") as t:
        net(torch.randn(4, 3))
    assert not t["1"].requires_grad
    with taps(net, "1", detach=False) as t:
        net(torch.randn(4, 3))
    t["1"].sum().backward()
    assert net[0].weight.grad is not None


def test_the_last_pass_counts_and_hooks_go_away(net):
    with taps(net, "0") as t:
        net(torch.zeros(4, 3))
        net(torch.ones(2, 3))
        assert t["0"].shape[0] == 2
    net(torch.zeros(7, 3))
    assert t["0"].shape[0] == 2
    with pytest.raises(ZeroDivisionError), taps(net, "**"):
        raise ZeroDivisionError
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    t.clear()
    assert "0" not in t


def test_star_stays_within_a_component(net):
    with taps(net, "*") as t:
        net(torch.zeros(1, 3))
    assert list(t) == ["0", "1", "2"]
    with taps(net, "**") as t:
        net(torch.zeros(1, 3))
    assert list(t) == ["0", "1", "2", "2.0", "2.1"]
    with taps(net, "2.[!0]") as t:
        net(torch.zeros(1, 3))
    assert list(t) == ["2.1"]


def test_nested_outputs_and_keyword_inputs():
    net = nn.Sequential(Two())
    with taps(net, "0") as t:
        net(torch.tensor([3.0]))
    assert t["0"].item() == 7.0
    with taps(net, "0", kind="input") as t:
        net[0](x=torch.tensor([5.0]))
    assert t["0"].item() == 5.0


@pytest.mark.parametrize("attend", [None, "causal", "batch"])
def test_attention_reproduces_the_block(attend):
    torch.manual_seed(0)
    vit = build_backbone("vit_tiny", channels=3, size=16, depth=2)
    tokens = torch.randn(2, 5, 64)
    mask = {None: None, "causal": torch.ones(5, 5).tril().bool(),
            "batch": torch.rand(2, 5, 5) < 0.5}[attend]
    if attend == "batch":
        mask |= torch.eye(5, dtype=torch.bool)
    with taps(vit, "blocks.*", kind="attention") as t, taps(vit, "blocks.1.attn", kind="input") as i:
        with taps(vit, "blocks.1.attn") as o:
            vit.trunk(tokens, attend=mask)
    weights = t["blocks.1"]
    assert weights.shape == (2, 4, 5, 5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 5))
    if mask is not None:
        assert (weights[~(mask[:, None] if mask.dim() == 3 else mask).expand(2, 4, 5, 5)] == 0).all()
    attention = vit.blocks[1].attn  # values by hand: the last third of qkv, 4 heads of 16
    v = attention.qkv(i["blocks.1.attn"])[..., 128:].reshape(2, 5, 4, 16).transpose(1, 2)
    torch.testing.assert_close(attention.proj((weights @ v).transpose(1, 2).reshape(2, 5, 64)), o["blocks.1.attn"])


def test_refusals(net):
    with pytest.raises(UsageError, match="No layer is called 'blocks.9'"), taps(net, "blocks.9"):
        pass
    vit = build_backbone("vit_tiny", channels=3, size=16)
    with pytest.raises(UsageError, match="Did you mean 'blocks.3'"), taps(vit, "block.3"):
        pass
    with pytest.raises(UsageError, match="5 attention modules"), taps(vit, "blocks", kind="attention"):
        pass
    with pytest.raises(UsageError, match="holds no attention"), taps(net, "0", kind="attention"):
        pass
    with pytest.raises(UsageError, match="kind must be"), taps(net, "0", kind="weights"):
        pass
    with taps(net, "0") as t:
        with pytest.raises(UsageError, match="has not run"):
            t["0"]
        with pytest.raises(UsageError, match="is not tapped"):
            t["1"]
