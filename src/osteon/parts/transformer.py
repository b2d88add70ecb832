"""Transformer blocks shared by backbones, decoders and predictors: pre-norm attention and MLP."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.parts.positions import PlaceEmbed, sincos


class Mlp(nn.Module):
    """Two linear layers with GELU between. (..., D) -> (..., D).

    Args:
        dim: D.
        ratio: width of the hidden layer over D.
        gated: multiply the hidden layer before its activation by a number in (0, 1), a learned function of the token
            (Wang & Sun 2022, TransTab, as in the authors' code).
    """

    def __init__(self, dim: int, ratio: float = 4.0, *, gated: bool = False) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, int(dim * ratio))
        self.fc2 = nn.Linear(int(dim * ratio), dim)
        self.gate = nn.Linear(dim, 1, bias=False) if gated else None

    def forward(self, x: Tensor) -> Tensor:
        """Apply to every token."""
        hidden = self.fc1(x)
        return self.fc2(F.gelu(hidden if self.gate is None else hidden * self.gate(x).sigmoid()))


class LayerScale(nn.Module):
    """A learned scale per feature on a residual branch (Touvron et al. 2021, arXiv:2103.17239, section 2)."""

    def __init__(self, dim: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), start))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return x * self.gamma


class Attention(nn.Module):
    """Multi-head attention of queries on a context; the context defaults to the queries themselves."""

    def __init__(self, dim: int, heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor | None = None, attend: Tensor | None = None) -> Tensor:
        """(B, N, D), (B, M, D) -> (B, N, D); ``attend`` (B, N, M) or (N, M) bool, True = may attend."""
        context = x if context is None else context
        b, n, d = x.shape
        m = context.shape[1]
        q = self.q(x).reshape(b, n, self.heads, d // self.heads).transpose(1, 2)
        k, v = self.kv(context).reshape(b, m, 2, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        if attend is not None and attend.dim() == 3:
            attend = attend[:, None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attend)
        return self.proj(out.transpose(1, 2).reshape(b, n, d))


class Block(nn.Module):
    """Pre-norm Transformer block: x + attention(norm x), then x + MLP(norm x)."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn, self.mlp = Attention(dim, heads), Mlp(dim, mlp_ratio)

    def forward(self, x: Tensor, attend: Tensor | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        x = x + self.attn(self.norm1(x), attend=attend)
        return x + self.mlp(self.norm2(x))


class TokenDecoder(nn.Module):
    """Light Transformer that predicts something for every token of a grid from the visible ones.

    Visible tokens are projected to the decoder's width, hidden places get one learned mask token, all get fixed
    sin-cos positions, and ``depth`` blocks and a linear layer follow (MAE, sec. 3).

    Args:
        in_dim: width of the encoder's tokens.
        out_dim: width of the prediction.
        positions: (1, N, dim) fixed positions of the full grid.
        depth: number of blocks.
        heads: attention heads; ``dim`` must be a multiple.
        place_width: coordinates of tokens that have places of their own, which then count instead of ``positions``.
        reference: the full grid, where smaller ones may come.
    """

    def __init__(self, in_dim: int, out_dim: int, positions: Tensor, *, depth: int, heads: int,
                 place_width: int = 0, reference: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.reference = reference
        dim = positions.shape[-1]
        self.embed = nn.Linear(in_dim, dim)
        self.mask_token = nn.Parameter(positions.new_zeros(dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.register_buffer("positions", positions.clone(), persistent=False)
        self.place_embed = PlaceEmbed(place_width, dim) if place_width else None
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.out = nn.Linear(dim, out_dim)

    positions: Tensor

    def forward(self, visible: Tensor, keep: Tensor, places: Tensor | None = None,
                grid: tuple[int, ...] | None = None) -> Tensor:
        """(B, K, in_dim) tokens of number ``keep`` (B, K) -> predictions (B, N, out_dim).

        ``places`` (B, N, place_width) are where all tokens lie, if not on the grid. A ``grid`` other than ``reference``
        is taken to show the same field of view.
        """
        positions = self.positions
        if self.reference and grid not in (None, self.reference):
            positions = sincos(grid, positions.shape[-1], reference=self.reference).to(positions)
        x = self.embed(visible)
        b, _, d = x.shape
        n = positions.shape[1]
        full = self.mask_token.to(x.dtype).expand(b, n, d).scatter(1, keep[..., None].expand(-1, -1, d), x)
        full = full + (positions if self.place_embed is None else self.place_embed(places)).to(x.dtype)
        return self._predict(full)

    def at(self, visible: Tensor, keep: Tensor, asked: Tensor) -> Tensor:
        """Predictions for some places alone: mask tokens stand there, beside the visible tokens, and nowhere else.

        (B, K, in_dim) tokens of number ``keep`` (B, K), places ``asked`` (B, M) -> (B, M, out_dim). A place may be
        among both; its tokens are then two.
        """
        x = self.embed(visible)
        b, count, d = x.shape
        tokens = torch.cat([x, self.mask_token.to(x.dtype).expand(b, asked.shape[1], d)], 1)
        where = torch.cat([keep, asked], 1)
        return self._predict(tokens + self.positions[0].to(x.dtype)[where])[:, count:]

    def _predict(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens)
        return self.out(self.norm(tokens))
