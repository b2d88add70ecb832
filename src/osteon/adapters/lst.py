"""Ladder side-tuning: a thin transformer beside the frozen one reads all its blocks; no gradient enters the backbone.

Sung et al. 2022, arXiv:2206.06522, section 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from osteon.adapters._slim import alike, cut_into, stream_channels
from osteon.adapters._tokens import read_layout
from osteon.backbones.vit import Block
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.adapter import RECIPE, Adapter
from osteon.parts.taps import taps
from osteon.parts.types import DataSpec

if TYPE_CHECKING:
    from osteon.backbones import Backbone

CARD = Card(
    kind="adapter",
    name="lst",
    papers=("LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning",),
    modalities=("image", "sound", "series", "table"),
    differs="For an image encoder and a new head instead of a language model and its frozen one, so the start is not "
    "the pre-trained function. Side blocks are cut from the backbone by the size of weights (the paper: by Fisher "
    "information, which needs labelled data) and start at random where blocks are laid out otherwise than in osteon's "
    "and timm's ViT. All blocks are read by default (the published script leaves out every fourth).",
    rows=(55,),
    backbones=("tokens",),
    labels=True,
    cost="1 forward per image; backward through a network of 1/reduction of the width",
)


def mix(alpha: Tensor, temperature: float, side: Tensor, seen: Tensor) -> Tensor:
    """``g s + (1 - g) h`` with ``g = sigmoid(alpha / T)``: side state and what comes from the backbone."""
    gate = torch.sigmoid(alpha / temperature)
    return gate * side + (1 - gate) * seen


class LST(Adapter):
    """Train a thin ladder of transformer blocks that reads the frozen backbone block by block.

    Args:
        backbone: pre-trained network.
        task: what is to be told apart.
        reduction: r, width of the backbone over width of the ladder.
        every: read every so many blocks; the last is always read.
        temperature: T of the gates; small values make them move fast.
        start: of the side blocks: cut from the backbone, or random.
        merge_last: add the backbone's last state to the ladder's, by a gate.
    """

    recipe: ClassVar = {**RECIPE, "lr": 3e-3}
    mergeable: ClassVar = False

    def __init__(self, backbone: Backbone, task: DataSpec, *, reduction: int = 8, every: int = 1,
                 temperature: float = 0.1, start: str = "pruned", merge_last: bool = False) -> None:
        super().__init__(backbone, task)
        if reduction < 1 or every < 1 or temperature <= 0 or start not in ("pruned", "random"):
            raise UsageError("reduction and every are at least 1, temperature is positive and start is pruned or "
                             f"random, not {reduction}, {every}, {temperature} and {start!r}.", where="lst")
        self.layout = read_layout(self.backbone, "lst")
        wide = backbone.token_dim
        if wide % reduction:
            raise UsageError(f"reduction must divide the backbone's width {wide}, not {reduction}.", where="lst")
        width, temp = wide // reduction, temperature
        self.width, self.temperature = width, temp
        heads = max(h for h in range(1, self.layout.heads + 1) if width % h == 0)
        depth = len(self.layout.blocks)
        self.read = sorted({*range(every - 1, depth, every), depth - 1})
        self.down = nn.ModuleList(nn.Linear(wide, width) for _ in range(len(self.read) + 1))
        self.gates = nn.Parameter(torch.zeros(len(self.read)))
        self.side = nn.ModuleList(Block(width, heads, mlp_ratio=4.0, qkv_bias=True, layer_scale=0.0, drop=0.0)
                                  for _ in self.read)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.up = nn.Linear(width, wide)
        self.last_gate = nn.Parameter(torch.zeros(())) if merge_last else None
        self._start(start, heads)

    def _start(self, start: str, heads: int) -> None:
        wide = [self.backbone.get_submodule(self.layout.blocks[i]) for i in self.read]
        if start == "random" or not alike(wide[0]) or self._hidden(wide[0]) < 4 * self.width:
            self.notes.append("side blocks start at random")
            return
        stream = stream_channels(wide, self.width)
        for small, block in zip(self.side, wide, strict=True):
            assert isinstance(small, Block)
            cut_into(small, block, stream.to(next(block.parameters()).device), heads)
        self.notes.append("side blocks are cut from the backbone's by the size of their weights")

    @staticmethod
    def _hidden(block: nn.Module) -> int:
        return int(block.get_parameter("mlp.fc1.weight").shape[0])

    def expected_trainable(self) -> int:
        """Downs (L + 1)(D w + w), gates L, blocks L (12 w^2 + 13 w), norm 2 w, up w D + D, the last gate, the head."""
        count, d, w = len(self.read), self.backbone.token_dim, self.width
        return ((count + 1) * (d * w + w) + count + count * (12 * w * w + 13 * w) + 2 * w + w * d + d
                + (self.last_gate is not None) + self.head_size)

    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D): the ladder's last state, widened and pooled as the backbone pools."""
        names = [self.layout.blocks[i] for i in self.read]
        with torch.no_grad(), taps(self.backbone, self.layout.blocks[0], kind="input") as first, \
                taps(self.backbone, names) as seen:
            pooled = self.backbone(images).pooled
        side = self.down[0](first[self.layout.blocks[0]])
        for gate, down, block, name in zip(self.gates, list(self.down)[1:], self.side, names, strict=True):
            side = block(mix(gate, self.temperature, side, down(seen[name])))
        out = self.layout.pool(self.up(self.norm(side)))
        return out if self.last_gate is None else mix(self.last_gate, self.temperature, out, pooled)

    def merge(self) -> Backbone:
        """Refused: the ladder is a network of its own."""
        raise self._refuse_merge()
