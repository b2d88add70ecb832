"""FLoRA: change a kernel by a small core tensor and one thin matrix for each of its sides, without flattening it.

Si et al. 2024, arXiv:2405.14739, section 3.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.adapters._rewrite import Rewrite
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.adapter import RECIPE
from osteon.parts.reparam import Change, Layer
from osteon.parts.types import DataSpec

if TYPE_CHECKING:
    from osteon.backbones import Backbone

CARD = Card(
    kind="adapter",
    name="flora_tucker",
    papers=("FLoRA: Low-Rank Core Space for N-dimension",),
    modalities=("image", "sound"),
    differs="Factors act one after the other where the convolution has no groups (the code builds the whole change); a "
    "grouped convolution counts the channels of one group; ranks are at most the sides. Every side by its own rank is "
    "set by two options, one for channels and one for the kernel.",
    rows=(33,),
    labels=True,
    cost="1 forward and backward per image",
)


def tucker(core: Tensor, factors: list[Tensor]) -> Tensor:
    """``G x_1 A_1 x_2 A_2 ...``: core (r_1, ..., r_N), factors (d_n, r_n) -> (d_1, ..., d_N)."""
    out = core
    for factor in factors:  # the first side goes to the end, so that after N turns the order is back
        out = torch.tensordot(out, factor, dims=([0], [1]))
    return out


class TuckerDelta(Change):
    """``dW = scale * G x_1 A_1 ... x_N A_N``; the core G is zero at first, the factors are random.

    Args:
        layer: whose weight (out, in / groups[, height, width]) changes.
        rank: of the channel sides.
        kernel_rank: of the kernel sides.
        scale: factor of the change.
        dropout: share of the input dropped before the change, in training.
    """

    def __init__(self, layer: Layer, *, rank: int, kernel_rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        shape = layer.weight.shape
        ranks = ranks_for(shape, rank, kernel_rank)
        like = layer.weight
        self.core = nn.Parameter(torch.zeros(ranks, dtype=like.dtype, device=like.device))
        self.factors = nn.ParameterList(
            nn.init.kaiming_normal_(torch.empty(d, r, dtype=like.dtype, device=like.device), a=math.sqrt(3))
            for d, r in zip(shape, ranks, strict=True))
        self.scale, self.dropout = scale, nn.Dropout(dropout)

    def weight_delta(self) -> Tensor:
        """The change in the shape of the weight."""
        return self.scale * tucker(self.core, list(self.factors))

    def respond(self, x: Tensor, base: Layer) -> Tensor:
        """Factor of the input side, core with the kernel's factors, factor of the output side."""
        x = self.dropout(x)
        out, inner, *kernel = list(self.factors)
        if isinstance(base, nn.Linear):
            return self.scale * F.linear(F.linear(F.linear(x, inner.T), self.core), out)
        if base.groups > 1:
            return base._conv_forward(x, self.weight_delta(), None)
        middle = torch.einsum("oihw,yh,xw->oiyx", self.core, *kernel)
        x = base._conv_forward(F.conv2d(x, inner.T[:, :, None, None]), middle, None)
        return self.scale * F.conv2d(x, out[:, :, None, None])


def ranks_for(shape: torch.Size, rank: int, kernel_rank: int) -> tuple[int, ...]:
    """The rank of each side of a weight, at most the side: ``rank`` for channels, ``kernel_rank`` for the kernel."""
    return tuple(min(d, rank if i < 2 else kernel_rank) for i, d in enumerate(shape))


class FLoRATucker(Rewrite):
    """Change each weight by a small core tensor and one thin matrix for each of its sides.

    Args:
        backbone: pre-trained network.
        task: what is to be told apart.
        targets: layers to change: ``auto``, ``attention``, or comma-separated names or patterns.
        rank: of the sides of the channels (16 in the authors' example).
        kernel_rank: of the sides of a kernel.
        scale: factor of the change.
        dropout: share of a layer's input dropped before the change, in training.
    """

    recipe: ClassVar = {**RECIPE, "lr": 1e-3}

    def __init__(self, backbone: Backbone, task: DataSpec, *, targets: str = "auto", rank: int = 16,
                 kernel_rank: int = 2, scale: float = 4.0, dropout: float = 0.01) -> None:
        super().__init__(backbone, task)
        if rank < 1 or kernel_rank < 1 or not 0 <= dropout < 1:
            raise UsageError(f"Ranks are at least 1 and dropout lies in [0, 1), not {rank}, {kernel_rank} and "
                             f"{dropout}.", where="flora_tucker")
        self.rank, self.kernel_rank, self.scale, self.dropout = rank, kernel_rank, scale, dropout
        self.rewrite(targets)

    def change(self, name: str, layer: Layer) -> Change:
        """Core and factors of one layer."""
        return TuckerDelta(layer, rank=self.rank, kernel_rank=self.kernel_rank, scale=self.scale, dropout=self.dropout)

    def count(self, name: str, layer: Layer) -> int:
        """prod(r_n) + sum(r_n d_n)."""
        ranks = ranks_for(layer.weight.shape, self.rank, self.kernel_rank)
        return math.prod(ranks) + sum(r * d for r, d in zip(ranks, layer.weight.shape, strict=True))
