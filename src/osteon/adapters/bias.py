"""BitFit: train only the biases.

Ben Zaken et al. 2022, arXiv:2106.10199, section 3.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, ClassVar

from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.adapter import RECIPE, Adapter
from osteon.parts.types import DataSpec

if TYPE_CHECKING:
    from osteon.backbones import Backbone

CARD = Card(
    kind="adapter",
    name="bias",
    papers=("BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models",),
    modalities=("any",),
    differs="Defined in the paper for BERT; here for every parameter named bias, offsets of norms included (as in the "
    "authors' code), so that convolutional networks, whose convolutions have none, train those of their norms.",
    labels=True,
    cost="1 forward and backward per image; inputs of linear layers need not be stored",
)


class Bias(Adapter):
    """Train the biases of the backbone and a new head; all weights stay.

    Args:
        backbone: pre-trained network.
        task: what is to be told apart.
    """

    recipe: ClassVar = {**RECIPE, "lr": 3e-3}

    def __init__(self, backbone: Backbone, task: DataSpec) -> None:
        super().__init__(backbone, task)
        self.names = [n for n, p in self.backbone.named_parameters() if n.rpartition(".")[2] == "bias"]
        if not self.names:
            raise UsageError("The backbone has no biases to train.", where=backbone.name,
                             fix="Choose another adapter, e.g. lora.")
        for name in self.names:
            self.backbone.get_parameter(name).requires_grad_(True)

    def expected_trainable(self) -> int:
        """One number a unit with a bias (of the columns of a table: a vector each), and the head."""
        return sum(self.backbone.get_parameter(name).numel() for name in self.names) + self.head_size

    def merge(self) -> Backbone:
        """The backbone with its new biases."""
        return copy.deepcopy(self.backbone)
