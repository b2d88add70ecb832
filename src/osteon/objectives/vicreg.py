"""VICReg: two views of a sample agree while every embedding dimension varies and no two dimensions say the same.

Bardes et al. 2022, arXiv:2105.04906, eq. 1 to 6 and algorithm 1.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.objectives._joint import Joint
from osteon.parts.projectors import expander, width_of
from osteon.parts.types import DataSpec, Loss, Step
from osteon.views import make_views

CARD = Card(
    kind="objective",
    name="vicreg",
    papers=("VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning",),
    modalities=("image", "sound", "series", "text", "table", "graph", "points", "volume", "video", "several"),
    backbones=("tokens", "maps", "nodes"),
    differs="The variance terms of the two views are averaged and the squared difference is averaged over dimensions, "
    "as the authors' release does; the paper's equations sum both (on one batch 22.44 here, 44.88 with summed variance "
    "terms). The expander is 4 times as wide as the backbone (256 to 8192) instead of always 8192. AdamW instead of "
    "LARS.",
    cost="2 forwards per image",
)


def invariance(a_BD: Tensor, b_BD: Tensor) -> Tensor:
    """Mean squared difference over samples and dimensions. (B, D), (B, D) -> ()."""
    return F.mse_loss(a_BD, b_BD)


def variance_hinge(z_BD: Tensor, eps: float = 1e-4) -> Tensor:
    """How much the dimensions' standard deviations fall short of 1, on average. (B, D) -> ()."""
    return F.relu(1 - torch.sqrt(z_BD.var(0) + eps)).mean()


def covariance(z_BD: Tensor) -> Tensor:
    """Sum of squared off-diagonal covariances divided by the number of dimensions. (B, D) -> ()."""
    centred = z_BD - z_BD.mean(0)
    c = centred.T @ centred / (z_BD.shape[0] - 1)
    return (c - torch.diag(c.diagonal())).square().sum() / z_BD.shape[1]


class VICReg(Joint):
    """Agreement, variance and decorrelation of two views; no negatives, no companion, no asymmetry.

    Args:
        backbone: network to train.
        data: what the data look like.
        sim: weight of the invariance term.
        var: weight of the variance term.
        cov: weight of the covariance term.
        head_width: width of the expander's three layers; 0 = 4 times the backbone's width, 256 to 8192.
        head_norm: normalisation in the expander, ``batch`` (the paper's) or ``layer`` (exact under accumulation).
        crop_min: smallest area share of a crop; 0 = the rule of the view recipe.
        flip: mirror views left-right at random; None = images are, other samples are not.
        strength: strength of colour jitter.
    """

    recipe: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "lr_per": 256, "lr_rule": "sqrt", "weight_decay": 0.05,
                        "warmup": 0.05}
    concat_views: ClassVar[bool] = False

    def __init__(self, backbone: Backbone, data: DataSpec, *, sim: float = 25.0, var: float = 25.0, cov: float = 1.0,
                 head_width: int = 0, head_norm: Literal["batch", "layer"] = "batch", crop_min: float = 0.0,
                 flip: bool | None = None, strength: float = 1.0) -> None:
        width = width_of(backbone.dim, head_width, times=4, most=8192)
        super().__init__(
            backbone, data,
            views=make_views("byol", data, flip=flip, strength=strength, min_scale=crop_min or None),
            projector=expander((backbone.dim, width, width, width), norm=head_norm))
        self.sim, self.var, self.cov = sim, var, cov

    def agree(self, z: Tensor, p: Tensor | None, t: Tensor | None, step: Step) -> Loss:
        """``sim * invariance + var * mean of the views' hinges + cov * sum of the views' covariances``."""
        if z.shape[0] < 2:
            raise UsageError("VICReg needs at least 2 samples a batch.", where="batch_size")
        a, b = z.float().unbind(1)
        agreement = invariance(a, b)
        spread = (variance_hinge(a) + variance_hinge(b)) / 2
        redundancy = covariance(a) + covariance(b)
        total = self.sim * agreement + self.var * spread + self.cov * redundancy
        return Loss(total, {"invariance": agreement.detach(), "variance": spread.detach(),
                            "covariance": redundancy.detach()})
