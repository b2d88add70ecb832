"""ELECTRA: a small network rewrites some words of a text, and the backbone says of every word whether it is original.

Clark et al. 2020, arXiv:2003.10555, section 2 and appendix A.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones import Backbone, build_backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.cloze import draw_places
from osteon.parts.objective import Objective
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step
from osteon.parts.words import MASK, PAD
from osteon.views import make_views

CARD = Card(
    kind="objective",
    name="electra",
    papers=("ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators",),
    modalities=("text",),
    differs="Positions are drawn without replacement; the authors' code draws with it, so that theirs are a few fewer. "
    "Networks normalise before their layers (the backbone's own form) instead of after, and positions are the "
    "backbone's own. A word is drawn by one uniform number from the cumulated distribution instead of Gumbel noise, "
    "which is the same distribution.",
    rows=(166,),
    backbones=("tokens",),
    cost="1 forward on all tokens, and 1 of a generator of a quarter of the width",
)


def sample(scores: Tensor, uniform: Tensor) -> Tensor:
    """A member of the vocabulary from the softmax of its scores, by the inverse of the cumulated distribution.

    Args:
        scores: (B, N, V).
        uniform: (B, N) in [0, 1).

    Returns:
        (B, N) int64, without gradient.
    """
    cumulated = scores.detach().double().softmax(-1).cumsum(-1)
    place = torch.searchsorted(cumulated, uniform.double()[..., None], right=True)[..., 0]
    return place.clamp(max=scores.shape[-1] - 1)


def rewrite(tokens: Tensor, places: Tensor, counted: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
    """The original text (B, N) with words (B, K) at the places that count, and which tokens differ from the original.

    A word that happens to be the original counts as original.
    """
    corrupted = tokens.scatter(1, places, torch.where(counted, words, tokens.gather(1, places)))
    return corrupted, corrupted != tokens


def narrow(backbone: Backbone, share: float) -> Backbone:
    """A fresh network like the backbone with ``share`` of its width, as deep, its heads as wide where that works."""
    options = dict(backbone.options)
    wide, heads = int(options["dim"]), int(options["heads"])
    dim = max(2, round(share * wide / 2) * 2)
    fewer = max(1, round(heads * dim / wide))
    options |= {"dim": dim, "heads": next(h for h in range(fewer, 0, -1) if dim % h == 0)}
    return build_backbone(backbone.name, channels=backbone.channels, size=backbone.size, **options)


class Generator(nn.Module):
    """A narrow Transformer that predicts words, between two maps from and to the width of the shared word vectors.

    Args:
        backbone: whose word vectors are shared; it is not held.
        share: width over the backbone's.
    """

    def __init__(self, backbone: Backbone, share: float) -> None:
        super().__init__()
        self.trunk = narrow(backbone, share)
        del self.trunk.patch_embed  # its own word vectors: the backbone's are used
        wide = backbone.token_dim
        self.down = nn.Linear(wide, self.trunk.token_dim)
        self.up, self.norm = nn.Linear(self.trunk.token_dim, wide), nn.LayerNorm(wide, eps=1e-6)
        self.bias = nn.Parameter(torch.zeros(backbone.shown_width))

    def forward(self, embedded: Tensor, places: Tensor, words: Tensor, present: Tensor | None = None) -> Tensor:
        """Vectors of a text (B, N, D) and of the vocabulary (V, D), places (B, K) -> scores (B, K, V)."""
        tokens, grid = self.down(embedded), self.trunk.grid(embedded.shape[1])
        tokens = self.trunk.finish(tokens + self.trunk.positions(grid).to(tokens.dtype), grid, present).tokens
        asked = tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))
        return self.norm(F.gelu(self.up(asked))) @ words.T + self.bias


class ELECTRA(Objective):
    """Replaced-token detection.

    The backbone is the discriminator and is what a run leaves; the generator is thrown away. Both losses are means over
    the whole batch: of the generator over the places drawn, of the backbone over all tokens that are no padding. The
    generator's words carry no gradient back to it; word vectors are shared and get both.

    Args:
        backbone: network to train, the discriminator; it must read words.
        data: what the data look like.
        ratio: share of tokens that are drawn.
        masked: share of the drawn tokens that the generator sees as ``<mask>``; the others it sees as they are.
        generator: width of the generator over the backbone's.
        weight: of the discriminator's loss.
        generator_weight: of the generator's loss.
        crop_min: smallest share of the window in a view; None = the whole.
    """

    # The paper's small model: 5e-4 at batch 128; the square root keeps Adam's noise scale at other batches.
    recipe: ClassVar = {"optimizer": "adamw", "lr": 5e-4, "lr_per": 128, "lr_rule": "sqrt", "schedule": "linear",
                        "weight_decay": 0.01, "warmup": 0.05, "clip": 1.0}

    def __init__(self, backbone: Backbone, data: DataSpec, *, ratio: float = 0.15, masked: float = 0.85,
                 generator: float = 0.25, weight: float = 50.0, generator_weight: float = 1.0,
                 crop_min: float | None = None) -> None:
        super().__init__(backbone, data)
        if not backbone.discrete:
            raise UsageError(f"ELECTRA replaces words, and {backbone.name} reads values.", where="backbone",
                             fix="Give text and a backbone with a vocabulary.")
        if not 0 < ratio < 1 or not 0 <= masked <= 1 or not 0 < generator <= 1:
            raise UsageError(f"ratio = {ratio}, masked = {masked} or generator = {generator} is no share.",
                             where="electra", fix="Give ratio and generator in (0, 1), masked in [0, 1].")
        self.views = make_views("crop_flip", data, min_scale=crop_min)
        self.ratio, self.masked, self.weight, self.generator_weight = ratio, masked, weight, generator_weight
        self.generator = Generator(backbone, generator)
        width = backbone.token_dim
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))
        self.notes = [*self.views.notes, f"generator: {self.generator.trunk.token_dim} of {width} wide, as deep"]

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Per sample sums (B,) of both losses and how many tokens each is over, of hits, and pooled features."""
        tokens = self.tokens(batch, draws)
        places, counted, scores = self.generate(tokens, draws)
        words = sample(scores, draws.fork("sample").rand(places.shape[1]).to(tokens.device))
        corrupted, fake = rewrite(tokens, places, counted, words)
        features = self.backbone(corrupted[:, None].float())
        verdict = self.head(features.tokens)[..., 0].float()
        written = tokens != PAD
        told = F.cross_entropy(scores.float().transpose(1, 2), tokens.gather(1, places), reduction="none")
        found = F.binary_cross_entropy_with_logits(verdict, fake.float(), reduction="none")
        hits = ((verdict > 0) == fake) & written
        return {"told": (told * counted).sum(1), "drawn": counted.sum(1).float(), "found": (found * written).sum(1),
                "written": written.sum(1).float(), "hits": hits.sum(1).float(), "fakes": fake.sum(1).float(),
                "caught": (hits & fake).sum(1).float(), "features": features.pooled.detach()}

    def tokens(self, batch: Batch, draws: Draws) -> Tensor:
        """The words of the view, (B, N) int64."""
        return self.backbone.shown(self.views(batch[self.data.modality], draws)[0].x)

    def generate(self, tokens: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Places drawn (B, K), which of them count (B, K), and the generator's scores there (B, K, V)."""
        places, counted = draw_places(tokens, self.ratio, draws.fork("places"))
        hide = counted & (draws.fork("mask").rand(places.shape[1]).to(tokens.device) < self.masked)
        seen = tokens.scatter(1, places, tokens.gather(1, places).masked_fill(hide, MASK))
        every = torch.arange(self.backbone.shown_width, device=tokens.device)
        # The shared vectors, (V, D), without the stem's factor: scores then start about as large as one.
        table = self.backbone.stem(every[None, None].float())[0] * self.backbone.token_dim**-0.5
        shown = seen[:, None].float()
        return places, counted, self.generator(self.backbone.stem(shown), places, table, self.backbone.present(shown))

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """Weighted sum of both losses, each over all its tokens of the batch."""
        total = {key: encoded[key].sum() for key in ("told", "drawn", "found", "written", "hits", "fakes", "caught")}
        generator = total["told"] / total["drawn"].clamp(min=1)
        detection = total["found"] / total["written"].clamp(min=1)
        loss = self.weight * detection + self.generator_weight * generator
        return Loss(loss, {"detection": detection.detach(), "generator": generator.detach(),
                           "accuracy": (total["hits"] / total["written"].clamp(min=1)).detach(),
                           "caught": (total["caught"] / total["fakes"].clamp(min=1)).detach()})

    @torch.no_grad()
    def reconstruct(self, batch: Batch, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """The text, the text with the drawn words hidden (-1), and the generator's rewriting: (B, 1, N) each."""
        draws = Draws.of(batch, step)
        tokens = self.tokens(batch, draws)
        places, counted, scores = self.generate(tokens, draws)
        words = sample(scores, draws.fork("sample").rand(places.shape[1]).to(tokens.device))
        hidden, _ = rewrite(tokens, places, counted, torch.full_like(words, -1))
        corrupted, _ = rewrite(tokens, places, counted, words)
        return tokens[:, None], hidden[:, None], corrupted[:, None]
