"""MultiMAE: one encoder sees a few tokens of several modalities, and what it does not see of each is rebuilt.

Bachmann et al. 2022, arXiv:2204.01678, sections 3.2 to 3.4; one decoder for all members, as BM-MAE (Robinet et al.
2025) has for the sequences of one brain, is an option.
"""

from __future__ import annotations

from typing import ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from osteon.backbones import Backbone
from osteon.backbones._base import take_kept
from osteon.backbones._stem_several import SetEmbed
from osteon.backbones.vit import ViT
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.objectives._masked import Masked, hidden_mean
from osteon.parts.positions import PlaceEmbed
from osteon.parts.transformer import Attention, Block, Mlp
from osteon.parts.types import Batch, DataSpec, Draws
from osteon.views import make_views
from osteon.views.masks import hidden_count, lowest

CARD = Card(
    kind="objective",
    name="multimae",
    papers=(
        "MultiMAE: Multi-modal Multi-task Masked Autoencoders",
        "Multimodal Masked Autoencoder Pre-training for 3D MRI-Based Brain Tumor Analysis with Missing Modalities",
    ),
    modalities=("several",),
    differs="The visible tokens are given to the members in their Dirichlet shares by Sainte-Lague's rule, which "
    "always adds up (the authors round and cut). Errors are those of each member's own tokens: squared, cross-entropy "
    "of words, cells of tables; the second decoder of standardised pixels and the L1 of depth are left out. Positions "
    "are learned maps of fixed codes, in the decoders too. `decoder=shared` is BM-MAE's one decoder, with the member's "
    "code in its positions and a cross-attention in front.",
    rows=(181, 42),
    backbones=("tokens",),
    cost="1 encoder forward on a sixth of the tokens, and a small decoder a member",
)


def visible_tokens(counts: list[int], present: Tensor, shares: Tensor, visible: Tensor, noise: Tensor) -> Tensor:
    """Which tokens each sample shows: so many in all, divided among its members in proportion to their shares.

    Sainte-Lague: the r-th token of a member, in random order, has the quotient (r + 1/2) / share; the lowest are shown.

    Args:
        counts: tokens of every member, N in all.
        present: (B, N) bool, which tokens are there.
        shares: (B, M) positive.
        visible: (B,) int64, how many to show.
        noise: (B, N) random order within members.

    Returns:
        (B, N) bool.
    """
    key = torch.full(noise.shape, torch.inf, dtype=torch.float64, device=noise.device)
    start = 0
    for member, count in enumerate(counts):
        part = slice(start, start + count)
        here = present[:, part]
        order = noise[:, part].masked_fill(~here, torch.inf).argsort(1).argsort(1)
        quotient = (order.double() + 0.5) / shares[:, member, None].double().clamp(min=1e-9)
        key[:, part] = quotient.masked_fill(~here, torch.inf)
        start += count
    rank = key.argsort(dim=1, stable=True).argsort(1)
    return (rank < visible[:, None]) & present


def dirichlet(draws: Draws, alpha: float, members: int) -> Tensor:
    """Shares (b, members) of a symmetric Dirichlet distribution, one row a local sample."""
    seed = int(torch.randint(2**31 - 1, (1,), generator=draws.generator()))
    whole = np.random.default_rng(seed).dirichlet([alpha] * members, size=draws.total)
    return torch.from_numpy(whole)[draws.rows].float().to(draws.device)


