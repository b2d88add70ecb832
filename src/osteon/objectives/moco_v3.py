"""MoCo v3: pick out, among a batch of keys from a slowly moving copy, the other view of the same sample.

Chen, Xie & He 2021, arXiv:2104.02057, algorithm 1, eq. 1 and sec. 4.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.objectives._joint import Joint
from osteon.parts.companion import freeze
from osteon.parts.heads import mlp
from osteon.parts.projectors import width_of
from osteon.parts.types import DataSpec, Loss, Step
from osteon.views import make_views

CARD = Card(
    kind="objective",
    name="moco_v3",
    papers=("An Empirical Study of Training Self-Supervised Vision Transformers",),
    modalities=("image",),
    differs="Heads are 4 times as wide as the backbone (256 to 4096) instead of always 4096. The temperature is 0.2 "
    "for convolutional backbones too (the release: 1.0 for ResNet-50). AdamW for every backbone (the paper: LARS for "
    "ResNet-50) at 1.5e-3 for a batch of 256, scaled with the square root of the batch: 10 times the paper's, for runs "
    "of hundreds of steps.",
    cost="2 forwards per image, and 2 of the companion",
)


def info_nce(q_BP: Tensor, k_BP: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of each query's own key among all keys of the batch, times 2 T. (B, P), (B, P) -> ().

    ``-2 T mean_i log softmax_j(cos(q_i, k_j) / T)[i]``; the factor keeps the gradient's size from depending on T
    (algorithm 1). No gradient reaches the keys.
    """
    q, k = F.normalize(q_BP.float(), dim=-1), F.normalize(k_BP.detach().float(), dim=-1)
    own = torch.arange(len(q), device=q.device)
    return F.cross_entropy(q @ k.T / temperature, own) * 2 * temperature


def patch_embedding(backbone: nn.Module) -> nn.Module | None:
    """The layer that turns pixels into tokens: the first convolution of a ViT; None if there is none."""
    return next((m for m in backbone.modules() if isinstance(m, nn.Conv2d)), None)


class MoCoV3(Joint):
    """Contrast predictions with a companion's keys of the same batch, in both directions.

    Args:
        backbone: network to train.
        data: what the data look like.
        temperature: T of the softmax.
        momentum: start of the companion's momentum; rises to 1 by a half cosine.
        head_layers: layers of the projector; 0 = 3 for ViTs, 2 for convolutional backbones, as in the release.
        head_width: hidden width of projector and predictor; 0 = 4 times the backbone's width, 256 to 4096.
        out: width of the embedding.
        freeze_patch: keep a ViT's patch embedding at its initial values, for stability (sec. 4.2); no effect on
            convolutional backbones.
        crop_min: smallest area share of a crop; 0 = the rule of the view recipe.
        flip: mirror views left-right at random; None = images are, other samples are not.
        strength: strength of colour jitter.
    """

    recipe: ClassVar = {"optimizer": "adamw", "lr": 1.5e-3, "lr_per": 256, "lr_rule": "sqrt", "weight_decay": 0.1,
                        "warmup": 0.1}
    concat_views: ClassVar[bool] = False

    def __init__(self, backbone: Backbone, data: DataSpec, *, temperature: float = 0.2, momentum: float = 0.99,
                 head_layers: int = 0, head_width: int = 0, out: int = 256, freeze_patch: bool = True,
                 crop_min: float = 0.0, flip: bool | None = None, strength: float = 1.0) -> None:
        if temperature <= 0:
            raise UsageError(f"temperature={temperature} must be positive.", where="--set temperature")
        tokens = backbone.kind == "tokens"
        if tokens and freeze_patch:
            patch = patch_embedding(backbone)
            if patch is None:
                raise UsageError(f"{backbone.name} has no convolutional patch embedding to freeze.",
                                 where="freeze_patch", fix="Use --set freeze_patch=false.")
            freeze(patch)
        width = width_of(backbone.dim, head_width, times=4, most=4096)
        layers = head_layers or (3 if tokens else 2)
        super().__init__(
            backbone, data,
            views=make_views("byol", data, flip=flip, strength=strength, min_scale=crop_min or None),
            projector=mlp((backbone.dim, *[width] * (layers - 1), out), last_norm=True),
            predictor=mlp((out, width, out), last_norm=tokens), momentum=momentum)
        self.temperature = temperature
        if tokens and freeze_patch:
            self.notes.append("the patch embedding keeps its initial values (freeze_patch)")

    def agree(self, z: Tensor, p: Tensor | None, t: Tensor | None, step: Step) -> Loss:
        """Contrast view 1's predictions with view 2's keys, and the other way round, added."""
        assert p is not None and t is not None
        total = info_nce(p[:, 0], t[:, 1], self.temperature) + info_nce(p[:, 1], t[:, 0], self.temperature)
        return Loss(total, {"info_nce": total.detach()})
