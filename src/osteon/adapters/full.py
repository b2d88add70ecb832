"""Full fine-tuning: every weight trains, deeper layers more slowly.

Layer-wise decay of the learning rate: Clark et al. 2020 (ELECTRA), arXiv:2003.10555, section 3.2 and appendix A.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from osteon.core.card import Card
from osteon.parts.adapter import RECIPE, Adapter
from osteon.parts.types import DataSpec

if TYPE_CHECKING:
    from osteon.backbones import Backbone

CARD = Card(
    kind="adapter",
    name="full",
    papers=("ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators",),
    modalities=("any",),
    differs="The paper names the decay per layer for Transformers; in convolutional networks a stage counts as one. "
    "Tokens and tables that the pre-training froze stay frozen.",
    labels=True,
    cost="1 forward and backward per image through the whole network",
)


class Full(Adapter):
    """Train every weight of the backbone and a new head: the control of every other adapter.

    The delta holds the whole network. The learning rate of a layer is ``layer_decay`` times that of the layer above it
    (a training setting, 0.75 by default).

    Args:
        backbone: pre-trained network.
        task: what is to be told apart.
    """

    recipe: ClassVar = {**RECIPE, "lr": 1e-3, "weight_decay": 0.05, "layer_decay": 0.75}

    def __init__(self, backbone: Backbone, task: DataSpec) -> None:
        super().__init__(backbone, task)
        # What pre-training does not train (a mask token of transformers) gets no gradient here either.
        for mine, given in zip(self.backbone.parameters(), backbone.parameters(), strict=True):
            mine.requires_grad_(given.requires_grad)
        if not any(p.requires_grad for p in self.backbone.parameters()):
            self.backbone.requires_grad_(True)

    def train(self, mode: bool = True) -> Full:
        """Training mode everywhere: BatchNorm takes the statistics of the new data."""
        nn.Module.train(self, mode)
        return self

    def expected_trainable(self) -> int:
        """Every number of the backbone that training reaches, and the head."""
        return sum(p.numel() for p in self.backbone.parameters() if p.requires_grad) + self.head_size

    def state_kept(self) -> dict[str, Tensor]:
        """Statistics of BatchNorm, which move in training."""
        stored = self.state_dict()
        return {name: b for name, b in self.named_buffers() if name in stored}

    @torch.no_grad()
    def merge(self) -> Backbone:
        """The trained backbone."""
        return copy.deepcopy(self.backbone)
