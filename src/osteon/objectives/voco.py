"""VoCo: where in its sample a random crop lies, told by its likeness to the crops of a fixed grid.

Wu et al. 2024, VoCo: A Simple-yet-Effective Volume Contrastive Learning Framework for 3D Medical Image Analysis,
section 3; ``cross_volume``: Wu et al. 2024, Large-Scale 3D Medical Image Pre-training with Geometric Context Priors.
The losses are those of the authors' released code.
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.companion import Companion
from osteon.parts.heads import mlp
from osteon.parts.objective import Objective
from osteon.parts.projectors import width_of
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step
from osteon.views import normalise
from osteon.views.solids import cut

CARD = Card(
    kind="objective",
    name="voco",
    papers=(
        "VoCo: A Simple-yet-Effective Volume Contrastive Learning Framework for 3D Medical Image Analysis",
        "Large-Scale 3D Medical Image Pre-training with Geometric Context Priors",
    ),
    modalities=("image", "volume"),
    differs="The teacher starts as a copy of the student and moves after the optimiser's step; the authors' starts "
    "from other random weights and moves before it. Features are the backbone's pooled ones, not those of several "
    "levels. The grid has at most 4 x 4 base crops (3 x 3 with cross_volume) and fewer where they would be under 8 "
    "cells wide. Crops are not mirrored or turned: the paper's are, whatever their place. The second paper's "
    "segmentation branch on labelled and pseudo-labelled volumes is not part of this objective.",
    rows=(24, 34),
    cost="18 small crops a sample (11 with cross_volume), each through student and teacher",
)

#: Least gap between a similarity and 1 under the logarithm.
EPS = 1e-6


def overlaps(corner: Tensor, grid: int) -> Tensor:
    """Share of a crop that lies in each base crop of a square grid.

    Args:
        corner: (..., 2) row and column of the crop's first corner, in base crops, from 0 to ``grid - 1``.
        grid: base crops along each of the last two sides.

    Returns:
        (..., grid * grid) in raster order; every row sums to 1.
    """
    cell = torch.arange(grid, device=corner.device)
    share = (1 - (corner[..., None] - cell).abs()).clamp(min=0)  # (..., 2, grid)
    return (share[..., 0, :, None] * share[..., 1, None, :]).flatten(-2)


def similarity(crops: Tensor, bases: Tensor) -> Tensor:
    """Cosines, negative ones as 0: (B, R, P), (B, K, P) -> (B, R, K)."""
    return F.relu(F.normalize(crops.float(), dim=-1) @ F.normalize(bases.float(), dim=-1).mT)


def position_terms(s: Tensor, y: Tensor, *, squares: bool) -> tuple[Tensor, Tensor]:
    """How well similarities tell overlaps: a term where there is overlap, weighted by it, and one where there is none.

    Args:
        s: (B, R, K) similarities.
        y: (B, R, K) overlaps, or a teacher's similarities.
        squares: the term without overlap is the mean of ``s^2`` (first paper), else of ``-log(1 - s)`` (second).
    """
    near = (y * -(1 - (y - s).abs()).clamp(min=EPS).log()).sum() / y.sum().clamp(min=EPS)
    apart = y == 0
    cost = s.square() if squares else -(1 - s).clamp(min=EPS).log()
    return near, (cost * apart).sum() / apart.sum().clamp(min=1)


def base_term(bases: Tensor) -> Tensor:
    """Mean square of the similarity of different base crops of a sample; each is pushed from the others. (B, K, P)."""
    s = similarity(bases, bases.detach()).square()
    k = s.shape[-1]
    return (s.sum((1, 2)) - s.diagonal(dim1=1, dim2=2).sum(-1)).mean() / (k * (k - 1))


class VoCo(Objective):
    """Predict the overlap of random crops with a grid of base crops from the likeness of their embeddings.

    Of volumes the grid lies in the last two sides and every crop is as deep as the volume.

    Args:
        backbone: network to train.
        data: what the data look like.
        grid: base crops along each of the last two sides; 0 = 4 (3 with cross_volume), or as many as are 8 cells wide.
        crops: random crops a sample.
        cross_volume: the second paper's losses: the teacher is the moving average of the head alone, the student's
            features pass a dropout, and crops are also compared with the next sample's base crops, as the teacher does.
        momentum: of the moving average, constant.
        dropout: share of the student's features dropped with cross_volume.
        head_width: width of the head's layers; 0 = the backbone's, from 256 to 2048.
    """

    # The paper's 1e-4 at two volumes a step.
    recipe: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "lr_per": 256, "lr_rule": "sqrt", "weight_decay": 0.1,
                        "warmup": 0.05}

    def __init__(self, backbone: Backbone, data: DataSpec, *, grid: int = 0, crops: int = 2, cross_volume: bool = False,
                 momentum: float = 0.9, dropout: float = 0.2, head_width: int = 0) -> None:
        super().__init__(backbone, data)
        plane, usual = data.extent[-2:], 3 if cross_volume else 4
        self.grid = grid or max(2, min(usual, min(plane) // 8))
        if self.grid < 2 or self.grid > min(plane) or crops < 1:
            raise UsageError(f"A grid of {self.grid} x {self.grid} and {crops} crops have no meaning for samples of "
                             f"{' x '.join(map(str, data.extent))}.", where="grid, crops",
                             fix="Give a grid of 2 or more that the sides hold, and 1 crop or more.")
        if not 0 <= momentum <= 1 or not 0 <= dropout < 1:
            raise UsageError(f"momentum={momentum} or dropout={dropout} is out of range.", where="voco",
                             fix="Give a momentum in [0, 1] and a dropout in [0, 1).")
        step = backbone.stride
        self.size = (*data.extent[:-2], *(max(2, -(-side // (self.grid * step))) * step for side in plane))
        self.notes = [] if grid else [f"grid = {self.grid}: {usual}, or as many as are 8 cells wide, at least 2"]
        self.crops, self.cross_volume, self.momentum, self.dropout = crops, cross_volume, momentum, dropout
        width = width_of(backbone.dim, head_width, times=1, most=2048)
        self.projector = mlp((backbone.dim, width, width, width), last_norm=True)
        self.companion = (Companion(projector=self.projector) if cross_volume else
                          Companion(backbone=backbone, projector=self.projector))

    def places(self, draws: Draws) -> Tensor:
        """First corners (b, K + R, 2) of the base crops and of random ones, in base crops."""
        cell = torch.arange(self.grid, device=draws.device, dtype=torch.float32)
        fixed = torch.cartesian_prod(cell, cell)
        random = draws.fork("place").rand(self.crops, 2) * (self.grid - 1)
        return torch.cat([fixed.expand(len(random), -1, -1), random], 1)

    def cut(self, x: Tensor, corner: Tensor) -> Tensor:
        """Crops of samples (b, C, *extent) at corners (b, M, 2), resized: (b * M, C, *size)."""
        many = corner.shape[1]
        edges = torch.stack([corner, corner + 1], -1).flatten(0, 1) / self.grid  # (b M, 2, 2)
        deep = torch.tensor([0.0, 1.0], device=x.device).expand(len(edges), 1, 2)
        solid = x if x.dim() == 5 else x[:, :, None]
        size = self.size if len(self.size) == 3 else (1, *self.size)
        flip = torch.zeros(len(edges), 3, dtype=torch.bool, device=x.device)
        crops = cut(solid.repeat_interleave(many, 0), torch.cat([deep, edges.to(x.device)], 1), size, flip)
        return crops if x.dim() == 5 else crops[:, :, 0]

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Embeddings of all crops by student ``"z"`` and teacher ``"t"`` (b, K + R, P), overlaps ``"y"`` (b, R, K)."""
        x = normalise(batch[self.data.modality], self.data)
        corner = self.places(draws)
        count, many = corner.shape[:2]
        crops = self.cut(x, corner)
        features = self.backbone(crops).pooled
        seen = features
        if self.cross_volume and self.training and self.dropout:
            stay = draws.fork("dropout").rand(many, features.shape[1]).flatten(0, 1) >= self.dropout
            seen = features * stay.to(features) / (1 - self.dropout)
        with torch.no_grad():
            known = (features.detach() if self.cross_volume else
                     cast(Backbone, self.companion["backbone"])(crops).pooled)
            t = self.companion["projector"](known)
        return {"features": features.detach().view(count, many, -1).mean(1), "z": self.projector(seen).view(
            count, many, -1), "t": t.view(count, many, -1), "y": overlaps(corner[:, self.grid**2:], self.grid)}

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """The position terms and the term that keeps base crops apart, all of weight 1."""
        k, y = self.grid**2, encoded["y"].float()
        (bases, crops), (bases_t, crops_t) = ((v[:, :k], v[:, k:]) for v in (encoded["z"], encoded["t"]))
        apart = base_term(bases)
        if not self.cross_volume:
            s = (similarity(crops, bases_t) + similarity(crops_t, bases)) / 2
            near, far = position_terms(s, y, squares=True)
            return Loss(near + far + apart, {"position": near.detach(), "elsewhere": far.detach(),
                                             "bases": apart.detach()})
        if len(y) < 2:
            raise UsageError("A batch of one sample has no other one to compare with.", where="batch_size",
                             fix="Use a batch of 2 or more, or cross_volume=false.")
        within = sum(position_terms(similarity(crops, bases_t), y, squares=False))
        other = bases_t.roll(-1, 0)
        between = sum(position_terms(similarity(crops, other), similarity(crops_t, other), squares=False))
        total = within + between + apart
        return Loss(total, {"within": cast(Tensor, within).detach(),
                                          "between": cast(Tensor, between).detach(), "bases": apart.detach()})

    def after_step(self, step: Step) -> None:
        """Move the teacher towards the student."""
        student: dict[str, nn.Module] = {"projector": self.projector}
        self.companion.update(self.momentum, **student, **({} if self.cross_volume else {"backbone": self.backbone}))

    def companions(self) -> list[nn.Module]:
        """The moving average."""
        return [self.companion]
