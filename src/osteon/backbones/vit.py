"""Vision Transformer: an image, or any other sample, as a sequence of patches or words.

Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.1. Module names are timm's, so that its weights load.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones._base import Backbone, finish_some, placed_tokens, take_kept
from osteon.backbones._mamba import MambaBlock, Selective
from osteon.backbones._stem_columns import ColumnEmbed
from osteon.backbones._stems import PatchEmbed, Stem, WordEmbed, build_stem, default_patch, patch_note
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.highway_bp import HighwayBP, Layer, layer_of
from osteon.parts.positions import PlaceEmbed, resample, sincos
from osteon.parts.stochastic_depth import Mode, StochasticDepth, drop_rates
from osteon.parts.tracing import holds
from osteon.parts.transformer import LayerScale, Mlp
from osteon.parts.types import Features

CARD = Card(
    kind="backbone",
    name="vit",
    papers=("An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale",
            "Vision Transformers Need Registers", "Going deeper with Image Transformers",
            "SSAMBA: Self-Supervised Audio Representation Learning with Mamba State Space Model"),
    modalities=("image", "sound", "series", "text", "table", "graph", "points", "volume", "video", "several"),
    differs="Fixed sine-cosine positions and the mean of the patch tokens by default (the paper: learned positions "
    "and a class token, both options here); the patch size follows the image size. Of SSAMBA (trunk=mamba, "
    "pre-trained by the objective ssast) every block reads both ways, and blocks are not also paired, one "
    "forwards and one backwards; its class token is an option.",
    rows=(371,),
    backbones=("tokens",),
    cost="grows with the square of the number of tokens",
)

#: Name -> width, depth, heads. vit_compact, vit_small and vit_base are DeiT's Ti, S and B.
SIZES: dict[str, dict[str, int]] = {
    "vit_tiny": {"dim": 64, "depth": 5, "heads": 4},
    "vit_mini": {"dim": 128, "depth": 6, "heads": 4},
    "vit_compact": {"dim": 192, "depth": 12, "heads": 3},
    "vit_small": {"dim": 384, "depth": 12, "heads": 6},
    "vit_base": {"dim": 768, "depth": 12, "heads": 12},
}


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, dim: int, heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, attend: Tensor | None = None) -> Tensor:
        """(B, M, D) -> (B, M, D); ``attend`` (B, M, M) or (M, M) bool, True = the row may attend to the column."""
        q, k, v = self._split(x)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=_per_head(attend))
        return self.proj(out.transpose(1, 2).flatten(2))

    def attention_weights(self, x: Tensor, attend: Tensor | None = None) -> Tensor:
        """The weights ``softmax(q k^T / sqrt(d))`` that :meth:`forward` uses but never stores: (B, heads, M, M)."""
        q, k, _ = self._split(x)
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        if attend is not None:
            scores = scores.masked_fill(~cast(Tensor, _per_head(attend)), -torch.inf)
        return scores.softmax(-1)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # 3 of (B, heads, M, d)
        return q, k, v


def _per_head(attend: Tensor | None) -> Tensor | None:
    return attend[:, None] if attend is not None and attend.dim() == 3 else attend


class Block(nn.Module):
    """Pre-norm block: ``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, dim: int, heads: int, *, mlp_ratio: float, qkv_bias: bool, layer_scale: float,
                 drop: float, drop_mode: Mode = "row", gated: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn, self.mlp = Attention(dim, heads, qkv_bias), Mlp(dim, mlp_ratio, gated=gated)
        self.ls1: nn.Module = LayerScale(dim, layer_scale) if layer_scale else nn.Identity()
        self.ls2: nn.Module = LayerScale(dim, layer_scale) if layer_scale else nn.Identity()
        self.drop_path = StochasticDepth(drop, mode=drop_mode, branches=2)

    def forward(self, x: Tensor, attend: Tensor | None = None) -> Tensor:
        """(B, M, D) -> (B, M, D)."""
        return self.feed(self.mix(x, attend))

    def mix(self, x: Tensor, attend: Tensor | None = None) -> Tensor:
        """The first half, attention. (B, M, D) -> (B, M, D)."""
        return self.drop_path.join(x, lambda: self.ls1(self.attn(self.norm1(x), attend=attend)), 0)

    def feed(self, x: Tensor) -> Tensor:
        """The second half, the MLP. (B, M, D) -> (B, M, D)."""
        return self.drop_path.join(x, lambda: self.ls2(self.mlp(self.norm2(x))), 1)


