"""PELA: cut every linear layer into two thin ones, then train the thin network to give the original's features.

Guo et al. 2023, arXiv:2310.10700, sections 3.1 to 3.3.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from osteon.compressors._distil import RECIPE, MatchFeatures, need_training_data, spread_of
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.calibration import Calibration
from osteon.parts.compact import factor, thin_cost
from osteon.parts.compressor import Budget, Compressor, Fit, search
from osteon.parts.reparam import Layer, as_matrix, select_layers
from osteon.parts.surgery import note_edits, replace_layer
from osteon.parts.types import Step

if TYPE_CHECKING:
    from osteon.backbones import Backbone

CARD = Card(
    kind="compressor",
    name="pela",
    papers=("PELA: Learning Parameter-Efficient Models with Low-Rank Approximation",),
    modalities=("image", "sound", "series", "text", "table", "graph", "points", "volume", "video", "several"),
    differs="The loss of pre-training is left out: a finished run no longer holds its heads, so the features of the"
    " original are the only target. The weight term penalises only deviations above epsilon (the released code also "
    "pulls smaller ones up to epsilon). In convolutional networks kernels are cut as well, into k x k to r channels "
    "and 1 x 1.",
    rows=(30,),
    cost="2 forwards and 1 backward per image",
)


class PELA(Compressor):
    """Two thin layers in the place of each, by truncated SVD, then feature distillation on unlabelled images.

    Args:
        weight_term: weight of the penalty on the largest deviation of any weight from the original (0 = none).
        epsilon: deviation that costs nothing.
        recover: train after the cut; off gives plain truncated SVD.
        augment: views to train on: ``crop_flip`` or ``none``.
    """

    units: ClassVar[tuple[str, ...]] = ("params", "flops", "bytes", "latency")
    recipe: ClassVar[dict[str, Any]] = RECIPE

    def __init__(self, *, weight_term: float = 0.0, epsilon: float = 0.001, recover: bool = True,
                 augment: Literal["crop_flip", "none"] = "crop_flip") -> None:
        super().__init__()
        if weight_term < 0 or epsilon < 0:
            raise UsageError("weight_term and epsilon are 0 or more.", where="pela")
        self.weight_term, self.epsilon, self.recover, self.augment = weight_term, epsilon, recover, augment

    def compress(self, backbone: Backbone, budget: Budget, calibration: Calibration, fit: Fit | None,
                 seed: int) -> Backbone:
        """Search the ratio, cut, train."""
        trainer = self.trainer(fit) if self.recover else None
        if trainer is not None:
            need_training_data(calibration)
        layers = cuttable(backbone)
        result, strength = search(self.name, backbone, budget, lambda s: cut(backbone, ranks_at(layers, 1 - s)))
        ranks = ranks_at(layers, 1 - strength)
        note_edits(result, [{"op": "factor", "ranks": ranks}])
        self.notes.append(f"{len(ranks)} layers hold {100 * (1 - strength):.1f} % of their weights as thin pairs")
        if trainer is not None:
            trainer(Recovery(result, backbone, calibration, self), self.recipe)
        return result


class Recovery(MatchFeatures):
    """Feature distillation with the penalty on the weights' largest deviation."""

    def __init__(self, student: Backbone, teacher: Backbone, calibration: Calibration, method: PELA) -> None:
        super().__init__(student, teacher, calibration.spec, method.augment, spread_of(teacher, calibration))
        self.weight_term, self.epsilon = method.weight_term, method.epsilon
        self.pairs = [name for name, m in student.named_modules()
                      if isinstance(m, nn.Sequential) and hasattr(m, "down") and hasattr(m, "up")]

    def extras(self, step: Step) -> dict[str, Tensor]:
        """The penalty, where it is asked for."""
        if not self.weight_term:
            return {}
        found = []
        for name in self.pairs:
            pair: Any = self.backbone.get_submodule(name)
            teacher: Any = self.teacher.get_submodule(name)
            product = pair.up.weight.flatten(1) @ pair.down.weight.flatten(1)
            found.append(deviation(product, as_matrix(teacher.weight), self.epsilon))
        return {"weights": self.weight_term * torch.stack(found).mean()}


def deviation(product: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """``max(0, max|U V - W| - epsilon)^2``, ()."""
    return ((product - weight).abs().max() - epsilon).clamp(min=0).square()


def cuttable(network: nn.Module) -> dict[str, Layer]:
    """Linear layers (and ungrouped convolutions of convolutional networks, but the first) of 10 outputs or more."""
    layers = select_layers(network, "auto", grouped=True)
    return {name: m for name, m in layers.items() if m.weight.shape[0] >= 10 and getattr(m, "groups", 1) == 1
            and getattr(m, "padding_mode", "zeros") == "zeros"}


def ranks_at(layers: dict[str, Layer], share: float) -> dict[str, int]:
    """``k = floor(share * d_in d_out / (d_in + d_out))`` a layer, at least 1: thin pairs of that share of weights."""
    return {name: max(1, int(share * m.weight.numel() / thin_cost(m))) for name, m in layers.items()}


def cut(backbone: Backbone, ranks: dict[str, int]) -> Backbone:
    """A copy with thin pairs of these ranks."""
    network = copy.deepcopy(backbone)
    for name, rank in ranks.items():
        layer = network.get_submodule(name)
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        replace_layer(network, name, factor(layer, rank))
    return network
