"""DupMAE: one vector of a text must do to write the text again, and its words' vectors to say which words are in it.

Xiao et al. 2023, "RetroMAE v2: Duplex Masked Auto-Encoder For Pre-Training Retrieval-Oriented Language Models",
arXiv:2211.08769, and the authors' code.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.objectives._words import need_words, pictures
from osteon.parts.cloze import cover, draw_places
from osteon.parts.objective import Objective
from osteon.parts.transformer import Attention, Mlp
from osteon.parts.types import Batch, DataSpec, Draws, Features, Loss, Step
from osteon.parts.words import PAD
from osteon.views import make_views

CARD = Card(
    kind="objective",
    name="dupmae",
    papers=("RetroMAE v2: Duplex Masked Auto-Encoder For Pre-Training Retrieval-Oriented Language Models",),
    modalities=("text",),
    differs="The vector of a text is the backbone's pooled one, which is the class token only with backbone.pool=cls. "
    "Tokens are hidden one by one, not by whole words. The decoder's masks are drawn for every text instead of from a "
    "pool of 256, and its layer normalises first. The weight of the bag of words, which the authors' code leaves open, "
    "is 1. The head is one linear layer. The backbone that is left gives the first half of the retrieval vector; the "
    "second, over the vocabulary, needs the head: DupMAE.embed gives both. Fine-tuning on pairs of queries and answers "
    "is not covered; before it neither half is made for similarity.",
    rows=(167,),
    backbones=("tokens",),
    cost="1 forward on all tokens, one layer of attention, and the vocabulary's scores of every token twice",
)


def draw_sight(written: Tensor, ratio: float, draws: Draws) -> Tensor:
    """Which words each place of the decoder may look at: (B, N) bool -> (B, N, N) bool.

    A place never sees its own word, nor padding, and misses each other word with probability ``ratio``, drawn anew for
    every place.
    """
    n = written.shape[1]
    sight = draws.rand(n, n).to(written.device) >= ratio
    return sight & ~torch.eye(n, dtype=torch.bool, device=written.device) & written[:, None]


def bag_error(scores: Tensor, words: Tensor) -> Tensor:
    """Cross-entropy of the distinct words of a text, each of weight 1 / n, under one softmax over the vocabulary.

    Words that stand there several times count once, so that the weights may come to less than 1, as in the authors'
    code.

    Args:
        scores: (B, V).
        words: (B, N) int64; padding is no word.

    Returns:
        (B,); 0 for a text without words.
    """
    bag = torch.zeros_like(scores).scatter(1, words, 1.0)
    bag[:, PAD] = 0.0
    n = (words != PAD).sum(1).clamp(min=1)
    return -(bag * scores.log_softmax(1)).sum(1) / n


class Writer(nn.Module):
    """One layer that writes a text from its vector and glimpses of its words.

    Queries are the text's vector at every place; keys and values are that vector and the words. There is no attention
    among the queries, so that nothing but the vector and the words comes in.

    Args:
        dim: width.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        heads = next(h for h in range(max(1, dim // 32), 0, -1) if dim % h == 0)
        self.norm_query, self.norm_key = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attention, self.norm, self.mlp = Attention(dim, heads), nn.LayerNorm(dim, eps=1e-6), Mlp(dim)
        self.last = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, vector: Tensor, words: Tensor, places: Tensor, sight: Tensor) -> Tensor:
        """Vectors (B, D), words (B, N, D), positions (1, N, D), who sees which word (B, N, N) -> (B, N, D)."""
        query = vector[:, None] + places
        key = self.norm_key(torch.cat([vector[:, None], words + places], 1))
        attend = torch.cat([torch.ones_like(sight[..., :1]), sight], 2)
        x = query + self.attention(self.norm_query(query), key, attend)
        return self.last(x + self.mlp(self.norm(x)))


class DupMAE(Objective):
    """Duplex masked auto-encoder.

    The loss is the sum of three: hidden words of the encoder, every word of the decoder, and the bag of words.

    Args:
        backbone: network to train; it must read words.
        data: what the data look like.
        ratio: share of the words hidden from the encoder.
        decoder_ratio: share of the words hidden from each place of the decoder.
        bow_weight: of the bag of words.
        crop_min: smallest share of the window in a view; None = the whole.
    """

    # The authors' 1e-4 at batch 256 (32 on each of 8); the square root keeps Adam's noise scale at other batches.
    recipe: ClassVar[dict[str, Any]] = {"optimizer": "adamw", "lr": 1e-4, "lr_per": 256, "lr_rule": "sqrt",
                                        "schedule": "linear", "weight_decay": 0.01, "warmup": 0.1, "clip": 1.0}

    def __init__(self, backbone: Backbone, data: DataSpec, *, ratio: float = 0.3, decoder_ratio: float = 0.5,
                 bow_weight: float = 1.0, crop_min: float | None = None) -> None:
        super().__init__(backbone, data)
        need_words(backbone)
        if not 0 < ratio < 1 or not 0 <= decoder_ratio <= 1:
            raise UsageError(f"ratio = {ratio} or decoder_ratio = {decoder_ratio} is no share.", where="ratio",
                             fix="Give ratio in (0, 1) and decoder_ratio in [0, 1].")
        self.views = make_views("crop_flip", data, min_scale=crop_min)
        self.ratio, self.decoder_ratio, self.bow_weight = ratio, decoder_ratio, bow_weight
        self.writer = Writer(backbone.token_dim)
        self.head = nn.Linear(backbone.token_dim, backbone.shown_width)
        self.notes = list(self.views.notes)

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Per sample (B,): summed errors of encoder and decoder with their words, the bag's error, pooled features."""
        tokens = self.tokens(batch, draws)
        places, counted, features = self.read(tokens, draws)
        scores = self.head(features.tokens).float()
        hidden = F.cross_entropy(take(scores, places).transpose(1, 2), tokens.gather(1, places), reduction="none")
        written = tokens != PAD
        again = F.cross_entropy(self.write(features.pooled, tokens, draws).transpose(1, 2), tokens, reduction="none")
        return {"hidden": (hidden * counted).sum(1), "asked": counted.sum(1).float(),
                "again": (again * written).sum(1), "written": written.sum(1).float(),
                "bag": bag_error(highest(scores, written), tokens), "features": features.pooled.detach()}

    def tokens(self, batch: Batch, draws: Draws) -> Tensor:
        """The words of the view, (B, N) int64."""
        return self.backbone.shown(self.views(batch[self.data.modality], draws)[0].x)

    def read(self, tokens: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Features]:
        """Places hidden from the encoder (B, K), which of them count (B, K), and its features."""
        places, counted = draw_places(tokens, self.ratio, draws.fork("places"))
        seen = cover(tokens, places, counted, self.backbone.shown_width, draws.fork("cover"))
        return places, counted, self.backbone(seen[:, None].float())

    def write(self, vector: Tensor, tokens: Tensor, draws: Draws) -> Tensor:
        """The decoder's scores of every word from the text's vector (B, D): (B, N, V)."""
        words = self.backbone.stem(tokens[:, None].float())
        sight = draw_sight(tokens != PAD, self.decoder_ratio, draws.fork("sight"))
        places = self.backbone.positions(self.backbone.grid(tokens.shape[1])).to(words.dtype)
        return self.head(self.writer(vector, words, places, sight)).float()

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """Sum of the three, the first two over all words of the batch that they ask about."""
        hidden = encoded["hidden"].sum() / encoded["asked"].sum().clamp(min=1)
        again = encoded["again"].sum() / encoded["written"].sum().clamp(min=1)
        bag = encoded["bag"].mean()
        return Loss(hidden + again + self.bow_weight * bag, {"encoder": hidden.detach(), "decoder": again.detach(),
                                                             "bag": bag.detach()})

    @torch.no_grad()
    def embed(self, x: Tensor, *, words: int = 0) -> Tensor:
        """The vector for retrieval by inner product: that of the text, then its highest scores over the vocabulary.

        Args:
            x: (B, 1, N) texts, as the backbone takes them.
            words: how many scores stay, the others being 0; 0 = all. Scores below 0 are 0 too.

        Returns:
            (B, D + V).
        """
        features = self.backbone(x)
        scores = highest(self.head(features.tokens).float(), self.backbone.shown(x) != PAD).clamp(min=0)
        if words:
            best = scores.topk(min(words, scores.shape[1]), 1)
            scores = torch.zeros_like(scores).scatter(1, best.indices, best.values)
        return torch.cat([features.pooled.float(), scores], 1)

    @torch.no_grad()
    def reconstruct(self, batch: Batch, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """The text, what the encoder sees of it (hidden words -1), and what the decoder writes: (B, 1, N) each."""
        draws = Draws.of(batch, step)
        tokens = self.tokens(batch, draws)
        places, counted, features = self.read(tokens, draws)
        written = self.write(features.pooled, tokens, draws).argmax(-1)
        first, hidden, _ = pictures(tokens, places, counted, tokens.gather(1, places))
        return first, hidden, torch.where(tokens != PAD, written, tokens)[:, None]


def take(scores: Tensor, places: Tensor) -> Tensor:
    """(B, N, V) at places (B, K) -> (B, K, V)."""
    return scores.gather(1, places[..., None].expand(-1, -1, scores.shape[-1]))


def highest(scores: Tensor, written: Tensor) -> Tensor:
    """The highest score of every member of the vocabulary over the words of a text: (B, N, V), (B, N) -> (B, V)."""
    none = ~written.any(1, keepdim=True)
    return scores.masked_fill(~(written | none)[..., None], -torch.inf).amax(1)
