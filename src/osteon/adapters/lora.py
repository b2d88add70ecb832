"""LoRA: add a trained product of two thin matrices to each frozen weight.

Hu et al. 2022, arXiv:2106.09685, section 4.1. PEFT's implementation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

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
    name="lora",
    papers=("LoRA: Low-Rank Adaptation of Large Language Models",),
    modalities=("any",),
    differs="The paper adapts queries and values of attention (targets=attention comes near it: fused projections are "
    "adapted whole); the default is every linear layer and, in convolutional networks, every ungrouped convolution but "
    "the first, whose thin pair is a convolution of r filters and a 1 x 1.",
    labels=True,
    cost="1 forward and backward per image; stores the input of every adapted layer",
)


class LoRA(PeftAdapter):
    """Add a trained product of two thin matrices to each frozen weight: ``W + (alpha / r) B A``, B = 0 at first.

    Args:
        backbone: pre-trained network.
        task: what is to be told apart.
        targets: layers to change: ``auto``, ``attention``, or comma-separated names or patterns.
        rank: r, rows of A.
        alpha: scale; 0 = the rank, so that the product counts once.
        dropout: share of a layer's input dropped before A in training.
    """

    recipe: ClassVar = {**RECIPE, "lr": 2e-3}

    def __init__(self, backbone: Backbone, task: DataSpec, *, targets: str = "auto", rank: int = 8,
                 alpha: float = 0.0, dropout: float = 0.0) -> None:
        super().__init__(backbone, task)
        if rank < 1 or alpha < 0 or not 0 <= dropout < 1:
            raise UsageError(f"rank is at least 1, alpha at least 0 and dropout in [0, 1), not {rank}, {alpha} and "
                             f"{dropout}.", where="lora")
        self.rank = rank
        layers = self.choose(targets)
        self.wrap(peft.LoraConfig(r=rank, lora_alpha=cast(int, alpha or rank), lora_dropout=dropout, 
                                  target_modules=list(layers), bias="none"), layers)

    def count(self, layer: Layer) -> int:
        """r * (in + out), kernels flattened."""
        return self.rank * (fan_in(layer) + layer.weight.shape[0])
