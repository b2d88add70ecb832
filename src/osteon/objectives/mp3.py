"""MP3: where in a sample does each piece belong? Positions are told from contents, with few pieces to compare with.

Zhai et al. 2022, arXiv:2207.07611, "Position Prediction as an Effective Pretraining Strategy".
"""

from __future__ import annotations

import math
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.objectives._masked import hidden_mean
from osteon.parts.objective import Objective
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step
from osteon.views import make_views
from osteon.views.masks import hidden_count, random_mask

CARD = Card(
    kind="objective",
    name="mp3",
    papers=("Position Prediction as an Effective Pretraining Strategy",),
    modalities=("image", "sound", "series", "text"),
    differs="The share that is no context is 0.5 by default; the paper's value for each data set could not be checked. "
    "Networks get their positions back when they are used, as the paper does when it fine-tunes with positions; "
    "backbone.positions=none leaves them out for good. Class and register tokens carry no position and are context. "
    "Mixup, cutmix and label smoothing are left out.",
    rows=(47,),
    backbones=("tokens",),
    cost="1 forward on all tokens under a mask of keys",
)


def key_mask(hidden: Tensor, prefix: int) -> Tensor:
    """Who may attend to whom: everybody to the prefix and the context, nobody to the rest, not even to itself.

    Args:
        hidden: (B, N) bool, True = no context.
        prefix: class and register tokens before the N.

    Returns:
        (B, prefix + N, prefix + N) bool, True = the row may attend to the column.
    """
    seen = F.pad(~hidden, (prefix, 0), value=True)
    return seen[:, None].expand(-1, seen.shape[1], -1)


class MP3(Objective):
    """Masked patch position prediction: every token, without positions, is to name its own place among all N.

    In each attention layer all tokens ask and only the context answers. The loss is the cross-entropy over places,
    averaged over all tokens, those of the context too; padding is neither asked about nor context.

    Args:
        backbone: network to train.
        data: what the data look like.
        ratio: share of tokens that are no context (eta).
        crop_min: smallest area share of the random crop; None = 0.2 of images, the modality's own of others.
        flip: mirror left-right at random; None = images are, samples of other modalities are not.
    """

    additive: ClassVar[bool] = True
    recipe: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "lr_per": 4096, "lr_rule": "sqrt", "betas": (0.9, 0.95),
                        "weight_decay": 0.05, "warmup": 0.05, "clip": 1.0}

    def __init__(self, backbone: Backbone, data: DataSpec, *, ratio: float = 0.5, crop_min: float | None = None,
                 flip: bool | None = None) -> None:
        super().__init__(backbone, data)
        self.grid = backbone.grid(*data.extent)
        places = math.prod(self.grid)
        backbone.prefix(1)  # a network without this door is refused here, not at the first step
        if places < 2 or hidden_count(ratio, places) >= places:
            raise UsageError(f"Of {places} tokens {hidden_count(ratio, places)} would be no context: there must be two "
                             "places to tell apart and some context.", where="ratio",
                             fix="Lower the ratio or use smaller patches.")
        self.views = make_views("crop_flip", data, flip=flip, min_scale=crop_min, usual={"min_scale": 0.2})
        self.notes = [*self.views.notes, f"chance: the loss of a guess is log({places}) = {math.log(places):.3f}"]
        self.ratio = ratio
        self.head = nn.Linear(backbone.token_dim, places)  # after the trunk's last norm
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def locate(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Logits over places (B, N, N) of every token, and tokens (B, N, D)."""
        tokens = self.backbone.stem(x)
        special = self.backbone.prefix(len(x)).to(tokens.dtype)
        count = special.shape[1]
        out = cast(Tensor, self.backbone.trunk(torch.cat([special, tokens], 1), attend=key_mask(hidden, count)))
        return self.head(out[:, count:]), out[:, count:]

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Per-sample loss ``"loss"`` and share of right places ``"hits"`` (B,), and pooled ``"features"``."""
        x = self.views(batch[self.data.modality], draws)[0].x
        hidden, present = random_mask(self.grid, self.ratio, draws.fork("mask")), self.backbone.present(x)
        asked = torch.ones_like(hidden) if present is None else present
        hidden = hidden | ~asked
        hidden = hidden & ~hidden.all(1, keepdim=True)  # where a short text has lost every word, all is context
        logits, tokens = self.locate(x, hidden)
        place = torch.arange(logits.shape[1], device=logits.device).expand(len(x), -1)
        loss = F.cross_entropy(logits.float().transpose(1, 2), place, reduction="none")
        right = (logits.argmax(-1) == place).float()
        return {"loss": hidden_mean(loss, asked), "hits": hidden_mean(right, asked),
                "features": tokens.mean(1).detach()}

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """Mean over samples."""
        total = encoded["loss"].mean()
        return Loss(total, {"position": total.detach(), "accuracy": encoded["hits"].mean().detach()})
