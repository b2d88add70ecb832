"""CLIP: members of the same set attract on a shared sphere, all others of the batch repel.

Radford et al. 2021, arXiv:2103.00020, section 2.3 and figure 3; label smoothing and a plain learned temperature: Jia et
al. 2021 (ALIGN, arXiv:2102.05918); all pairs of more than two members: Rizhko & Bloom 2024 (AstroM3).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from osteon.backbones import Backbone
from osteon.backbones.towers import Towers
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.objective import Objective
from osteon.parts.pairs import pairs_of, symmetric_nce
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step
from osteon.views import make_views

CARD = Card(
    kind="objective",
    name="clip",
    papers=(
        "Learning Transferable Visual Models From Natural Language Supervision",
        "Scaling Up Visual and Vision-Language Representation Learning With Noisy Text Supervision",
        "AstroM$^3$: A self-supervised multimodal model for astronomy",
    ),
    modalities=("several",),
    differs="Towers are osteon's ResNets and Transformers, which pool as they always do. With three members or more "
    "the loss is the mean over all pairs of the mean of both directions (AstroM3's code sums), each pair with a scale "
    "of its own; sets in which a member is missing take part in the other pairs. ALIGN is label_smoothing=0.1, "
    "temperature=1. The scale is kept at most 100 in all cases.",
    rows=(126, 175, 407),
    backbones=("towers",),
    cost="1 forward of every encoder",
)


class CLIP(Objective):
    """Symmetric contrast between the members of sets, over every pair of modalities.

    Args:
        backbone: towers.
        data: what the data look like.
        joint: width of the shared space.
        temperature: at the start; it is learned, one for each pair of modalities.
        label_smoothing: share of the target spread evenly over the batch.
        augment: views are random crops (``crop``), or those of each modality's recipe ``simclr`` (``strong``).
        crop_min: smallest share of a member in a view; None = each modality's own.
        flip: mirror images left-right at random; None = they are.
    """

    # The paper's 5e-4 is for batches of 32,768 and long runs; 2e-3 as for SimCLR here, chosen on held-out speakers.
    recipe: ClassVar = {"optimizer": "adamw", "lr": 2e-3, "lr_per": 256, "lr_rule": "sqrt", "betas": (0.9, 0.98),
                        "weight_decay": 0.2, "warmup": 0.05}

    def __init__(self, backbone: Backbone, data: DataSpec, *, joint: int = 128, temperature: float = 0.07,
                 label_smoothing: float = 0.0, augment: Literal["crop", "strong"] = "crop",
                 crop_min: float | None = 0.8, flip: bool | None = False) -> None:
        super().__init__(towers_of(backbone), data)
        if temperature < 0.01:
            raise UsageError(f"temperature={temperature} is below 0.01, the least that is allowed.",
                             where="--set temperature")
        if not 0 <= label_smoothing < 1:
            raise UsageError(f"label_smoothing={label_smoothing} is not a share below 1.", where="--set")
        self.towers.add_joint(joint)
        if augment not in ("crop", "strong"):
            raise UsageError(f"There is no augmentation '{augment}'.", where="augment", fix="Give crop or strong.")
        one: dict[str, Any] = {"n_views": 1}
        self.views = make_views("crop_flip" if augment == "crop" else "simclr", data, min_scale=crop_min, flip=flip,
                                **one)
        self.notes = list(self.views.notes)
        self.label_smoothing = label_smoothing
        self.pairs = pairs_of(len(self.towers.members))
        self.log_scale = nn.Parameter(torch.full((len(self.pairs),), math.log(1 / temperature)))

    @property
    def towers(self) -> Towers:
        """The backbone."""
        return cast(Towers, self.backbone)

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Members in the shared space, ``"z"`` (B, M, J), and which are there, ``"there"`` (B, M)."""
        x = self.views(batch[self.data.modality], draws)[0].x
        z = torch.stack([self.towers.joint(x, m) for m in self.towers.members], 1)
        return {"z": z, "there": self.towers.members.there(x).float(), "features": z.detach().flatten(1)}

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """Mean over the pairs of members of which the batch has at least two sets."""
        z, there, names = encoded["z"], encoded["there"] > 0.5, self.towers.members.names
        total, parts = 0 * self.log_scale.sum() + 0 * z.sum(), dict[str, Tensor]()
        for i, (a, b) in enumerate(self.pairs):
            rows = (there[:, a] & there[:, b]).nonzero()[:, 0]
            if len(rows) < 2:
                continue
            scale = self.log_scale[i].clamp(max=math.log(100)).exp()
            loss = symmetric_nce(z[rows, a], z[rows, b], scale, smoothing=self.label_smoothing)
            parts[f"{names[a]}-{names[b]}"] = loss.detach()
            total = total + loss / len(self.pairs)
        return Loss(total, parts)

    def after_step(self, step: Step) -> None:
        """The scales stay at most 100."""
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(100))


def towers_of(backbone: Backbone) -> Towers:
    """The backbone, if it is towers."""
    if backbone.kind != "towers":
        raise UsageError("Members are compared by towers, an encoder each.", where="--backbone", fix="Set towers.")
    return cast(Towers, backbone)
