"""Skeleton of language models: predict hidden words from both sides, or every word from those before it."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones import Backbone
from osteon.core.errors import UsageError
from osteon.parts.attend import prefix_attention
from osteon.parts.cloze import cover, draw_places
from osteon.parts.judged import NATS, Judged
from osteon.parts.objective import Objective
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step
from osteon.parts.words import PAD
from osteon.views import make_views


class WordModel(Objective):
    """Predict words of a text.

    A method says in :meth:`causal` which of the two it does at a step. Padding is never predicted; the loss is the mean
    over all words of the batch that are asked about, so that its exponential is their perplexity. One linear head
    scores the vocabulary in both.

    Args:
        backbone: network to train; it must read words.
        data: what the data look like.
        ratio: share of the words that are hidden, where words are hidden.
        masked: share of the hidden words that the network sees as ``<mask>``.
        random: share it sees as random words; the rest it sees as they are.
        crop_min: smallest share of the window in a view; None = the whole.
    """

    # 5e-4 at batch 128 is the rate of ELECTRA's small BERT (its appendix A); the square root keeps Adam's noise scale.
    recipe: ClassVar[dict[str, Any]] = {"optimizer": "adamw", "lr": 5e-4, "lr_per": 128, "lr_rule": "sqrt",
                                        "schedule": "linear", "weight_decay": 0.01, "warmup": 0.05, "clip": 1.0}

    def __init__(self, backbone: Backbone, data: DataSpec, *, ratio: float = 0.15, masked: float = 1.0,
                 random: float = 0.0, crop_min: float | None = None) -> None:
        super().__init__(backbone, data)
        need_words(backbone)
        if not 0 < ratio < 1 or min(masked, random) < 0 or masked + random > 1:
            raise UsageError(f"ratio = {ratio}, masked = {masked} and random = {random} are no shares.", where="ratio",
                             fix="Give ratio in (0, 1), and masked and random that come to 1 at most.")
        self.views = make_views("crop_flip", data, min_scale=crop_min)
        self.ratio, self.masked, self.random = ratio, masked, random
        self.head = nn.Linear(backbone.token_dim, backbone.shown_width)
        self.notes = list(self.views.notes)

    @abstractmethod
    def causal(self, step: Step) -> bool:
        """Whether words are predicted from those before them at this step, else from all that are not hidden."""

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Per sample (B,): summed error, hits, and how many words they are over; pooled features."""
        tokens = self.tokens(batch, draws)
        scores, words, asked, pooled = self.predict(tokens, draws)
        error = F.cross_entropy(scores.float().transpose(1, 2), words, reduction="none")
        return {"error": (error * asked).sum(1), "asked": asked.sum(1).float(),
                "hits": ((scores.argmax(-1) == words) & asked).sum(1).float(), "features": pooled.detach()}

    def tokens(self, batch: Batch, draws: Draws) -> Tensor:
        """The words of the view, (B, N) int64."""
        return self.backbone.shown(self.views(batch[self.data.modality], draws)[0].x)

    def predict(self, tokens: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scores (B, K, V), the words that stood there (B, K), which of them count (B, K), pooled features (B, D)."""
        if self.causal(draws.step):
            out = read_prefix(self.backbone, tokens, torch.zeros_like(tokens, dtype=torch.bool))
            return self.head(out[:, :-1]), tokens[:, 1:], tokens[:, 1:] != PAD, out.mean(1)
        places, counted, seen = self.hide(tokens, draws)
        scores, pooled = self.ask(seen, places)
        return scores, tokens.gather(1, places), counted, pooled

    def ask(self, seen: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (B, K, V) of what stood at some places of a text (B, N), and pooled features (B, D)."""
        features = self.backbone(seen[:, None].float())
        asked = features.tokens.gather(1, places[..., None].expand(-1, -1, features.tokens.shape[-1]))
        return self.head(asked), features.pooled

    def hide(self, tokens: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Places drawn (B, K), which of them count (B, K), and the text as the network sees it (B, N)."""
        places, counted = draw_places(tokens, self.ratio, draws.fork("places"))
        seen = cover(tokens, places, counted, self.backbone.shown_width, draws.fork("cover"), masked=self.masked,
                     random=self.random)
        return places, counted, seen

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """Mean over the words asked about."""
        return word_loss(encoded)

    @torch.no_grad()
    def judge(self, x: Tensor, draws: Draws) -> Judged:
        """Costs of all words but the first from those before, or of hidden ones, all ``<mask>``, from the others."""
        tokens, causal = self.backbone.shown(x), self.causal(draws.step)
        if causal:
            scores, words, counted, _ = self.predict(tokens, draws)
            places = torch.arange(1, tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
        else:
            places, counted = draw_places(tokens, self.ratio, draws.fork("places"))
            seen = cover(tokens, places, counted, self.backbone.shown_width, draws.fork("cover"))
            scores, words = self.ask(seen, places)[0], tokens.gather(1, places)
        cost = F.cross_entropy(scores.float().transpose(1, 2), words, reduction="none")
        return Judged(cost.new_zeros(tokens.shape).scatter(1, places, cost),
                      torch.zeros_like(tokens, dtype=torch.bool).scatter(1, places, counted), tokens, NATS,
                      causal=causal)

    @torch.no_grad()
    def reconstruct(self, batch: Batch, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """The text, the text as it is predicted from (hidden words -1), and with the likeliest words: (B, 1, N)."""
        draws = Draws.of(batch, step)
        tokens = self.tokens(batch, draws)
        scores, _, counted, _ = self.predict(tokens, draws)
        places = torch.arange(1, tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
        if not self.causal(step):
            places = self.hide(tokens, draws)[0]
        return pictures(tokens, places, counted, scores.argmax(-1))


def need_words(backbone: Backbone) -> None:
    """Refuse a backbone that reads values, or has no doors for attention."""
    if not backbone.discrete:
        raise UsageError(f"A language model predicts words, and {backbone.name} reads values.", where="backbone",
                         fix="Give text and a backbone with a vocabulary.")
    backbone.positions(backbone.grid(*backbone.extent))


def read_prefix(backbone: Backbone, tokens: Tensor, free: Tensor, shown: Tensor | None = None,
                vectors: Tensor | None = None) -> Tensor:
    """The trunk's outputs where only a prefix is seen from everywhere, class and register tokens being part of it.

    Args:
        backbone: the network.
        tokens: (B, N) int64 words; ignored where ``vectors`` are given.
        free: (B, N) bool, True = belongs to the prefix; every other token is seen by itself and those after it.
        shown: (B, N) bool, tokens that are there at all; None: all.
        vectors: (B, N, D) instead of the words' own.

    Returns:
        (B, N, D).
    """
    x = backbone.stem(tokens[:, None].float()) if vectors is None else vectors
    x = x + backbone.positions(backbone.grid(x.shape[1]))
    special = backbone.prefix(len(x)).to(x.dtype)
    front = free.new_ones(len(x), special.shape[1])
    attend = prefix_attention(torch.cat([front, free], 1))
    if shown is not None:
        attend = attend & torch.cat([front, shown], 1)[:, None]
    out = cast(Tensor, backbone.trunk(torch.cat([special, x], 1), attend=attend))
    return out[:, special.shape[1]:]


def word_loss(encoded: dict[str, Tensor]) -> Loss:
    """Mean error over all words asked about in the batch, and the share of them that were named rightly."""
    asked = encoded["asked"].sum().clamp(min=1)
    total = encoded["error"].sum() / asked
    return Loss(total, {"cross_entropy": total.detach(), "accuracy": (encoded["hits"].sum() / asked).detach()})


def pictures(tokens: Tensor, places: Tensor, counted: Tensor, words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The text, the text with the places that count hidden (-1), and with those words there: (B, 1, N) each."""
    stays = tokens.gather(1, places)
    hidden = tokens.scatter(1, places, stays.masked_fill(counted, -1))
    guessed = tokens.scatter(1, places, torch.where(counted, words, stays))
    return tokens[:, None], hidden[:, None], guessed[:, None]
