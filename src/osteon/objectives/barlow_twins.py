"""Barlow Twins: each embedding feature correlates with itself across two views and with no other feature.

Zbontar et al. 2021, arXiv:2103.03230, eq. 1 and 2, sec. 2.2.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.objectives._joint import Joint
from osteon.parts.losses.cross_correlation import barlow_loss, redundancy_weight
from osteon.parts.projectors import expander, width_of
from osteon.parts.types import DataSpec, Loss, Step
from osteon.views import make_views

CARD = Card(
    kind="objective",
    name="barlow_twins",
    papers=("Barlow Twins: Self-Supervised Learning via Redundancy Reduction",),
    modalities=("image",),
    differs="The projector is 4 times as wide as the backbone (256 to 8192) instead of always 8192. Below a "
    "width of 1569 the off-diagonal weight is 8 / width instead of 0.0051, so that the diagonal does not drown it. "
    "AdamW instead of LARS, and therefore no constant factor on the loss (the release multiplies it by 0.024).",
    cost="2 forwards per image",
)


class BarlowTwins(Joint):
    """Make the cross-correlation of two views' embeddings the identity.

    Args:
        backbone: network to train.
        data: what the data look like.
        redundancy: weight of the off-diagonal term (lambda in the paper); 0 = 0.0051, or 8 / width where larger.
        head_width: width of the projector's three layers; 0 = 4 times the backbone's width, 256 to 8192.
        head_norm: normalisation in the projector, ``batch`` (the paper's) or ``layer`` (exact under accumulation).
        crop_min: smallest area share of a crop; 0 = the rule of the view recipe.
        flip: mirror views left-right at random; None = images are, other samples are not.
        strength: strength of colour jitter.
    """

    recipe: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "lr_per": 256, "lr_rule": "sqrt", "weight_decay": 0.05,
                        "warmup": 0.05}
    concat_views: ClassVar[bool] = False

    def __init__(self, backbone: Backbone, data: DataSpec, *, redundancy: float = 0.0, head_width: int = 0,
                 head_norm: Literal["batch", "layer"] = "batch", crop_min: float = 0.0, flip: bool | None = None,
                 strength: float = 1.0) -> None:
        width = width_of(backbone.dim, head_width, times=4, most=8192)
        super().__init__(
            backbone, data,
            views=make_views("byol", data, flip=flip, strength=strength, min_scale=crop_min or None),
            projector=expander((backbone.dim, width, width, width), norm=head_norm))
        self.redundancy = redundancy_weight(redundancy, width)

    def agree(self, z: Tensor, p: Tensor | None, t: Tensor | None, step: Step) -> Loss:
        """Distance of the cross-correlation from the identity."""
        total, on, off = barlow_loss(z, self.redundancy)
        return Loss(total, {"invariance": on.detach(), "redundancy": off.detach()})
