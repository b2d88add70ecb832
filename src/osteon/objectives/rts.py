"""RTS, C-RTS and SLM: some words of a text are exchanged; say which, or which words stood there.

Di Liello 2023, arXiv:2309.08272, first part, and the authors' code. None needs a generator or a mask token.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.coreset import spherical_kmeans, unit_rows
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
    "Clusters of C-RTS are those of the word vectors by cosine, drawn anew from time to time, since there are no "
    "earlier vectors to take them from; with them the counts of confusion begin anew. Each row of the counts is scaled "
    "to [0, 1] and sharpened by itself. The structural tasks on paragraphs and documents are not covered.",
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


def confusion_odds(counts: Tensor, beta: float, sizes: Tensor) -> Tensor:
    """Probability that a word of the row's cluster is exchanged for one of the column's: (C, C) -> (C, C).

    Each row of counts is brought to [0, 1] by its extremes, multiplied by ``beta``, and passes a softmax; a cluster
    without words, ``sizes`` (C,) = 0, has probability 0.
    """
    low, high = counts.amin(1, keepdim=True), counts.amax(1, keepdim=True)
    share = (counts - low) / (high - low).clamp(min=1)
    return (beta * share.double()).masked_fill(sizes == 0, -torch.inf).softmax(1)


def exchange_by_cluster(tokens: Tensor, ratio: float, clusters: Tensor, odds: Tensor,
                        draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
    """Exchange each word, with probability ``ratio``, by any other one of a cluster drawn from its own cluster's odds.

    Special tokens stay and are never drawn; a word that is all its cluster holds stays where that cluster is drawn.

    Args:
        tokens: (B, N) int64.
        ratio: probability.
        clusters: (V,) int64 cluster of every member, special ones included, which do not count.
        odds: (C, C) rows of probabilities.
        draws: the stream.

    Returns:
        (B, N) the text after it, (B, N) bool, True where it differs, and (B, N) int64, ``own * C + drawn``.
    """
    n, count = tokens.shape[1], len(odds)
    order = clusters[SPECIAL:].argsort(stable=True) + SPECIAL  # words, cluster after cluster
    size = clusters[SPECIAL:].bincount(minlength=count)
    first = size.cumsum(0) - size
    at = torch.empty_like(clusters).scatter(0, order, torch.arange(len(order), device=order.device))
    chosen = (tokens >= SPECIAL) & (draws.fork("places").rand(n).to(tokens.device) < ratio)
    own = clusters[tokens]
    level = draws.fork("clusters").rand(n).to(tokens.device).double()
    drawn = torch.searchsorted(odds.cumsum(1)[own], level[..., None], right=True)[..., 0].clamp(max=count - 1)
    drawn = torch.where(size[drawn] > 0, drawn, own)  # beyond the last sum by rounding
    inside = drawn == own
    room = size[drawn] - inside.long()
    pick = (draws.fork("words").rand(n).to(tokens.device).double() * room).long().minimum((room - 1).clamp(min=0))
    pick = pick + (inside & (pick >= at[tokens.clamp(min=SPECIAL)] - first[own])).long()
    chosen = chosen & (room > 0)
    other = order[(first[drawn] + pick).clamp(max=len(order) - 1)]
    return torch.where(chosen, other, tokens), chosen, own * count + drawn


class RTS(Objective):
    """Random-token substitution: find the exchanged words (``rts``, ``crts``), or restore them (``slm``).

    In ``crts`` words are exchanged by clusters, the more often from one cluster to another the more often the network
    did not notice it. The loss is the mean over all words of the batch (``rts``, ``crts``), or over the exchanged ones
    (``slm``).

    Args:
        backbone: network to train; it must read words.
        data: what the data look like.
        task: ``rts``, ``crts`` or ``slm``.
        ratio: probability that a word is exchanged.
        clusters: how many clusters of words (``crts``).
        beta: how sharply confusion decides between them (``crts``).
        recluster: share of the steps after which words are clustered anew (``crts``); 0 = only before the first.
        crop_min: smallest share of the window in a view; None = the whole.
    """

    # The authors' 1e-4 at batch 256; the square root keeps Adam's noise scale at other batches.
    recipe: ClassVar = {"optimizer": "adamw", "lr": 1e-4, "lr_per": 256, "lr_rule": "sqrt", "schedule": "linear",
                        "weight_decay": 0.01, "warmup": 0.05, "clip": 1.0}

    def __init__(self, backbone: Backbone, data: DataSpec, *, task: Literal["rts", "crts", "slm"] = "rts",
                 ratio: float = 0.15, clusters: int = 100, beta: float = 2.0, recluster: float = 0.1,
                 crop_min: float | None = None) -> None:
        super().__init__(backbone, data)
        if not backbone.discrete:
            raise UsageError(f"RTS exchanges words, and {backbone.name} reads values.", where="backbone",
                             fix="Give text and a backbone with a vocabulary.")
        if task not in ("rts", "crts", "slm"):
            raise UsageError(f"There is no task {task!r}.", where="task", fix="Give rts, crts or slm.")
        if clusters < 2 or beta < 0 or not 0 <= recluster <= 1:
            raise UsageError(f"clusters = {clusters}, beta = {beta} or recluster = {recluster} is impossible.",
                             where="clusters", fix="Give 2 clusters or more, beta not negative, recluster in [0, 1].")
        if not 0 < ratio < 1:
            raise UsageError(f"ratio = {ratio} is no share.", where="ratio", fix="Give a number between 0 and 1.")
        if backbone.shown_width < SPECIAL + 2:
            raise UsageError("A vocabulary of one word has no other to exchange it for.", where="vocabulary")
        self.views = make_views("crop_flip", data, min_scale=crop_min)
        self.task, self.ratio = task, ratio
        self.head = nn.Linear(backbone.token_dim, backbone.shown_width if task == "slm" else 1)
        self.notes = list(self.views.notes)
        self.beta, self.recluster = beta, recluster
        if task == "crts":
            count = min(clusters, backbone.shown_width - SPECIAL)
            self.register_buffer("clusters", self.clustered(count))
            self.register_buffer("counts", torch.zeros(count, count, dtype=torch.int64))
            self.register_buffer("unnoticed", torch.zeros(count, count, dtype=torch.int64), persistent=False)

    clusters: Tensor  # (V,) cluster of every word
    counts: Tensor  # (C, C) how often an exchange of the row's words for the column's was not noticed
    unnoticed: Tensor  # the same in the last batch

    @torch.no_grad()
    def clustered(self, count: int) -> Tensor:
        """Clusters of the words by the cosine of their vectors as they are now, (V,) int64."""
        every = torch.arange(self.backbone.shown_width, device=next(self.parameters()).device)
        vectors = self.backbone.stem(every[None, None].float())[0].float().cpu().numpy()
        centres = spherical_kmeans(vectors[SPECIAL:], count, 0)
        return torch.from_numpy((unit_rows(vectors) @ centres.T).argmax(1)).to(every.device)

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Per sample (B,): summed error, hits, and the tokens they are over; pooled features."""
        tokens = self.backbone.shown(self.views(batch[self.data.modality], draws)[0].x)
        given, fake, pair = self.exchanged(tokens, draws)
        features = self.backbone(given[:, None].float())
        scores = self.head(features.tokens).float()
        if self.task != "slm":
            asked, verdict = tokens >= SPECIAL, scores[..., 0]
            error = F.binary_cross_entropy_with_logits(verdict, fake.float(), reduction="none")
            right = (verdict > 0) == fake
        else:
            asked = fake
            error = F.cross_entropy(scores.transpose(1, 2), tokens, reduction="none")
            right = scores.argmax(-1) == tokens
        return {"error": (error * asked).sum(1), "asked": asked.sum(1).float(), "hits": (right & asked).sum(1).float(),
                "pair": pair.masked_fill(~fake | right, -1), "features": features.pooled.detach()}

    def exchanged(self, tokens: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """The text (B, N) with words exchanged, which of them are, and the pair of clusters of each (``crts``)."""
        if self.task != "crts":
            return *exchange(tokens, self.ratio, self.backbone.shown_width, draws), torch.zeros_like(tokens)
        odds = confusion_odds(self.counts, self.beta, self.clusters[SPECIAL:].bincount(minlength=len(self.counts)))
        return exchange_by_cluster(tokens, self.ratio, self.clusters, odds, draws)

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """Mean over the tokens asked about."""
        asked = encoded["asked"].sum().clamp(min=1)
        total = encoded["error"].sum() / asked
        if self.task == "crts":
            pair = encoded["pair"][encoded["pair"] >= 0]
            self.unnoticed = pair.bincount(minlength=self.counts.numel()).view_as(self.counts)
        return Loss(total, {self.task: total.detach(), "accuracy": (encoded["hits"].sum() / asked).detach()})

    def after_step(self, step: Step) -> None:
        """Count what was not noticed, and cluster anew when it is time (``crts``)."""
        if self.task != "crts":
            return
        self.counts += self.unnoticed
        done, every = step.index + 1, max(1, round(self.recluster * step.total))
        if self.recluster and done % every == 0 and done < step.total:
            self.clusters.copy_(self.clustered(len(self.counts)))
            self.counts.zero_()
