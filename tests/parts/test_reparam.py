from __future__ import annotations

import pytest
import torch
from torch import nn

from osteon.core.errors import UsageError
from osteon.parts.reparam import Change, Reparam, as_matrix, merged, reparametrise, select_layers


class Ones(Change):
    """Adds ``amount`` to every weight and twice it to every bias."""

    def __init__(self, layer, cheap: bool = False) -> None:
        super().__init__()
        self.shape, self.outputs, self.cheap = layer.weight.shape, layer.weight.shape[0], cheap
        self.amount = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("kept", torch.zeros(3))

    def weight_delta(self):
        return self.amount * torch.ones(self.shape)

    def bias_delta(self):
        return 2 * self.amount * torch.ones(self.outputs)

    def respond(self, x, base):
        return nn.functional.linear(x, self.weight_delta()) if self.cheap else None


def linear() -> nn.Linear:
    layer = nn.Linear(2, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2], [3, 4], [5, 6]]))
        layer.bias.copy_(torch.tensor([1.0, 0, -1]))
    return layer


@pytest.mark.parametrize("cheap", [False, True])
def test_a_changed_layer_computes_base_plus_change_and_merges_into_a_plain_one(cheap):
    layer = linear()
    changed = Reparam(layer, Ones(layer, cheap))
    x = torch.tensor([[1.0, -1.0], [2.0, 1.0]])
    # (W + 0.5) x + (b + 1): row 1 = [1.5 * 1 - 2.5, 3.5 - 4.5, 5.5 - 6.5] + [2, 1, 0]
    want = torch.tensor([[1.0, 0.0, -1.0], [1.5 * 2 + 2.5 + 2, 3.5 * 2 + 4.5 + 1, 5.5 * 2 + 6.5]])
    torch.testing.assert_close(changed(x), want)
    plain = changed.merge()
    assert type(plain) is nn.Linear and plain.weight.requires_grad
    torch.testing.assert_close(plain(x), want)
    assert torch.equal(layer.weight, linear().weight) and not layer.weight.requires_grad
    with torch.no_grad():
        plain.weight.zero_()  # its own memory
    torch.testing.assert_close(changed(x), want)
    assert changed.cost() == {"trainable": 1, "stored": 3, "frozen": 9}
    assert changed.delta()["amount"] == 0.5


def test_a_layer_without_bias_gets_the_change_of_the_bias():
    layer = nn.Linear(2, 1, bias=False)
    changed = Reparam(layer, Ones(layer))
    assert changed.bias.tolist() == [1.0] and changed.merge().bias.tolist() == [1.0]


@pytest.mark.parametrize("options", [{"stride": 2, "padding": 1}, {"groups": 2}, {"dilation": 2},
                                     {"padding": 1, "padding_mode": "reflect"}])
def test_a_convolution_keeps_its_stride_groups_dilation_and_padding(options):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, **options)
    x = torch.randn(2, 4, 9, 9)
    changed = Reparam(layer, Ones(layer))
    by_hand = nn.Conv2d(4, 6, 3, **options)
    by_hand.load_state_dict({"weight": layer.weight + 0.5, "bias": layer.bias + 1})
    torch.testing.assert_close(changed(x), by_hand(x))
    torch.testing.assert_close(changed.merge()(x), by_hand(x))
    assert as_matrix(layer.weight).shape == (6, layer.weight[0].numel())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.blocks = nn.ModuleList(nn.ModuleDict({"attn": nn.ModuleDict({"qkv": nn.Linear(4, 4)}),
                                                   "mlp": nn.Linear(4, 4)}) for _ in range(2))
        self.deep = nn.Conv2d(4, 4, 3, groups=4)
        self.norm = nn.LayerNorm(4)


class Maps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=2)


def test_which_layers_a_rule_or_a_pattern_stands_for():
    net = Net()
    every = ["blocks.0.attn.qkv", "blocks.0.mlp", "blocks.1.attn.qkv", "blocks.1.mlp"]
    assert list(select_layers(net, "auto")) == every  # no convolutions beside attention
    assert list(select_layers(net, "attention")) == [every[0], every[2]]
    assert list(select_layers(net, "blocks.*.mlp, deep")) == [every[1], every[3], "deep"]
    assert list(select_layers(net, ["blocks.1.**"])) == ["blocks.1.attn.qkv", "blocks.1.mlp"]
    assert list(select_layers(net, "auto", convolutions=True)) == every
    assert list(select_layers(Maps(), "auto")) == ["one"]  # neither the stem nor the grouped one
    with pytest.raises(UsageError, match=r"No layer is called 'block.*'.*Layers there are: stem, blocks.\*.attn.qkv"):
        select_layers(net, "block.*")
    with pytest.raises(UsageError, match=r"matches 'norm'.*Layers there are: stem, "):
        select_layers(net, "norm")
    with pytest.raises(UsageError, match="No linear layer can be adapted.*Layers there are: stem, one, two"):
        select_layers(Maps(), "auto", convolutions=False)
    with pytest.raises(UsageError, match="no linear layer and no convolution"):
        select_layers(nn.Sequential(nn.ReLU()), "auto")
    with pytest.raises(UsageError, match="cannot change the grouped convolution deep"):
        select_layers(net, "deep", grouped=False)


def test_a_shared_layer_is_changed_wherever_it_is_used_and_adapting_twice_is_refused():
    shared = linear()
    net = nn.ModuleDict({"a": shared, "b": shared, "c": nn.Linear(2, 2)})
    made = reparametrise(net, select_layers(net, "a"), lambda _name, layer: Ones(layer))
    assert list(made) == ["a"] and net["a"] is net["b"] is made["a"] and type(net["c"]) is nn.Linear
    plain = merged(net)
    assert type(plain["a"]) is nn.Linear and plain["a"] is plain["b"] and isinstance(net["a"], Reparam)
    assert plain["a"].weight[0].tolist() == [1.5, 2.5]
    with pytest.raises(UsageError, match="adapted already"):
        reparametrise(net, select_layers(net, "c"), lambda _name, layer: Ones(layer))


@pytest.mark.parametrize("grad", [False, True])
def test_layers_that_are_read_and_not_called_see_the_change_too(grad):
    """nn.MultiheadAttention reads the weight of out_proj; the fast path of nn.TransformerEncoderLayer reads all."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).eval()
    x = torch.randn(2, 5, 8)
    names = ["self_attn.out_proj", "linear1", "linear2"]
    with torch.set_grad_enabled(grad):
        for name in names:
            plain = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).eval()
            plain.load_state_dict(layer.state_dict())
            target = plain.get_submodule(name)
            with torch.no_grad():
                target.weight += 0.5
                target.bias += 1
            want = plain(x)
            changed = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).eval()
            changed.load_state_dict(layer.state_dict())
            reparametrise(changed, select_layers(changed, name), lambda _name, inner: Ones(inner))
            torch.testing.assert_close(changed(x), want, atol=1e-5, rtol=1e-5)
