"""Features behind a layer of a trained head: the layers are the head's own, and the network is stored with them."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.parts.head_layers import first_layers, put_behind, rebuilt
from osteon.parts.heads import mlp
from osteon.parts.norm import BatchNorm
from osteon.parts.surgery import apply_edits


def test_a_layer_ends_behind_its_activation_and_is_a_copy():
    head = mlp((3, 4, 5, 2), last_norm=True).eval()
    assert [type(p).__name__ for p in first_layers(head, 1)] == ["Linear", "BatchNorm", "ReLU"]
    assert [len(first_layers(head, n)) for n in (1, 2, 3)] == [3, 6, 8]
    some, x = first_layers(head, 1).eval(), torch.randn(4, 3)
    assert torch.equal(some(x), head[:3](x)) and (some(x) >= 0).all()
    nn.init.zeros_(some[0].weight)
    assert head[0].weight.abs().sum() > 0
    for wrong in (0, 4, -1):
        with pytest.raises(UsageError, match=f"layers 1 to 3; there is no layer {wrong}"):
            first_layers(head, wrong)
    with pytest.raises(UsageError, match="no chain"):
        first_layers(nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), 1)


@pytest.mark.parametrize("head", [mlp((16, 6, 2)), mlp((16, 6, 2), norm="layer", activation=nn.GELU),
                                  mlp((16, 6), last_norm=True), mlp((16, 6), last_norm=True, last_shift=True),
                                  nn.Sequential(nn.Linear(16, 6), BatchNorm(6, shift=False))])
def test_the_pooled_features_pass_them_and_an_edit_rebuilds_them(head):
    def small():
        torch.manual_seed(0)
        return build_backbone("vit_tiny", channels=1, size=8, depth=1, dim=16, heads=2).eval()

    net, x = small(), torch.randn(3, 1, 8, 8)
    layers = first_layers(head, 1).eval()
    with torch.no_grad():
        wanted = layers(net(x).pooled)
        edit = json.loads(json.dumps(put_behind(net, layers)))
        assert torch.equal(net(x).pooled, wanted) and net.dim == 6 and net(x).tokens.shape[-1] == 16
        assert torch.equal(copy.deepcopy(net)(x).pooled, wanted)
        again = small()
        apply_edits(again, [edit])
        again.load_state_dict(net.state_dict())
        assert torch.equal(again.eval()(x).pooled, wanted) and again.dim == 6
    with pytest.raises(UsageError, match="already"):
        put_behind(net, rebuilt(edit["layers"]))
    with pytest.raises(UsageError, match="Tanh cannot be stored"):
        put_behind(small(), nn.Sequential(nn.Linear(16, 2), nn.Tanh()))
