"""HRA: turn the input of each frozen weight by a few trained reflections.

Yuan et al. 2024, arXiv:2405.17484, section 3. PEFT's implementation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from osteon.adapters._peft import PeftAdapter, fan_in, peft
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.adapter import RECIPE
from osteon.parts.reparam import Layer
from osteon.parts.types import DataSpec

if TYPE_CHECKING:
    from osteon.backbones import Backbone

CARD = Card(
    kind="adapter",
    name="hra",
    papers=("Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder Reflection Adaptation",),
    modalities=("any",),
    differs="The product of reflections only: its limit by Gram-Schmidt cannot start at the pre-trained weight and is "
    "not offered. The penalty is the Frobenius norm, not its square, as in the authors' code, and is off by default, "
    "since it is largest at the start, where reflections come in equal pairs. Kernels must be square.",
    rows=(208,),
    labels=True,
    cost="1 forward and backward per image, with a product of reflections a layer",
)


def orthogonality(vectors: Tensor) -> Tensor:
    """``||I - U^T U||_F`` of the columns of (d, r), scaled to unit length: 0 when they are orthogonal. -> ()."""
    unit = vectors / vectors.norm(dim=0, keepdim=True)
    return (torch.eye(unit.shape[1], device=unit.device, dtype=unit.dtype) - unit.T @ unit).norm()


class HRA(PeftAdapter):
    """Multiply each frozen weight by r trained reflections, ``W (I - 2 u u^T) ...``; singular values stay.

    Args:
        backbone: pre-trained network.
        task: what is to be told apart.
        targets: layers to change: ``auto``, ``attention``, or comma-separated names or patterns.
        rank: r, reflections a layer; even, so that they cancel in pairs at the start.
        penalty: weight of the pressure on a layer's reflections to be orthogonal (1e-4 in the authors' code).
    """

    recipe: ClassVar = {**RECIPE, "lr": 1e-3}

    def __init__(self, backbone: Backbone, task: DataSpec, *, targets: str = "auto", rank: int = 8,
                 penalty: float = 0.0) -> None:
        super().__init__(backbone, task)
        if rank < 2 or rank % 2 or penalty < 0:
            raise UsageError(f"rank must be even and at least 2 and penalty 0 or more, not {rank} and {penalty}.",
                             where="hra", fix="An odd number of reflections cannot start at the pre-trained weight.")
        self.rank, self.weight = rank, penalty
        layers = self.choose(targets)
        for name, layer in layers.items():
            sides = layer.weight.shape[2:]
            if len(set(sides)) > 1:
                raise UsageError(f"HRA in PEFT needs square kernels; {name} is {tuple(sides)}.", where="targets",
                                 fix="Leave it out.")
        self.wrap(peft.HRAConfig(r=rank, target_modules=list(layers)), layers)

    def count(self, layer: Layer) -> int:
        """r * in, kernels flattened."""
        return self.rank * fan_in(layer)

    def reflections(self) -> list[Tensor]:
        """The vectors of every layer, (in, r)."""
        return [p for name, p in self.backbone.named_parameters() if ".hra_u." in name]

    def penalty(self) -> Tensor | None:
        """How far the reflections are from orthogonal, summed over the layers and weighted, ()."""
        if not self.weight:
            return None
        return self.weight * torch.stack([orthogonality(u) for u in self.reflections()]).sum()
