"""Gradient harmonisation: where two contrasts pull a shared member apart, neither may undo the other.

Wu et al. 2022, "Scaling Multimodal Pre-Training via Cross-Modality Gradient Harmonization", arXiv:2211.02077.
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from osteon.backbones import Backbone
from osteon.backbones.towers import Towers
from osteon.core.card import Card
from osteon.core.errors import UsageError, nearest
from osteon.parts.objective import Objective
from osteon.parts.pairs import symmetric_nce
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step
from osteon.views import make_views

CARD = Card(
    kind="objective",
    name="harmonised",
    papers=("Scaling Multimodal Pre-Training via Cross-Modality Gradient Harmonization",),
    modalities=("several",),
    differs="Gradients are compared a sample at a time at the embedding of the member that the contrasts share, where "
    "they are exact and free, instead of at the weights of a shared backbone; the projection onto each other's normal "
    "plane and the threshold on their cosine are the paper's. How the paper's threshold moves is not known: here it "
    "rises linearly from -1 to `threshold` over training.",
    rows=(436,),
    backbones=("towers",),
    cost="1 forward of every encoder; one more backward through the loss alone",
)


def harmonise(g: Tensor, h: Tensor) -> Tensor:
    """Sum of two gradients, each without its part against the other: rows (B, D) -> (B, D).

    Where their inner product is not negative it is the plain sum; else ``g - (g.h / h.h) h + h - (g.h / g.g) g``.
    """
    inner = (g * h).sum(-1, keepdim=True).clamp(max=0)
    tiny = torch.finfo(g.dtype).tiny
    return (g - inner / (h * h).sum(-1, keepdim=True).clamp(min=tiny) * h
            + h - inner / (g * g).sum(-1, keepdim=True).clamp(min=tiny) * g)


class Harmonised(Objective):
    """Contrast of one member with each of two others, their gradients on it made to agree.

    Args:
        backbone: towers of at least three members.
        data: what the data look like.
        anchor: the member that both contrasts share; empty = the first.
        others: the two others, joined by a comma; empty = the next two.
        mode: ``project``: realign conflicting gradients; ``curriculum``: leave out samples whose gradients conflict
            more than the threshold; ``both``; or ``sum``: neither, the control.
        threshold: least cosine at the end of training, between -1 and 1.
        joint: width of the shared space.
        temperature: of the softmax.
        crop_min: smallest share of a member in a view; None = each modality's own.
        flip: mirror images left-right at random; None = they are.
    """

    recipe: ClassVar = {"optimizer": "adamw", "lr": 5e-4, "lr_per": 256, "lr_rule": "sqrt", "weight_decay": 0.05,
                        "warmup": 0.05}

    def __init__(self, backbone: Backbone, data: DataSpec, *, anchor: str = "", others: str = "", mode: str = "both",
                 threshold: float = 0.0, joint: int = 128, temperature: float = 0.07,
                 crop_min: float | None = 0.8, flip: bool | None = False) -> None:
        super().__init__(backbone, data)
        if mode not in ("project", "curriculum", "both", "sum") or not -1 <= threshold <= 1 or temperature < 0.01:
            raise UsageError("mode is project, curriculum, both or sum; threshold lies in [-1, 1]; temperature is at "
                             "least 0.01.", where="harmonised")
        names = cast(Towers, backbone).members.names
        if len(names) < 3:
            raise UsageError(f"Two contrasts need three members; these sets have {len(names)}.", where="harmonised",
                             fix="Use clip, or a manifest with three columns of modalities.")
        first = anchor or names[0]
        rest = [n.strip() for n in others.split(",")] if others else [n for n in names if n != first][:2]
        for name in (first, *rest):
            if name not in names:
                raise UsageError(f"There is no member '{name}'.{nearest(name, names)}", where="harmonised",
                                 fix=f"They are {', '.join(names)}.")
        if len({first, *rest}) != 3:
            raise UsageError("Give one anchor and two other members.", where="harmonised")
        self.at = [names.index(name) for name in (first, *rest)]
        self.terms = [f"{first}-{name}" for name in rest]
        cast(Towers, backbone).add_joint(joint)
        self.mode, self.threshold, self.temperature = mode, threshold, temperature
        self.views = make_views("crop_flip", data, min_scale=crop_min, flip=flip)
        self.notes = [*self.views.notes, f"contrasts: {' and '.join(self.terms)}"]
        unused = [cast(Towers, backbone).maps[n] for n in names if n not in (first, *rest)]
        for module in unused:
            module.requires_grad_(False)

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """The three members in the shared space, ``"z"`` (B, 3, J), and which are ``"there"`` (B, 3)."""
        x, towers = self.views(batch[self.data.modality], draws)[0].x, cast(Towers, self.backbone)
        z = torch.stack([towers.joint(x, towers.members[i]) for i in self.at], 1)
        return {"z": z, "there": towers.members.there(x)[:, self.at].float(), "features": z.detach().flatten(1)}

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """Both contrasts on the sets that have all three members; the value is their plain sum.

        The shared member gets the harmonised gradient, the others their own.
        """
        rows = (encoded["there"] > 0.5).all(1).nonzero()[:, 0]
        zero = 0 * encoded["z"].sum()
        if len(rows) < 2:
            return Loss(zero, {})
        shared, *others = encoded["z"][rows].unbind(1)
        scale = 1 / self.temperature
        with torch.enable_grad():
            apart = [shared.detach().requires_grad_() for _ in others]
            alone = [symmetric_nce(s, z.detach(), scale) for s, z in zip(apart, others, strict=True)]
            g, h = (torch.autograd.grad(loss, s)[0] for loss, s in zip(alone, apart, strict=True))
        cosine = F.cosine_similarity(g, h, dim=-1)
        level = -1 + (self.threshold + 1) * step.progress
        keep = torch.ones_like(cosine)
        if self.mode in ("curriculum", "both"):
            keep = (cosine >= level).float()
            if not keep.any():
                keep[cosine.argmax()] = 1.0
            with torch.enable_grad():
                apart = [shared.detach().requires_grad_() for _ in others]
                alone = [symmetric_nce(s, z.detach(), scale, weight=keep) for s, z in zip(apart, others, strict=True)]
                g, h = (torch.autograd.grad(loss, s)[0] for loss, s in zip(alone, apart, strict=True))
        joined = harmonise(g, h) if self.mode in ("project", "both") else g + h
        terms = [symmetric_nce(shared.detach(), z, scale, weight=keep) for z in others]
        pull = (shared * joined.detach()).sum()
        total = zero + terms[0] + terms[1] + pull - pull.detach()
        parts = {name: term.detach() for name, term in zip(self.terms, terms, strict=True)}
        return Loss(total, {**parts, "conflict": (cosine < 0).float().mean(), "kept": keep.mean()})
