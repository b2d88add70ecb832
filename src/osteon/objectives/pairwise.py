"""Pairwise contrast: each modality's view of a set picks out every other modality's view of the same set.

Franceschini et al. 2022, "Multimodal emotion recognition with modality-pairwise unsupervised contrastive loss": one
encoder and projector a modality, the contrast summed over all ordered pairs of modalities, nothing fused in training.
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones import Backbone
from osteon.backbones.towers import Towers
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.heads import mlp
from osteon.parts.objective import Objective
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step
from osteon.views import make_views

CARD = Card(
    kind="objective",
    name="pairwise",
    papers=("Multimodal Emotion Recognition with Modality-Pairwise Unsupervised Contrastive Loss",),
    modalities=("several",),
    differs="Two windows of time are two views of each member by its modality's recipe `simclr`, in their order; the "
    "authors' code divides the log-likelihood by the number of positives plus one, which only halves the rate, and is "
    "left out. The projector is as wide as 2 x `out`. Batches are not balanced by label: none is read.",
    rows=(73,),
    backbones=("towers",),
    cost="2 forwards of every encoder",
)


def cross_window_nce(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Each window of a picks the other window of the same set among b's, the window of its own moment left out.

    With a single window the positive is that one, which is one direction of CLIP's loss.

    Args:
        a: anchors (B, W, D) on the unit sphere, W = 1 or 2 windows.
        b: candidates (B, W, D).
        temperature: of the softmax.

    Returns:
        ().
    """
    count, windows, _ = a.shape
    logits = a.float().flatten(0, 1) @ b.float().flatten(0, 1).T / temperature  # (B W, B W), windows side by side
    rows = torch.arange(count * windows, device=a.device)
    if windows == 2:
        logits = logits.masked_fill(torch.eye(len(rows), dtype=torch.bool, device=a.device), -torch.inf)
        rows = rows ^ 1  # 0 <-> 1, 2 <-> 3...
    return F.cross_entropy(logits, rows)


class Pairwise(Objective):
    """Contrast over all ordered pairs of modalities.

    Args:
        backbone: towers.
        data: what the data look like.
        temperature: of the softmax.
        windows: views of each member: 2, whose counterpart of another moment is the positive; or 1.
        out: width of the embedding.
        crop_min: smallest share of a member in a view; None = each modality's own.
    """

    recipe: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "lr_per": 256, "lr_rule": "sqrt", "weight_decay": 0.05,
                        "warmup": 0.05}

    def __init__(self, backbone: Backbone, data: DataSpec, *, temperature: float = 0.07, windows: int = 2,
                 out: int = 128, crop_min: float | None = None) -> None:
        super().__init__(backbone, data)
        if temperature <= 0 or windows not in (1, 2):
            raise UsageError("temperature must be positive and windows 1 or 2.", where="pairwise")
        towers = cast(Towers, backbone)
        self.temperature, self.windows = temperature, windows
        self.views = make_views("simclr", data, min_scale=crop_min, n_views=windows)
        self.notes = list(self.views.notes)
        self.projectors = nn.ModuleDict({m.name: mlp((dim, 2 * out, out), norm="none")
                                         for m, dim in zip(towers.members, towers.dims, strict=True)})

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Embeddings ``"z"`` (B, M, W, P) on the unit sphere and which members are ``"there"`` (B, M)."""
        towers = cast(Towers, self.backbone)
        views = [v.x for v in self.views(batch[self.data.modality], draws)]
        z, seen = list[Tensor](), list[Tensor]()
        for member in towers.members:
            both = towers.member(torch.cat(views), member)
            seen.append(both[:len(views[0])].detach())
            made = F.normalize(self.projectors[member.name](both).float(), dim=-1)
            z.append(torch.stack(made.chunk(len(views)), 1))
        return {"z": torch.stack(z, 1), "there": towers.members.there(views[0]).float(), "features": torch.cat(seen, 1)}

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """Mean over ordered pairs of modalities of which the batch has at least two sets."""
        z, there = encoded["z"], encoded["there"] > 0.5
        names = cast(Towers, self.backbone).members.names
        total, parts, count = 0 * z.sum(), dict[str, Tensor](), len(names) * (len(names) - 1)
        for a in range(len(names)):
            for b in range(len(names)):
                rows = (there[:, a] & there[:, b]).nonzero()[:, 0]
                if a != b and len(rows) >= 2:
                    loss = cross_window_nce(z[rows, a], z[rows, b], self.temperature)
                    parts[f"{names[a]}-{names[b]}"] = loss.detach()
                    total = total + loss / count
        return Loss(total, parts)
