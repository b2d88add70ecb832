"""TiCo: views agree while embeddings keep away from directions that are already crowded.

Zhu et al. 2022, arXiv:2206.10698, eq. 4 and the pseudo-code. The crowding is a moving average of the embeddings'
second moments, which acts like a memory of all past embeddings.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.objectives._joint import Joint, run_heads, run_views
from osteon.parts.heads import mlp
from osteon.parts.projectors import width_of
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step
from osteon.views import make_views

CARD = Card(
    kind="objective",
    name="tico",
    papers=("TiCo: Transformation Invariance and Covariance Contrast for Self-Supervised Visual Representation "
            "Learning",),
    modalities=("image",),
    differs="The batch's second moment enters the loss without gradient, as in the port whose ImageNet runs stopped "
    "collapsing with it; no authors' code is public. The head is twice as wide as the backbone (256 to 4096) instead "
    "of always 4096. AdamW instead of LARS.",
    rows=(320,),
    cost="1 forward per image, and 1 of the companion",
)


def second_moment(z_BD: Tensor) -> Tensor:
    """Mean outer product of unit embeddings, not centred: symmetric, trace 1. (B, D) -> (D, D)."""
    return z_BD.T @ z_BD / z_BD.shape[0]


def crowding(z_BD: Tensor, moment_DD: Tensor) -> Tensor:
    """Mean of ``z^T C z``: how far embeddings point into populated directions. (B, D), (D, D) -> ()."""
    return ((z_BD @ moment_DD) * z_BD).sum(1).mean()


class TiCo(Joint):
    """Agreement of view 1 with the companion's view 2, and contrast with the memory of second moments.

    Args:
        backbone: network to train.
        data: what the data look like.
        rho: weight of the crowding term; a collapsed network's loss tends to rho.
        beta: share of the old second moment kept at every step.
        momentum: start of the companion's momentum; rises to 1 by a half cosine.
        head_width: hidden width of the head; 0 = twice the backbone's width, 256 to 4096.
        out: width D of the embedding.
        head_norm: normalisation in the head, ``batch`` (the paper's) or ``layer`` (exact under accumulation).
        crop_min: smallest area share of a crop; 0 = the rule of the view recipe.
        flip: mirror views left-right at random; None = images are, other samples are not.
        strength: strength of colour jitter.
    """

    recipe: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "lr_per": 256, "lr_rule": "sqrt", "weight_decay": 0.05,
                        "warmup": 0.05}
    moment: Tensor

    def __init__(self, backbone: Backbone, data: DataSpec, *, rho: float = 8.0, beta: float = 0.9,
                 momentum: float = 0.99, head_width: int = 0, out: int = 256,
                 head_norm: Literal["batch", "layer"] = "batch", crop_min: float = 0.0, flip: bool | None = None,
                 strength: float = 1.0) -> None:
        width = width_of(backbone.dim, head_width, times=2, most=4096)
        super().__init__(
            backbone, data,
            views=make_views("byol", data, flip=flip, strength=strength, min_scale=crop_min or None),
            projector=mlp((backbone.dim, width, out), norm=head_norm), momentum=momentum)
        self.rho, self.beta = rho, beta
        self.register_buffer("moment", torch.zeros(out, out))
        self._next: Tensor | None = None

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """The student sees view 1 only, the companion view 2 only: ``"z"`` and ``"t"`` (B, 1, P)."""
        assert self.companion is not None
        first, second = self.views(batch[self.data.modality], draws)
        features = run_views(self.backbone, [first], concat=False)
        with torch.no_grad():
            taught = run_views(self.companion["backbone"], [second], concat=False)
            target = run_heads(self.companion["projector"], taught, concat=False)
        return {"features": features[0].detach(), "z": run_heads(self.projector, features, concat=False), "t": target}

    def agree(self, z: Tensor, p: Tensor | None, t: Tensor | None, step: Step) -> Loss:
        """``1 - mean z1.z2 + rho * mean z1^T C z1`` with unit z and C including this batch."""
        assert t is not None
        online, target = F.normalize(z[:, 0].float(), dim=-1), F.normalize(t[:, 0].detach().float(), dim=-1)
        moment = self.beta * self.moment + (1 - self.beta) * second_moment(online.detach())
        disagreement = 1 - (online * target).sum(1).mean()
        crowded = crowding(online, moment)
        self._next = moment
        return Loss(disagreement + self.rho * crowded,
                    {"disagreement": disagreement.detach(), "crowding": crowded.detach()})

    def after_step(self, step: Step) -> None:
        """Move the companion and remember the second moment of the last scored batch."""
        super().after_step(step)
        if self._next is not None:
            self.moment.copy_(self._next)
            self._next = None
