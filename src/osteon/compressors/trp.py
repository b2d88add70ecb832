"""TRP: train a network while its weights are pushed to low rank again and again, then cut it without loss.

Xu et al. 2020, arXiv:2004.14566 (first 1910.04576), sections 3.1 to 3.3.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from osteon.compressors._distil import RECIPE, MatchFeatures, need_training_data, spread_of
from osteon.compressors.pela import cuttable
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.calibration import Calibration
from osteon.parts.compact import Form, factor, fat_weight, thin_cost, thin_matrix
from osteon.parts.compressor import Budget, Compressor, Fit, search
from osteon.parts.reparam import Layer
from osteon.parts.surgery import note_edits, replace_layer
from osteon.parts.types import Step

if TYPE_CHECKING:
    from osteon.backbones import Backbone

CARD = Card(
    kind="compressor",
    name="trp",
    papers=("TRP: Trained Rank Pruning for Efficient Deep Neural Networks",),
    modalities=("image", "sound", "series", "text", "table", "graph", "points", "volume", "video", "several"),
    differs="Trained on the features of the original network instead of labels. Projections keep a share of the "
    "energy (95 %, the paper 99 %), but from the middle of training on no more than the ranks that meet the "
    "budget: the fewest singular values that reach one share of energy in every layer at the start. The paper "
    "has no budget and cuts at a threshold in the end. The nuclear norm's sub-gradient is that of the last "
    "projection. Linear layers and strided and 1 x 1 kernels are cut too.",
    rows=(346,),
    cost="2 forwards and 1 backward per image; an SVD of every layer at each projection",
)


class TRP(Compressor):
    """Project every weight to low rank every few steps of training, so that the cut at the end changes nothing.

    Args:
        every: steps between projections, m.
        nuclear_weight: weight of the nuclear norm, lambda.
        energy: share of the squared singular values that a projection keeps in the first part of training.
        settle: share of training after which projections keep no more than the ranks of the budget.
        form: layout of kernels: ``channel`` (k x k, then 1 x 1) or ``spatial`` (k x 1, then 1 x k).
        augment: views to train on: ``crop_flip`` or ``none``.
    """

    units: ClassVar[tuple[str, ...]] = ("params", "flops", "bytes", "latency")
    recipe: ClassVar[dict[str, Any]] = RECIPE

    def __init__(self, *, every: int = 20, nuclear_weight: float = 3e-4, energy: float = 0.95, settle: float = 0.5,
                 form: Literal["channel", "spatial"] = "channel",
                 augment: Literal["crop_flip", "none"] = "crop_flip") -> None:
        super().__init__()
        if every < 1 or nuclear_weight < 0:
            raise UsageError("every is at least 1 and nuclear_weight 0 or more.", where="trp")
        if not 0 <= energy <= 1 or not 0 <= settle <= 1:
            raise UsageError(f"energy and settle are shares, not {energy} and {settle}.", where="trp")
        self.every, self.nuclear_weight, self.form, self.augment = every, nuclear_weight, form, augment
        self.energy, self.settle = energy, settle

    def compress(self, backbone: Backbone, budget: Budget, calibration: Calibration, fit: Fit | None,
                 seed: int) -> Backbone:
        """Choose ranks, train with projections, cut."""
        trainer = self.trainer(fit)
        need_training_data(calibration)
        layers = cuttable(backbone)
        spectra = {name: torch.linalg.svdvals(thin_matrix(m.weight.detach(), self.form).double())
                   for name, m in layers.items()}
        _, strength = search(self.name, backbone, budget,
                             lambda s: cut(backbone, self.ranks(layers, spectra, 1 - s), self.form))
        ranks = self.ranks(layers, spectra, 1 - strength)
        self.notes.append(f"{len(ranks)} layers train to low rank, at {100 * (1 - strength):.1f} % of their energy")
        objective = LowRankTraining(copy.deepcopy(backbone), backbone, calibration, self, ranks)
        trainer(objective, self.recipe)
        objective.project()
        result = cut(objective.backbone, ranks, self.form)
        note_edits(result, [{"op": "factor", "ranks": ranks, "form": self.form}])
        return result

    def ranks(self, layers: dict[str, Layer], spectra: dict[str, Tensor], energy: float) -> dict[str, int]:
        """Ranks that reach a share of energy, for the layers that thin pairs make smaller."""
        found = {name: rank_for(s, energy) for name, s in spectra.items()}
        return {name: r for name, r in found.items() if r * thin_cost(layers[name], self.form)
                < layers[name].weight.numel()}


class LowRankTraining(MatchFeatures):
    """Feature distillation of a whole-size network whose weights are projected to low rank every few steps."""

    def __init__(self, student: Backbone, teacher: Backbone, calibration: Calibration, method: TRP,
                 ranks: dict[str, int]) -> None:
        super().__init__(student.requires_grad_(True), teacher, calibration.spec, method.augment,
                         spread_of(teacher, calibration))
        self.ranks, self.every, self.form = ranks, method.every, method.form
        self.nuclear_weight, self.energy, self.settle = method.nuclear_weight, method.energy, method.settle
        for i, name in enumerate(ranks):
            self.register_buffer(f"direction_{i}", torch.zeros_like(self.weight_of(name)))
        self.project(0.0)

    def weight_of(self, name: str) -> Tensor:
        """The weight of a layer."""
        weight = self.backbone.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        return weight

    def extras(self, step: Step) -> dict[str, Tensor]:
        """``lambda <W, U V^T>``, whose gradient is the nuclear norm's sub-gradient at the last projection."""
        if not self.nuclear_weight or not self.ranks:
            return {}
        terms = [(self.weight_of(name) * self.get_buffer(f"direction_{i}")).sum() for i, name in enumerate(self.ranks)]
        return {"nuclear": self.nuclear_weight * torch.stack(terms).sum()}

    def after_step(self, step: Step) -> None:
        """Project before the next forward pass, every few steps."""
        if (step.index + 1) % self.every == 0:
            self.project((step.index + 1) / step.total)

    @torch.no_grad()
    def project(self, progress: float = 1.0) -> None:
        """Truncate every chosen weight and remember U V^T of what is left.

        Before the share ``settle`` of training a weight keeps ``energy`` of its squared singular values, if that takes
        more than the rank it is to end with; from then on that rank.
        """
        for i, (name, rank) in enumerate(self.ranks.items()):
            weight = self.weight_of(name)
            thin = thin_matrix(weight, self.form)
            if progress < self.settle:
                rank = max(rank, rank_for(torch.linalg.svdvals(thin.double()), self.energy))
            low, direction = truncate(thin, rank)
            weight.copy_(fat_weight(low, weight.shape, self.form))
            self.get_buffer(f"direction_{i}").copy_(fat_weight(direction, weight.shape, self.form))


def truncate(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The closest matrix of a rank, and U V^T of its singular vectors: the nuclear norm's sub-gradient there."""
    u, s, vh = torch.linalg.svd(matrix.detach().double(), full_matrices=False)
    u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    return ((u * s) @ vh).to(matrix.dtype), (u @ vh).to(matrix.dtype)


def rank_for(values: Tensor, energy: float) -> int:
    """Fewest singular values whose squares make up a share of all squares; at least 1."""
    share = values.square().cumsum(0) / values.square().sum().clamp(min=1e-300)
    return min(len(values), int((share < energy - 1e-12).sum()) + 1)


def cut(backbone: Backbone, ranks: dict[str, int], form: Form) -> Backbone:
    """A copy with thin pairs of these ranks."""
    network = copy.deepcopy(backbone)
    for name, rank in ranks.items():
        layer = network.get_submodule(name)
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        replace_layer(network, name, factor(layer, rank, form))
    return network
