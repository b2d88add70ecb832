"""Thin transformer blocks cut out of wide ones by the size of their weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from osteon.backbones.vit import Block


def largest(importance: Tensor, count: int) -> Tensor:
    """Numbers of the ``count`` largest entries, in ascending order. (D,) -> (count,) int64."""
    return importance.topk(count).indices.sort().values


def alike(block: nn.Module) -> bool:
    """Whether a block is laid out as osteon's and timm's, so that it can be cut."""
    need = ("norm1.weight", "attn.qkv.weight", "attn.proj.weight", "norm2.weight", "mlp.fc1.weight", "mlp.fc2.weight")
    return set(need) <= set(dict(block.named_parameters()))


def stream_channels(blocks: Sequence[Any], count: int) -> Tensor:
    """The channels of the residual stream with the largest weights over all blocks, one set for all. -> (count,)."""
    total = torch.zeros(blocks[0].attn.qkv.in_features)
    for block in blocks:
        reads = (block.attn.qkv.weight, block.mlp.fc1.weight)
        writes = (block.attn.proj.weight, block.mlp.fc2.weight)
        total += sum(w.detach().cpu().square().sum(0) for w in reads)
        total += sum(w.detach().cpu().square().sum(1) for w in writes)
    return largest(total, count)


@torch.no_grad()
def cut_into(small: Block, wide: Any, stream: Tensor, heads: int) -> None:
    """Fill a thin block with the largest parts of a wide one.

    Each of the thin block's heads is cut from the wide head of its number, so that queries meet their keys; the hidden
    units of the MLP are those with the largest weights.

    Args:
        small: block of width ``len(stream)`` with ``heads`` heads.
        wide: block laid out as in timm with at least as many heads.
        stream: channels of the residual stream that stay.
        heads: of the thin block.
    """
    small.norm1.load_state_dict({k: v[stream] for k, v in wide.norm1.state_dict().items()})
    small.norm2.load_state_dict({k: v[stream] for k, v in wide.norm2.state_dict().items()})
    qkv, proj = wide.attn.qkv, wide.attn.proj
    size = qkv.in_features // wide.attn.num_heads
    inner = len(stream) // heads
    weight = qkv.weight.unflatten(0, (3, wide.attn.num_heads, size))  # (3, heads, size, D)
    rows = []
    for head in range(heads):
        found = largest(weight[:, head].square().sum((0, 2)), inner)
        rows.append(head * size + found)
    flat = torch.cat(rows)  # channels of the attention's inside that stay, head by head
    three = torch.cat([flat + i * wide.attn.num_heads * size for i in range(3)])
    _fill(small.attn.qkv, qkv, three, stream)
    _fill(small.attn.proj, proj, stream, flat)
    hidden = largest(wide.mlp.fc1.weight.square().sum(1) + wide.mlp.fc2.weight.square().sum(0),
                     small.mlp.fc1.out_features)
    _fill(small.mlp.fc1, wide.mlp.fc1, hidden, stream)
    _fill(small.mlp.fc2, wide.mlp.fc2, stream, hidden)


def _fill(small: nn.Linear, wide: nn.Linear, rows: Tensor, columns: Tensor) -> None:
    small.weight.copy_(wide.weight[rows][:, columns])
    if small.bias is not None:
        small.bias.copy_(wide.bias[rows]) if wide.bias is not None else small.bias.zero_()
