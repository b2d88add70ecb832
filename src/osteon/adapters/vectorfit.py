"""VectorFit: train all singular values of each weight and its bias; the vectors that moved most take turns resting.

Hegde et al. 2025, arXiv:2503.19530, abstract and section 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor

from osteon.adapters._rewrite import Rewrite
from osteon.adapters._singular import SingularValues
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.adapter import RECIPE
from osteon.parts.reparam import Change, Layer, as_matrix
from osteon.parts.types import DataSpec, Step

if TYPE_CHECKING:
    from osteon.backbones import Backbone

CARD = Card(
    kind="adapter",
    name="vectorfit",
    papers=("VectorFit : Adaptive Singular & Bias Vector Fine-Tuning of Pre-trained Foundation Models",),
    modalities=("any",),
    differs="Changes are trained, from zero. The code is not published: how much a vector has moved (a moving average "
    "of its mean absolute change), when vectors rest and how many are our choice. A layer without bias gets none.",
    rows=(249,),
    labels=True,
    cost="1 forward and backward per image; keeps the singular vectors in memory",
)


def to_rest(strength: Tensor, share: float) -> Tensor:
    """Which vectors rest: the ``share`` of the (V,) vectors that moved most, rounded down. -> (V,) bool.

    Movements are compared to a ten-thousandth of the largest, equal ones by place: rounding, which differs between a
    batch and its micro-batches, seldom decides. After one step of Adam all vectors have moved by the rate.
    """
    count = int(share * len(strength))
    out = torch.zeros(len(strength), dtype=torch.bool, device=strength.device)
    if count:
        coarse = (strength.double() / strength.max().clamp(min=1e-30) * 1e4).round()
        strength = coarse * len(strength) - torch.arange(len(strength), device=strength.device)
        out[strength.topk(count).indices] = True
    return out


class VectorFit(Rewrite):
    """Train all singular values of each weight and its bias; those that moved most take turns resting.

    Args:
        backbone: pre-trained network.
        task: what is to be told apart.
        targets: layers to change: ``auto``, ``attention``, or comma-separated names or patterns.
        warmup: share of the steps before any vector rests.
        periods: how often it is decided anew, after the warm-up, which vectors rest.
        resting: share of the vectors that rest in each period; 0 = none ever.
        memory: weight of the past in the moving average of how much a vector has moved.
    """

    recipe: ClassVar = {**RECIPE, "lr": 1e-2}
    strength: Tensor

    def __init__(self, backbone: Backbone, task: DataSpec, *, targets: str = "auto", warmup: float = 0.2,
                 periods: int = 8, resting: float = 0.1, memory: float = 0.9) -> None:
        super().__init__(backbone, task)
        if not (0 <= warmup < 1 and periods >= 1 and 0 <= resting < 1 and 0 <= memory < 1):
            raise UsageError("warmup, resting and memory lie in [0, 1) and periods is at least 1, not "
                             f"{warmup}, {resting}, {memory} and {periods}.", where="vectorfit")
        self.warmup, self.periods, self.resting, self.memory = warmup, periods, resting, memory
        self.rewrite(targets)
        count = sum(len(change.vectors()) for change in self.changes())
        self.register_buffer("strength", torch.zeros(count))

    def change(self, name: str, layer: Layer) -> Change:
        """Trained singular values and bias of one layer."""
        return SingularValues(layer, rank=min(as_matrix(layer.weight).shape), bias=True)

    def count(self, name: str, layer: Layer) -> int:
        """min(out, in) singular values, and out biases where the layer has them."""
        return min(as_matrix(layer.weight).shape) + (0 if layer.bias is None else layer.bias.numel())

    def changes(self) -> list[SingularValues]:
        """The change of every layer, in order."""
        return [cast(SingularValues, r.change) for r in self.layers().values()]

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Note how far each vector has moved and, at the start of a period, choose which rest until the next."""
        changes = self.changes()
        moved = torch.stack([v.abs().mean() for change in changes for v in change.vectors()])
        self.strength.mul_(self.memory).add_(moved, alpha=1 - self.memory)
        start = self.warmup * step.total
        length = max(1.0, (step.total - start) / self.periods)
        done = step.index + 1 - start
        if done < 0 or (done - 1 >= 0 and int(done // length) == int((done - 1) // length)):
            return
        rest = iter(to_rest(self.strength, self.resting).tolist())
        for change in changes:
            for i in range(len(change.vectors())):
                change.held[i] = next(rest)
