"""SVFit: train the largest singular values of each weight and leave its singular vectors as they are.

Sun et al. 2024, arXiv:2409.05926, abstract and section 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from osteon.adapters._rewrite import Rewrite
from osteon.adapters._singular import SingularValues, rank_for
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.adapter import RECIPE
from osteon.parts.reparam import Change, Layer, as_matrix
from osteon.parts.types import DataSpec

if TYPE_CHECKING:
    from osteon.backbones import Backbone

CARD = Card(
    kind="adapter",
    name="svfit",
    papers=("SVFit: Parameter-Efficient Fine-Tuning of Large Pre-Trained Models Using Singular Values",),
    modalities=("any",),
    differs="The change of the singular values is trained, from zero, and the weight is kept whole beside its singular "
    "vectors: the same function, exact at the start, and weight decay pulls to the pre-trained values. The paper does "
    "not say what 'information' is: the share of the squared singular values here. No public code: layers and learning "
    "rate are our choice. A kernel of a convolution is a matrix (out, in * height * width).",
    rows=(1,),
    labels=True,
    cost="1 forward and backward per image; keeps the singular vectors in memory",
)


class SVFit(Rewrite):
    """Train the largest singular values of each weight and leave its singular vectors as they are.

    Args:
        backbone: pre-trained network.
        task: what is to be told apart.
        targets: layers to change: ``auto``, ``attention``, or comma-separated names or patterns.
        energy: share of a weight's squared singular values that the trained ones must cover.
        rank: train exactly so many singular values a layer (at most all); 0 = by ``energy``.
    """

    recipe: ClassVar = {**RECIPE, "lr": 1e-2}

    def __init__(self, backbone: Backbone, task: DataSpec, *, targets: str = "auto", energy: float = 0.99,
                 rank: int = 0) -> None:
        super().__init__(backbone, task)
        if not 0 < energy <= 1 or rank < 0:
            raise UsageError(f"energy lies in (0, 1] and rank is 0 or more, not {energy} and {rank}.", where="svfit")
        self.energy, self.rank = energy, rank
        self.rewrite(targets)
        ranks = {name: len(r.change.shift) for name, r in self.layers().items() if isinstance(r.change, SingularValues)}
        self.notes.append("singular values a layer: " + ", ".join(f"{name} {r}" for name, r in ranks.items()))

    def change(self, name: str, layer: Layer) -> Change:
        """Trained singular values of one layer."""
        return SingularValues(layer, rank=self.rank, energy=self.energy)

    def count(self, name: str, layer: Layer) -> int:
        """r: the rank asked for, or the one that reaches the energy."""
        values = torch.linalg.svdvals(as_matrix(layer.weight).float())
        return min(self.rank, len(values)) if self.rank else rank_for(values, self.energy)