class CrossLayer(nn.Module):
    """Pre-norm attention to a context, then an MLP."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm_context = (nn.LayerNorm(dim, eps=1e-6) for _ in range(3))
        self.attn, self.mlp = Attention(dim, heads), Mlp(dim)

    def forward(self, x: Tensor, context: Tensor, attend: Tensor) -> Tensor:
        """(B, N, D), (B, M, D), (B, N, M) bool -> (B, N, D)."""
        x = x + self.attn(self.norm1(x), self.norm_context(context), attend)
        return x + self.mlp(self.norm2(x))


class MemberDecoder(nn.Module):
    """Predictions for the tokens of one member: from all the encoder saw, then among themselves.

    Args:
        in_dim: width of the encoder's tokens.
        out_dim: numbers a token.
        dim: width of the decoder.
        depth: blocks of self-attention after the one of cross-attention.
        place_width: numbers that code a place.
    """

    def __init__(self, in_dim: int, out_dim: int, dim: int, depth: int, place_width: int) -> None:
        super().__init__()
        heads = next(h for h in range(max(1, dim // 32), 0, -1) if dim % h == 0)
        self.embed, self.place = nn.Linear(in_dim, dim), PlaceEmbed(place_width, dim)
        self.mask_token = nn.Parameter(torch.zeros(dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.first = CrossLayer(dim, heads)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm, self.out = nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, out_dim)

    def forward(self, seen: Tensor, keep: Tensor, real: Tensor, places: Tensor, span: slice) -> Tensor:
        """Tokens (B, K, D) numbered ``keep``, of which ``real`` (B, K) count -> (B, tokens of the span, out_dim)."""
        x, count = self.embed(seen), places.shape[1]
        where = self.place(places).to(x.dtype)
        index = keep.masked_fill(~real, count)  # what does not count goes to a row that is cut off again
        full = self.mask_token.to(x.dtype).expand(len(x), count + 1, -1).scatter(
            1, index[..., None].expand(-1, -1, x.shape[-1]), x)[:, :count] + where
        context = x + take_kept(where, keep)
        asked = self.first(full[:, span], context, attend=real[:, None].expand(-1, full[:, span].shape[1], -1))
        for block in self.blocks:
            asked = block(asked)
        return self.out(self.norm(asked))


class MultiMAE(Masked):
    """Masked autoencoding over the union of the members' tokens.

    The loss is, for every member, the mean error of a set's hidden tokens and then over sets; members are added up.

    Args:
        backbone: one Transformer over the members' tokens.
        data: what the data look like.
        ratio: share of the tokens that are there which is hidden.
        alpha: concentration of the Dirichlet distribution of the members' shares; large = even, small = mostly one.
        decoder: ``each`` member has its own, or one is ``shared``.
        decoder_dim: width of a decoder; 0 = half the encoder's, at least 64.
        decoder_depth: blocks after the cross-attention.
        crop_min: smallest share of a member in a view; None = each modality's own.
    """

    recipe: ClassVar = {"optimizer": "adamw", "lr": 8e-4, "lr_per": 2048, "lr_rule": "sqrt", "betas": (0.9, 0.95),
                        "weight_decay": 0.05, "warmup": 0.05}

    def __init__(self, backbone: Backbone, data: DataSpec, *, ratio: float = 5 / 6, alpha: float = 1.0,
                 decoder: str = "each", decoder_dim: int = 0, decoder_depth: int = 2,
                 crop_min: float | None = None) -> None:
        super().__init__(backbone, data, views=make_views("crop_flip", data, min_scale=crop_min))
        stem = getattr(backbone, "patch_embed", None)
        if not isinstance(stem, SetEmbed):
            raise UsageError("The tokens of all members must go through one Transformer.", where="--backbone",
                             fix="Choose a ViT, e.g. vit_mini.")
        if not 0 < ratio < 1 or alpha <= 0 or decoder not in ("each", "shared"):
            raise UsageError("ratio lies in (0, 1), alpha is positive, decoder is each or shared.", where="multimae")
        self.ratio, self.alpha, self.names = ratio, alpha, stem.members.names
        dim = decoder_dim or max(64, backbone.token_dim // 2 // 16 * 16)
        made = [MemberDecoder(backbone.token_dim, backbone.shown_width, dim, decoder_depth, backbone.place_width)
                for _ in (self.names if decoder == "each" else "1")]
        self.decoders = nn.ModuleList(made)

    @property
    def stem(self) -> SetEmbed:
        """The stem of the backbone."""
        return cast(SetEmbed, cast(ViT, self.backbone).patch_embed)

    def mask(self, grid: tuple[int, ...], draws: Draws) -> Tensor:
        """(B, N) bool, hidden tokens of sets that have all their members."""
        everything = torch.ones(len(draws.rows), *grid, dtype=torch.bool, device=draws.device)
        return ~self.shown(everything, draws)

    def shown(self, present: Tensor, draws: Draws) -> Tensor:
        """(B, N) bool, what the encoder sees of the tokens that are there."""
        count = present.shape[1]
        kept = torch.tensor([n - hidden_count(self.ratio, n) for n in range(count + 1)], device=present.device)
        visible = kept[present.sum(1)].clamp(min=1)
        return visible_tokens(self.stem.counts, present, dirichlet(draws.fork("shares"), self.alpha, len(self.names)),
                              visible, draws.fork("order").rand(count))

    def predict(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode what is not hidden and is there; decode every member."""
        present = self.backbone.present(x)
        seen = ~mask if present is None else ~mask & present
        size = max(1, int(seen.sum(1).max()))
        keep = lowest(-seen.float(), size).nonzero()[:, 1].view(len(x), size)
        real = seen.gather(1, keep)
        tokens = self.backbone.stem(x) + self.backbone.positions(self.backbone.grid(*x.shape[2:]), x)
        features = self.backbone.finish(take_kept(tokens, keep), self.backbone.grid(*x.shape[2:]), real)
        places = cast(Tensor, self.backbone.places(x))
        decoders = list(self.decoders) * (len(self.names) if len(self.decoders) == 1 else 1)
        parts = [decoder(features.tokens, keep, real, places, self.stem.span(name))
                 for decoder, name in zip(decoders, self.names, strict=True)]
        return torch.cat(parts, 1), features.pooled

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Per-sample loss ``"loss"`` (B,), the sum over members, and pooled ``"features"``."""
        x = self.views(batch[self.data.modality], draws)[0].x
        present = self.backbone.present(x)
        if present is None:
            present = torch.ones(len(x), sum(self.stem.counts), dtype=torch.bool, device=x.device)
        there = present
        hidden = ~self.shown(there, draws.fork("mask")) & there
        prediction, pooled = self.predict(x, ~there | hidden)
        error = self.error(prediction, self.target(x))
        loss = torch.stack([hidden_mean(error[:, self.stem.span(n)], hidden[:, self.stem.span(n)]) for n in self.names])
        return {"loss": loss.sum(0), "features": pooled.detach()}
