"""BYOL: predict the embedding that a slowly moving copy of the network gives to another view; no negatives.

Grill et al. 2020, arXiv:2006.07733, eq. 2 and 3, sec. 3.2 and 3.3.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.objectives._joint import Joint
from osteon.parts.heads import mlp
from osteon.parts.projectors import width_of
from osteon.parts.types import DataSpec, Loss, Step
from osteon.views import make_views

CARD = Card(
    kind="objective",
    name="byol",
    papers=("Bootstrap your own latent: A new approach to self-supervised Learning",),
    modalities=("image", "sound", "series", "text", "table", "graph", "points", "volume", "video", "several"),
    backbones=("tokens", "maps", "nodes"),
    differs="Heads are twice as wide as the backbone (256 to 4096) instead of always 4096. The companion's momentum "
    "starts at 0.99 (the paper's for 300 epochs) instead of 0.996 (1,000 epochs). AdamW instead of LARS.",
    cost="2 forwards per image, and 2 of the companion",
)


def prediction_error(p_BVP: Tensor, t_BVP: Tensor) -> Tensor:
    """Squared distance of unit vectors, ``2 - 2 cos(p, t)``, of every sample and view. (B, V, P) twice -> (B, V).

    Between 0 (same direction) and 4 (opposite). No gradient reaches ``t``.
    """
    return 2 - 2 * F.cosine_similarity(p_BVP.float(), t_BVP.detach().float(), dim=-1)


class BYOL(Joint):
    """Each view's prediction meets the companion's embedding of the other view.

    Args:
        backbone: network to train.
        data: what the data look like.
        momentum: start of the companion's momentum; rises to 1 by a half cosine.
        head_width: hidden width of projector and predictor; 0 = twice the backbone's width, 256 to 4096.
        out: width of the embedding.
        crop_min: smallest area share of a crop; 0 = the rule of the view recipe.
        flip: mirror views left-right at random; None = images are, other samples are not.
        strength: strength of colour jitter.
    """

    recipe: ClassVar = {"optimizer": "adamw", "lr": 1.5e-3, "lr_per": 256, "lr_rule": "sqrt", "weight_decay": 0.05,
                        "warmup": 0.05}
    additive: ClassVar[bool] = True
    concat_views: ClassVar[bool] = False

    def __init__(self, backbone: Backbone, data: DataSpec, *, momentum: float = 0.99, head_width: int = 0,
                 out: int = 256, crop_min: float = 0.0, flip: bool | None = None, strength: float = 1.0) -> None:
        width = width_of(backbone.dim, head_width, times=2, most=4096)
        super().__init__(
            backbone, data,
            views=make_views("byol", data, flip=flip, strength=strength, min_scale=crop_min or None),
            projector=mlp((backbone.dim, width, out), bias=True), predictor=mlp((out, width, out), bias=True),
            momentum=momentum)

    def agree(self, z: Tensor, p: Tensor | None, t: Tensor | None, step: Step) -> Loss:
        """Errors of predicting view 2 from view 1 and view 1 from view 2, added, mean over samples."""
        assert p is not None and t is not None
        total = prediction_error(p, t.flip(1)).sum(1).mean()
        return Loss(total, {"prediction": total.detach()})
