"""Linear probe: train a linear classifier on the frozen backbone's features.

Alain & Bengio 2017, arXiv:1610.01644, section 3.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from osteon.core.card import Card
from osteon.parts.adapter import RECIPE, Adapter

if TYPE_CHECKING:
    from osteon.backbones import Backbone

CARD = Card(
    kind="adapter",
    name="linear",
    papers=("Understanding intermediate layers using linear classifier probes",),
    modalities=("any",),
    differs="Probes the last layer only. It is trained on augmented views like every other adapter; the evaluator "
    "linear_probe fits on fixed features.",
    labels=True,
    cost="1 forward per image, no backward through the backbone",
)


class Linear(Adapter):
    """Train a linear classifier on the frozen backbone's features.

    Args:
        backbone: pre-trained network.
        task: what is to be told apart.
    """

    recipe: ClassVar = {**RECIPE, "lr": 1e-2}

    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D), without a graph through the backbone."""
        with torch.no_grad():
            return self.backbone(images).pooled

    def expected_trainable(self) -> int:
        """D * K + K."""
        return self.backbone.dim * self.task.outputs + self.task.outputs

    def merge(self) -> Backbone:
        """The backbone as it was."""
        return copy.deepcopy(self.backbone)
