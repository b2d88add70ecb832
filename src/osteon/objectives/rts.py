"""RTS and SLM: some words of a text are exchanged for random ones; say which, or which words stood there.

Di Liello 2023, arXiv:2309.08272, first part. Neither needs a generator nor a mask token.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.objective import Objective
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step
from osteon.views import make_views

CARD = Card(
    kind="objective",
    name="rts",
    papers=("Structural Self-Supervised Objectives for Transformers",),
    modalities=("text",),
    differs="A random word is never the one it takes the place of; in the authors' code it may be, and then counts as "
    "replaced. Detection is one logit instead of two, the same function, and its loss is not multiplied by 50. "
    "Cluster-based exchange (C-RTS) and the structural tasks on paragraphs and documents are not covered.",
    rows=(438,),
    backbones=("tokens",),
    cost="1 forward on all tokens and one linear layer",
)
#: Members of a vocabulary that are no words: padding, mask, unknown.
SPECIAL = 3


def exchange(tokens: Tensor, ratio: float, vocabulary: int, draws: Draws) -> tuple[Tensor, Tensor]:
    """Exchange each word by another one, drawn uniformly, with probability ``ratio``.

    Special tokens stay and are never drawn.

    Args:
        tokens: (B, N) int64.
        ratio: probability.
        vocabulary: V.
        draws: the stream.

    Returns:
        (B, N) the text after it, and (B, N) bool, True where it differs from the original.
    """
    words = vocabulary - SPECIAL
    chosen = (draws.fork("places").rand(tokens.shape[1]).to(tokens.device) < ratio) & (tokens >= SPECIAL)
    # 1 to words - 1 steps on from the word, around the circle of words: every other word alike, itself never.
    ahead = 1 + (draws.fork("words").rand(tokens.shape[1]).to(tokens.device).double() * (words - 1)).long()
    other = SPECIAL + (tokens - SPECIAL + ahead.clamp(max=words - 1)) % words
    return torch.where(chosen, other, tokens), chosen


class RTS(Objective):
    """Random-token substitution: find the exchanged words (``rts``), or restore them (``slm``).

    The loss is the mean over all words of the batch (``rts``), or over the exchanged ones (``slm``).

    Args:
        backbone: network to train; it must read words.
        data: what the data look like.
        task: ``rts`` or ``slm``.
        ratio: probability that a word is exchanged.
        crop_min: smallest share of the window in a view; None = the whole.
    """

    # The authors' 1e-4 at batch 256; the square root keeps Adam's noise scale at other batches.
    recipe: ClassVar = {"optimizer": "adamw", "lr": 1e-4, "lr_per": 256, "lr_rule": "sqrt", "schedule": "linear",
                        "weight_decay": 0.01, "warmup": 0.05, "clip": 1.0}

    def __init__(self, backbone: Backbone, data: DataSpec, *, task: Literal["rts", "slm"] = "rts", ratio: float = 0.15,
                 crop_min: float | None = None) -> None:
        super().__init__(backbone, data)
        if not backbone.discrete:
            raise UsageError(f"RTS exchanges words, and {backbone.name} reads values.", where="backbone",
                             fix="Give text and a backbone with a vocabulary.")
        if task not in ("rts", "slm"):
            raise UsageError(f"There is no task {task!r}.", where="task", fix="Give rts or slm.")
        if not 0 < ratio < 1:
            raise UsageError(f"ratio = {ratio} is no share.", where="ratio", fix="Give a number between 0 and 1.")
        if backbone.shown_width < SPECIAL + 2:
            raise UsageError("A vocabulary of one word has no other to exchange it for.", where="vocabulary")
        self.views = make_views("crop_flip", data, min_scale=crop_min)
        self.task, self.ratio = task, ratio
        self.head = nn.Linear(backbone.token_dim, 1 if task == "rts" else backbone.shown_width)
        self.notes = list(self.views.notes)

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Per sample (B,): summed error, hits, and the tokens they are over; pooled features."""
        tokens = self.backbone.shown(self.views(batch[self.data.modality], draws)[0].x)
        given, fake = exchange(tokens, self.ratio, self.backbone.shown_width, draws)
        features = self.backbone(given[:, None].float())
        scores = self.head(features.tokens).float()
        if self.task == "rts":
            asked, verdict = tokens >= SPECIAL, scores[..., 0]
            error = F.binary_cross_entropy_with_logits(verdict, fake.float(), reduction="none")
            right = (verdict > 0) == fake
        else:
            asked = fake
            error = F.cross_entropy(scores.transpose(1, 2), tokens, reduction="none")
            right = scores.argmax(-1) == tokens
        return {"error": (error * asked).sum(1), "asked": asked.sum(1).float(), "hits": (right & asked).sum(1).float(),
                "features": features.pooled.detach()}

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """Mean over the tokens asked about."""
        asked = encoded["asked"].sum().clamp(min=1)
        total = encoded["error"].sum() / asked
        return Loss(total, {self.task: total.detach(), "accuracy": (encoded["hits"].sum() / asked).detach()})
