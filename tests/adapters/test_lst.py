from __future__ import annotations

import pytest
import torch
from torch import nn

from osteon.adapters._slim import cut_into, largest, stream_channels
from osteon.adapters._tokens import block_list, read_layout
from osteon.adapters.lst import LST, mix
from osteon.backbones import build_backbone
from osteon.backbones.vit import Block
from osteon.core.errors import UsageError
from tests.contracts.adapter_kit import TASK, images, network


def test_gates_mix_half_and_half_at_first_and_move_ten_times_as_fast():
    side, seen = torch.tensor([2.0]), torch.tensor([6.0])
    assert mix(torch.tensor(0.0), 0.1, side, seen).item() == 4.0
    gate = torch.sigmoid(torch.tensor(1.0)).item()
    assert mix(torch.tensor(0.1), 0.1, side, seen).item() == pytest.approx(6 - 4 * gate)
    assert mix(torch.tensor(9.0), 0.1, side, seen).item() == pytest.approx(2.0)


def test_the_ladder_is_what_a_plain_loop_computes():
    adapter = LST(network("vit"), TASK, reduction=4).eval()
    with torch.no_grad():
        adapter.gates.copy_(torch.tensor([0.1, -0.1, 0.05]))
    base = network("vit")
    tokens = base.stem(images()) + base.positions((4, 4))
    with torch.no_grad():
        side = adapter.down[0](tokens)
        for i, block in enumerate(base.blocks):
            tokens = block(tokens)
            gate = torch.sigmoid(adapter.gates[i] / 0.1)
            side = adapter.side[i](gate * side + (1 - gate) * adapter.down[i + 1](tokens))
        want = adapter.up(adapter.norm(side)).mean(1)
        torch.testing.assert_close(adapter.encode(images()), want, atol=1e-5, rtol=1e-4)


def test_no_graph_enters_the_backbone_even_where_something_in_it_wants_gradient():
    adapter = LST(network("vit"), TASK, reduction=4).train()
    adapter.backbone.requires_grad_(True)
    recording = []
    adapter.backbone.blocks[0].register_forward_hook(lambda *_: recording.append(torch.is_grad_enabled()))
    adapter(images()).sum().backward()
    assert recording == [False]
    assert all(p.grad is None for p in adapter.backbone.parameters())
    assert all(p.grad is not None for n, p in adapter.named_parameters() if not n.startswith("backbone."))


def test_the_count_by_hand_and_blocks_left_out():
    adapter = LST(network("vit"), TASK, reduction=4)  # w = 8
    block = (3 * 64 + 24) + (64 + 8) + (256 + 32) + (256 + 8) + 32
    assert adapter.expected_trainable() == 4 * (32 * 8 + 8) + 3 + 3 * block + 16 + (8 * 32 + 32) + 132
    fewer = LST(network("vit"), TASK, reduction=4, every=2, merge_last=True)
    assert fewer.read == [1, 2] and len(fewer.side) == 2 and fewer.last_gate is not None
    assert fewer.expected_trainable() == sum(p.numel() for p in fewer.trainable().values())
    with torch.no_grad():
        fewer.last_gate.fill_(-9.0)  # all from the backbone
        torch.testing.assert_close(fewer.eval().encode(images()), network("vit")(images()).pooled)


def test_cutting_to_the_full_width_copies_the_block():
    wide = network("vit").blocks[0]
    small = Block(32, 2, mlp_ratio=4.0, qkv_bias=True, layer_scale=0.0, drop=0.0)
    cut_into(small, wide, torch.arange(32), 2)
    x = torch.randn(2, 5, 32)
    torch.testing.assert_close(small(x), wide(x), atol=1e-5, rtol=1e-4)


def test_the_largest_channels_stay_in_every_matrix_and_queries_meet_their_keys():
    wide = network("vit").blocks[0]
    with torch.no_grad():
        for p in wide.parameters():
            p.mul_(0.01)
        keep = torch.tensor([3, 8, 17, 30])
        for w in (wide.attn.qkv.weight, wide.mlp.fc1.weight):
            w[:, keep] = 1.0
        heads = wide.attn.qkv.weight.view(3, 2, 16, 32)
        heads[:, 0, [2, 5]] *= 3  # the inner channels that count, per head
        heads[:, 1, [7, 11]] *= 3
        wide.mlp.fc2.weight[:, 100:116] = 2.0
    assert largest(torch.tensor([1.0, 5.0, 3.0, 4.0]), 2).tolist() == [1, 3]
    stream = stream_channels([wide], 4)
    assert stream.tolist() == keep.tolist()
    small = Block(4, 2, mlp_ratio=4.0, qkv_bias=True, layer_scale=0.0, drop=0.0)
    cut_into(small, wide, stream, 2)
    inner = torch.tensor([2, 5, 16 + 7, 16 + 11])
    rows = torch.cat([inner, 32 + inner, 64 + inner])
    assert torch.equal(small.attn.qkv.weight, wide.attn.qkv.weight[rows][:, keep])
    assert torch.equal(small.attn.qkv.bias, wide.attn.qkv.bias[rows])
    assert torch.equal(small.attn.proj.weight, wide.attn.proj.weight[keep][:, inner])
    assert torch.equal(small.mlp.fc2.weight, wide.mlp.fc2.weight[keep][:, 100:116])
    assert torch.equal(small.norm1.weight, wide.norm1.weight[keep])


def test_side_blocks_are_cut_or_random():
    assert any("cut from" in n for n in LST(network("vit"), TASK, reduction=4).notes)
    assert any("at random" in n for n in LST(network("vit"), TASK, reduction=4, start="random").notes)
    assert any("at random" in n for n in LST(network("hf_vit"), TASK, reduction=4).notes)
    for wrong in ({"reduction": 5}, {"reduction": 0}, {"every": 0}, {"temperature": 0.0}, {"start": "fisher"}):
        with pytest.raises(UsageError, match="reduction"):
            LST(network("vit"), TASK, **wrong)


@pytest.mark.parametrize(("pool", "prefix", "first"), [("mean", 0, False), ("cls", 1, True)])
def test_the_layout_of_tokens_is_measured(pool, prefix, first):
    base = build_backbone("vit_tiny", channels=3, size=32, dim=32, depth=2, heads=4, patch=8, pool=pool)
    layout = read_layout(base, "lst")
    assert (layout.prefix, layout.first, layout.heads) == (prefix, first, 4)
    assert layout.blocks == ("blocks.0", "blocks.1")
    tokens = torch.randn(2, prefix + 16, 32)
    torch.testing.assert_close(layout.pool(tokens), tokens[:, 0] if first else tokens.mean(1))
    assert read_layout(network("hf_vit"), "lst").blocks[0].endswith("layers.0")
    assert read_layout(network("timm_vit"), "lst").prefix == 1
    assert block_list(nn.Linear(2, 2)) is None
