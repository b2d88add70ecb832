"""SimSiam: predict one view's embedding from the other's; stopping the gradient is all that prevents collapse.

Chen & He 2020, arXiv:2011.10566, eq. 1 to 4, algorithm 1 and sec. 3.
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
    name="simsiam",
    papers=("Exploring Simple Siamese Representation Learning",),
    modalities=("image",),
    differs="The projector is as wide as the backbone (256 to 2048) instead of always 2048, the predictor's "
    "bottleneck a quarter of that, as in the paper. AdamW instead of SGD, and the predictor's learning rate decays "
    "with the others (the paper keeps it constant).",
    cost="2 forwards per image",
)


def negative_cosine(p_BVP: Tensor, z_BVP: Tensor) -> Tensor:
    """``-cos(p, z)`` of every sample and view, between -1 and 1; no gradient reaches z. (B, V, P) twice -> (B, V)."""
    return -F.cosine_similarity(p_BVP.float(), z_BVP.detach().float(), dim=-1)


def embedding_spread(z_BVP: Tensor) -> Tensor:
    """Mean over dimensions of the standard deviation of unit embeddings, times sqrt(P). (B, V, P) -> ().

    Near 1 for embeddings spread over the sphere, 0 after collapse (paper, sec. 4.1, figure 2).
    """
    unit = F.normalize(z_BVP.detach().float(), dim=-1)
    return unit.std(0, correction=0).mean() * z_BVP.shape[-1] ** 0.5


class SimSiam(Joint):
    """Each view's prediction meets the other view's embedding, held still.

    Args:
        backbone: network to train.
        data: what the data look like.
        head_width: width of the projector's three layers and of the embedding; 0 = the backbone's width, 256 to 2048.
        bottleneck: hidden width of the predictor; 0 = a quarter of the embedding's.
        crop_min: smallest area share of a crop; 0 = the rule of the view recipe.
        flip: mirror views left-right at random; None = images are, other samples are not.
        strength: strength of colour jitter; 0 = the rule of the view recipe.
    """

    recipe: ClassVar = {"optimizer": "adamw", "lr": 1.5e-3, "lr_per": 256, "lr_rule": "sqrt", "weight_decay": 0.05,
                        "warmup": 0.05}
    additive: ClassVar[bool] = True
    concat_views: ClassVar[bool] = False

    def __init__(self, backbone: Backbone, data: DataSpec, *, head_width: int = 0, bottleneck: int = 0,
                 crop_min: float = 0.0, flip: bool | None = None, strength: float = 0.0) -> None:
        width = width_of(backbone.dim, head_width, times=1, most=2048)
        super().__init__(
            backbone, data,
            views=make_views("simclr", data, flip=flip, strength=strength or None, min_scale=crop_min or None),
            projector=mlp((backbone.dim, width, width, width), last_norm=True),
            predictor=mlp((width, bottleneck or width // 4, width)))

    def agree(self, z: Tensor, p: Tensor | None, t: Tensor | None, step: Step) -> Loss:
        """Mean over samples and both directions of the negative cosine."""
        assert p is not None
        total = negative_cosine(p, z.flip(1)).mean()
        return Loss(total, {"prediction": total.detach(), "spread": embedding_spread(z)})
