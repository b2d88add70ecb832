from __future__ import annotations

import copy

import pytest
import torch
from tests.contracts.compressor_kit import network

from osteon.core.errors import DataError
from osteon.parts.surgery import apply_edits, edits_of, shape_edit


def test_unknown_and_unfit_edits_are_named():
    with pytest.raises(DataError, match="Unknown change"):
        apply_edits(network(), [{"op": "fold"}])
    with pytest.raises(DataError, match="does not fit"):
        apply_edits(network(), [{"op": "int8", "layers": ["blocks.9.attn.qkv"]}])


def test_shapes_and_sizes_that_differ_are_recorded_and_put_on_another_copy():
    net = network("maps")
    small = copy.deepcopy(net)
    block = small.layer2[1]
    block.conv1.weight = torch.nn.Parameter(block.conv1.weight[:5].detach())
    block.conv1.out_channels, block.bn1.channels = 5, 5
    for name in ("weight", "bias"):
        setattr(block.bn1, name, torch.nn.Parameter(getattr(block.bn1, name)[:5].detach()))
    block.bn1.running_mean, block.bn1.running_var = block.bn1.running_mean[:5], block.bn1.running_var[:5]
    block.conv2.weight = torch.nn.Parameter(block.conv2.weight[:, :5].detach())
    block.conv2.in_channels = 5
    edit = shape_edit(net, small)
    assert edit["tensors"]["layer2.1.conv1.weight"] == [5, 16, 3, 3] and len(edit["tensors"]) == 6
    assert edit["values"] == {"layer2.1.conv1.out_channels": 5, "layer2.1.bn1.channels": 5,
                              "layer2.1.conv2.in_channels": 5}
    again = apply_edits(network("maps"), [edit]).eval()
    again.load_state_dict(small.state_dict())
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(again(x).pooled, small(x).pooled)
    assert edits_of(again) == [edit] and not edits_of(net)


def test_edits_travel_with_a_copy_but_not_back():
    net = apply_edits(network(), [{"op": "int8", "layers": ["blocks.0.mlp.fc1"]}])
    twin = apply_edits(copy.deepcopy(net), [{"op": "int8", "layers": ["blocks.1.mlp.fc1"]}])
    assert len(edits_of(net)) == 1 and [e["layers"][0] for e in edits_of(twin)] == ["blocks.0.mlp.fc1",
                                                                                   "blocks.1.mlp.fc1"]
    edits_of(net).clear()
    assert len(edits_of(net)) == 1, "what is handed out is a copy"