class ViT(Backbone):
    """Vision Transformer.

    Args:
        name: the name it was built by.
        channels: number of input channels.
        size: side of the images in pixels, or the sides of another sample; others work if the patch divides them.
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads; must divide ``dim``.
        patch: cells of a patch on every side; 0 = by the size of the samples
            (:func:`osteon.backbones._stems.default_patch`).
        mlp_ratio: width of the hidden layer of the MLP over ``dim``.
        pool: what ``pooled`` is: the mean of the patch tokens, the class token (which exists only then), or the first
            token (the node a graph is cut out around).
        registers: number of register tokens (Darcet et al. 2024, arXiv:2309.16588).
        positions: fixed sine-cosine positions, or learned ones interpolated to other grids, or none.
        qkv_bias: bias of the query, key and value projection.
        layer_scale: start of a learned scale on every residual branch; 0 = none.
        drop_path: rate of stochastic depth at the last block, growing linearly from 0 at the first.
        drop_mode: ``"row"`` leaves branches out of single samples; ``"batch"`` out of whole mini-batches, without
            computing them, at rates that grow from drop_path / depth.
        vocabulary: number of words a sample is written in; 0 = samples are values, cut into patches.
        levels: of rows of a table, how many levels every column has, 0 for numbers; empty = no table.
        stem: name of another way from samples to tokens, the file ``backbones/_stem_NAME.py``; empty = the above.
        stem_options: its options.
        causal: every token sees only itself and those before it; objectives that train it so set this themselves.
        trunk: blocks of attention and MLPs, or state-space blocks read in both directions (Mamba), linear in tokens.
        state: numbers of a state of the latter.
        gated: a gate a token, in (0, 1), on the hidden layer of the MLPs (TransTab).
    """

    kind = "tokens"
    highway: HighwayBP | None = None  # how gradients pass the trunk if not by back-propagation

    def __init__(self, name: str, *, channels: int, size: int | Sequence[int], dim: int, depth: int, heads: int,
                 patch: int = 0, mlp_ratio: float = 4.0, pool: Literal["mean", "cls", "first"] = "mean",
                 registers: int = 0, positions: Literal["sincos", "learned", "none"] = "sincos", qkv_bias: bool = True,
                 layer_scale: float = 0.0, drop_path: float = 0.0, drop_mode: Mode = "row", vocabulary: int = 0,
                 levels: Sequence[int] = (), stem: str = "", stem_options: Mapping[str, Any] | None = None,
                 causal: bool = False, trunk: Literal["attention", "mamba"] = "attention", state: int = 16,
                 gated: bool = False) -> None:
        extent = (size, size) if isinstance(size, int) else tuple(size)
        own = build_stem(stem, channels, extent, dim, dict(stem_options or {})) if stem else None
        chosen = own.stride if own else 1 if vocabulary or levels else patch or default_patch(extent)
        options: dict[str, Any] = {
            "dim": dim, "depth": depth, "heads": heads, "patch": chosen, "mlp_ratio": mlp_ratio, "pool": pool,
            "registers": registers, "positions": positions, "qkv_bias": qkv_bias, "layer_scale": layer_scale,
            "drop_path": drop_path, **({"drop_mode": drop_mode} if drop_mode != "row" else {}),
            **({"vocabulary": vocabulary} if vocabulary else {}),
            **({"levels": list(levels)} if levels else {}),
            **({"stem": stem, "stem_options": dict(stem_options or {})} if stem else {}),
            **({"causal": True} if causal else {}),
            **({"trunk": trunk, "state": state} if trunk != "attention" else {}),
            **({"gated": True} if gated else {})}
        super().__init__(name, channels=channels, size=size, options=options)
        _check_options(options)
        self.dim = self.token_dim = dim
        self.stride, self.pool, self.discrete, self.causal = chosen, pool, vocabulary > 0, causal
        self.patch_embed: Stem = own or (ColumnEmbed(levels, dim) if levels else WordEmbed(vocabulary, dim)
                                         if vocabulary else PatchEmbed(channels, len(self.extent), chosen, dim))
        self.reference = self.grid(*self.extent)  # the grid whose cells positions are counted in
        if own:
            self.notes.append(own.note())
        elif levels:
            self.notes.append(f"tokens: one a column, {sum(n == 0 for n in levels)} of numbers and "
                              f"{sum(n > 0 for n in levels)} of categories")
        elif not vocabulary:
            self.notes.append(patch_note(chosen, self.reference, asked=bool(patch)))
        self.own_error, self.place_width = self.patch_embed.own_error, self.patch_embed.place_width
        self.place_embed = PlaceEmbed(self.place_width, dim) if self.place_width else None
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if pool == "cls" else None
        self.reg_token = nn.Parameter(torch.zeros(1, registers, dim)) if registers else None
        cells = math.prod(self.reference)
        self.pos_embed = nn.Parameter(torch.zeros(1, cells, dim)) if positions == "learned" else None
        self.blocks = nn.ModuleList(
            MambaBlock(dim, state=state, drop=rate, drop_mode=drop_mode) if trunk == "mamba" else
            Block(dim, heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, layer_scale=layer_scale, drop=rate,
                  drop_mode=drop_mode, gated=gated)
            for rate in drop_rates(drop_path, depth, drop_mode))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self._fixed: dict[tuple[int, ...], Tensor] = {}  # sine-cosine positions already computed
        self._initialise()

    def grid(self, *extent: int) -> tuple[int, ...]:
        """Sides of the grid of tokens; see :meth:`Backbone.grid`."""
        stem = getattr(self, "patch_embed", None)  # a trunk whose stem was taken away has a plain grid
        own = None if stem is None else stem.grid(*extent)
        return super().grid(*extent) if own is None else own

    def stem(self, x: Tensor) -> Tensor:
        """(B, C, *extent) -> patch tokens (B, N, D) without positions."""
        self._check_images(x)
        self.grid(*x.shape[2:])
        return self.patch_embed(x)

    def shown(self, x: Tensor) -> Tensor:
        """What each token shows; see :meth:`Backbone.shown`."""
        return self.patch_embed.shown(x)

    def shown_error(self, prediction: Tensor, shown: Tensor) -> Tensor:
        """Error of every token; see :meth:`Backbone.shown_error`."""
        return self.patch_embed.shown_error(prediction, shown)

    def shown_values(self, prediction: Tensor) -> Tensor:
        """Predictions as cells; see :meth:`Backbone.shown_values`."""
        return self.patch_embed.shown_values(prediction)

    def shown_blank(self, shown: Tensor) -> Tensor:
        """What stands for hidden tokens; see :meth:`Backbone.shown_blank`."""
        return self.patch_embed.shown_blank(shown)

    def assemble(self, shown: Tensor, x: Tensor) -> Tensor:
        """Samples from what tokens show; see :meth:`Backbone.assemble`."""
        return self.patch_embed.assemble(shown, x)

    def places(self, x: Tensor) -> Tensor | None:
        """Where tokens lie; see :meth:`Backbone.places`."""
        return self.patch_embed.places(x)

    def present(self, x: Tensor) -> Tensor | None:
        """Which tokens are real; see :meth:`Backbone.present`."""
        return self.patch_embed.present(x)

    def example(self, count: int, *, seed: int = 0) -> Tensor:
        """Samples as the stem takes them; see :meth:`Backbone.example`."""
        return self.patch_embed.example((count, self.channels, *self.extent), torch.Generator().manual_seed(seed))

    @property
    def shown_width(self) -> int:
        """Numbers it takes to predict what one token shows."""
        return self.patch_embed.shown_width

    def positions(self, grid: tuple[int, ...], x: Tensor | None = None) -> Tensor:
        """(1, N, D) of any grid, which is taken to show the field of view of the grid the network was built for.

        Of tokens with places of their own: a learned map of the places in ``x``, (B, N, D).

        Words are counted from the first one instead: a shorter text is a part, not a coarser picture. The fixed
        positions of a table's columns are 1 / sqrt(D) as large, like the vectors they are added to: every column has
        weights of its own, and positions of full size would drown the cells.
        """
        if self.options["positions"] == "none":
            return self.norm.weight.new_zeros(1, math.prod(grid), self.token_dim)
        if self.place_embed is not None:
            if x is None:
                raise self._refuse("positions without a sample", "Give the samples too.")
            return self.place_embed(cast(Tensor, self.places(x)))
        if self.pos_embed is not None and self.discrete and grid[0] <= self.reference[0]:
            return self.pos_embed[:, :grid[0]]
        if self.pos_embed is not None:
            return resample(self.pos_embed, self.reference, grid)
        like = self.norm.weight
        known = self._fixed.get(grid)
        if known is None or known.device != like.device or known.dtype != like.dtype:
            with torch.inference_mode(False):  # what evaluation computes first must serve training too
                fixed = sincos(grid, self.token_dim, reference=None if self.discrete else self.reference)
                known = self._fixed[grid] = (fixed * self.token_dim**-0.5 if self.own_error else fixed).to(
                    like)
        return known

    def prefix(self, batch: int) -> Tensor:
        """Class token, then registers: (B, P, D), P = 0 when there are none. They carry no position."""
        parts: list[Tensor] = [p for p in (self.cls_token, self.reg_token) if p is not None]
        if not parts:
            return self.norm.weight.new_zeros(batch, 0, self.token_dim)
        return torch.cat(parts, 1).expand(batch, -1, -1)

    def trunk(self, tokens: Tensor, *, attend: Tensor | None = None,
              collect: Sequence[int] = ()) -> Tensor | tuple[Tensor, list[Tensor]]:
        """All blocks and the last norm on exactly the tokens given; :meth:`prefix` tokens are the caller's to prepend.

        Args:
            tokens: (B, M, D), positions added.
            attend: (B, M, M) or (M, M) bool, True = the row may attend to the column.
            collect: block numbers from 0 (negative: from the end) whose outputs, before the last norm, are returned
                as a list in that order beside the tokens.
        """
        depth = len(self.blocks)
        if any(not -depth <= i < depth for i in collect):
            raise UsageError(f"{self.name} has blocks 0 to {depth - 1}.", where=f"collect={list(collect)}")
        wanted = [i % depth for i in collect]
        seen: dict[int, Tensor] = {}
        if self.highway is not None and torch.is_grad_enabled():
            if wanted:
                raise self._refuse("Highway-BP beside outputs of single blocks", "Leave --set highway out.")
            return self.norm(self.highway(self.layers(attend), tokens))
        for i, block in enumerate(self.blocks):
            tokens = block(tokens, attend=attend)
            if i in wanted:
                seen[i] = tokens
        tokens = self.norm(tokens)
        return (tokens, [seen[i] for i in wanted]) if wanted else tokens

    def layers(self, attend: Tensor | None = None) -> list[Layer]:
        """The residual layers of the trunk, in order: two a block of attention and MLP, one a state-space block."""
        halves = [[layer_of(partial(b.mix, attend=attend), b.norm1, b.attn, b.ls1),
                   layer_of(b.feed, b.norm2, b.mlp, b.ls2)]
                  if isinstance(b, Block) else [layer_of(partial(b, attend=attend), b)] for b in self.blocks]
        return [half for pair in halves for half in pair]

    def forward(self, x: Tensor, *, keep: Tensor | None = None, mask: Tensor | None = None,
                mask_token: Tensor | None = None) -> Features:
        """(B, C, *extent) -> Features; see :meth:`Backbone.forward`."""
        (tokens, grid), present = placed_tokens(self, x, mask, mask_token), self.present(x)
        if keep is not None:
            tokens, present = take_kept(tokens, keep), None if present is None else present.gather(1, keep)
        return self.finish(tokens, grid, present)

    def finish(self, tokens: Tensor, grid: tuple[int, ...], present: Tensor | None = None) -> Features:
        """Patch tokens with positions (B, K, D) of a grid -> trunk with class and register tokens -> Features.

        The mean is over the tokens that are present, and ``pool="first"`` takes the first token where all are there.
        """
        stem = getattr(self, "patch_embed", None)
        if present is not None and stem is not None and stem.sparse and holds(~present.any(0).all()):
            return finish_some(self, tokens, grid, present)
        prefix = self.prefix(tokens.shape[0])
        count = prefix.shape[1]
        tokens = torch.cat([prefix.to(tokens.dtype), tokens], 1) if count else tokens
        tokens, attend = self.looked_at(tokens, count, present)
        return self.summed_up(cast(Tensor, self.trunk(tokens, attend=attend)), count, grid, present)

    def looked_at(self, tokens: Tensor, count: int, present: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, ``count`` + N, D) as blocks take them, and which may look at which: (B, M, M), (M, M) or None."""
        m, attend = tokens.shape[1], None
        if self.causal:
            attend = torch.ones(m, m, dtype=torch.bool, device=tokens.device).tril()
        if present is not None:
            there = F.pad(present | ~present.any(1, keepdim=True), (count, 0), value=True)
            if self.options.get("trunk") == "mamba":  # it has no attention: what fills up is read as zeros
                tokens = tokens * there[..., None].to(tokens.dtype)
            else:
                seen = there[:, None].expand(-1, m, -1)
                attend = seen if attend is None else seen & attend | torch.eye(m, dtype=torch.bool, device=seen.device)
        return tokens, attend

    def summed_up(self, out: Tensor, count: int, grid: tuple[int, ...], present: Tensor | None) -> Features:
        """Features of what leaves the last norm, (B, ``count`` + N, D), the first ``count`` being the prefix."""
        cls, patches = out[:, 0] if self.cls_token is not None else None, out[:, count:]
        if cls is not None:
            pooled = cls
        elif self.pool == "first" and patches.shape[1] == math.prod(grid):
            pooled = patches[:, 0]
        elif present is not None:
            present = present | ~present.any(1, keepdim=True)
            pooled = (patches * (present / present.sum(1, keepdim=True))[..., None].to(patches)).sum(1)
        else:
            pooled = patches.mean(1)
        return Features(pooled=pooled, tokens=patches, grid=grid, cls=cls)

    def make_causal(self) -> None:
        """See :meth:`Backbone.make_causal`; a class token, which comes first, would see nothing and is refused."""
        if self.cls_token is not None or "trunk" in self.options:
            raise self._refuse("causal attention with a class token or without attention", "Set pool=mean.")
        if not self.causal:
            self.causal, self.options["causal"] = True, True
            self.notes.append("attention: causal (rule: as the objective trains it)")

    def _initialise(self) -> None:
        """Xavier-uniform linear maps, patches included, as in MAE's code; tokens and positions normal with sd 0.02."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, Selective):
                module.initialise()
        self.patch_embed.initialise()
        for token in (self.cls_token, self.reg_token, self.pos_embed):
            if token is not None:
                nn.init.normal_(token, std=0.02)


def _check_options(options: dict[str, Any]) -> None:
    dim, heads = options["dim"], options["heads"]
    if min(dim, heads, options["depth"], options["patch"]) < 1 or dim % heads:
        raise UsageError(f"heads ({heads}) must divide dim ({dim}); dim, depth and patch are at least 1.", where="vit",
                         fix="Choose heads among the divisors of dim.")
    if options["registers"] < 0 or options["mlp_ratio"] <= 0:
        raise UsageError("registers must not be negative and mlp_ratio must be positive.", where="vit",
                         fix="Leave them out.")
    if options.get("trunk", "mamba") != "mamba" or options.get("state", 1) < 1 or (
            "trunk" in options and options.get("causal")):
        raise UsageError("trunk is attention, or mamba with a state of at least 1 and without causal.", where="vit")
    for key, allowed in (("pool", ("mean", "cls", "first")), ("positions", ("sincos", "learned", "none"))):
        if options[key] not in allowed:
            raise UsageError(f"{key} must be one of {', '.join(allowed)}, not {options[key]!r}.", where="vit")
