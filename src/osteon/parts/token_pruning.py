"""A Transformer block that leaves out tokens after it ran: unimportant ones by attention, then near copies.

Wang et al. 2023 (Zero-TPrune), arXiv:2305.17328, sections 3.2 and 3.3.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.core.errors import UsageError


def page_rank(attention: Tensor, iterations: int) -> Tensor:
    """How important each token is to important tokens, a head at a time: ``s <- A^T s`` from equal shares.

    Args:
        attention: (B, H, N, N), rows sum to one.
        iterations: times the rule is applied.

    Returns:
        (B, H, N), not negative, each head's scores sum to one.
    """
    n = attention.shape[-1]
    score = attention.new_full((*attention.shape[:2], n), 1 / n)
    for _ in range(iterations):
        score = (attention.transpose(-2, -1) @ score[..., None])[..., 0]
    return score


def combine_heads(score: Tensor, low: float, high: float) -> Tensor:
    """Root mean square over the heads whose scores vary neither too little nor too much. (B, H, N) -> (B, N).

    Args:
        score: sums to one a head.
        low: smallest variance of a head's scores, rescaled to mean one.
        high: largest such variance. Where no head of a sample lies between, all its heads count.
    """
    scaled = score * score.shape[-1]
    variance = scaled.var(-1, unbiased=False)
    fit = ((variance >= low) & (variance <= high)).to(score.dtype)
    fit = torch.where(fit.sum(1, keepdim=True) > 0, fit, torch.ones_like(fit))
    return ((scaled**2 * fit[..., None]).sum(1) / fit.sum(1, keepdim=True)).sqrt()


def least_similar(keys: Tensor, order: Tensor, drop: int) -> Tensor:
    """Which tokens stay when near copies go: (B, N) bool with N - drop True a sample.

    Tokens in the order of importance fall alternately into two groups; the ``drop`` tokens of the less important half
    of each pair of groups that are most similar (cosine of keys) to a token of the other group leave.

    Args:
        keys: (B, N, d).
        order: (B, N) int64, most important first.
        drop: at most half the tokens, rounded down.
    """
    batch, n, _ = keys.shape
    unit = F.normalize(keys, dim=-1)
    stays_at, leaves_at = order[:, 0::2], order[:, 1::2]
    def pick(index: Tensor) -> Tensor:
        return unit.gather(1, index[..., None].expand(-1, -1, unit.shape[-1]))

    likeness = (pick(leaves_at) @ pick(stays_at).transpose(1, 2)).amax(2)
    gone = leaves_at.gather(1, likeness.topk(min(drop, leaves_at.shape[1]), 1).indices)
    keep = torch.ones(batch, n, dtype=torch.bool, device=keys.device)
    return keep.scatter(1, gone, False)


class TokenPruning(nn.Module):
    """A block followed by the choice of the tokens that go on.

    Args:
        block: block with ``norm1`` and ``attn`` (a fused ``qkv``), as osteon's and timm's are.
        prefix: class and register tokens at the front, which always stay.
        keep_importance: share of the other tokens that stay for their importance.
        keep_similarity: share of those that stay after near copies left, at least one half.
        iterations: of the page rank.
        low, high: bounds of :func:`combine_heads`.
    """

    def __init__(self, block: nn.Module, *, prefix: int, keep_importance: float, keep_similarity: float,
                 iterations: int, low: float = 0.01, high: float = 0.7) -> None:
        super().__init__()
        attention = getattr(block, "attn", None)
        if attention is None or not hasattr(attention, "qkv") or not hasattr(block, "norm1"):
            raise UsageError("Tokens can be pruned after blocks with norm1 and a fused qkv only.", where="layers",
                             fix="Use osteon's vit_* or a plain ViT of timm.")
        self.block = block
        self.prefix, self.iterations, self.low, self.high = prefix, iterations, low, high
        self.set_ratio(keep_importance, keep_similarity)

    def set_ratio(self, keep_importance: float, keep_similarity: float) -> None:
        """Change the shares that stay; the network needs nothing else.

        Raises:
            UsageError: shares outside (0, 1], or a similarity share below one half.
        """
        if not 0 < keep_importance <= 1 or not 0.5 <= keep_similarity <= 1:
            raise UsageError(f"keep_importance lies in (0, 1] and keep_similarity in [0.5, 1], not {keep_importance} "
                             f"and {keep_similarity}.", where="zero_tprune")
        self.keep_importance, self.keep_similarity = keep_importance, keep_similarity

    def forward(self, x: Tensor, attend: Tensor | None = None, **options: Any) -> Tensor:
        """(B, P + N, D) -> (B, P + N', D), raster order kept; N' is the same for every sample."""
        if attend is not None or options:
            raise UsageError("A network whose tokens are pruned takes no attention mask.", where="zero_tprune",
                             fix="Use the network it was made from.")
        n = x.shape[1] - self.prefix
        first = max(1, round(n * self.keep_importance))
        second = max(1, first - min(first // 2, round(first * (1 - self.keep_similarity))))
        if second == n:
            return self.block(x)
        out, score, keys = self._look(x)
        index = score.topk(first, 1).indices  # most important first
        if second < first:
            chosen = keys.gather(1, index[..., None].expand(-1, -1, keys.shape[-1]))
            rank = torch.arange(first, device=x.device).expand(x.shape[0], -1)
            keep = least_similar(chosen, rank, first - second)
            index = index.gather(1, keep.to(torch.int8).topk(second, 1).indices)
        index = index.sort(1).values + self.prefix
        patches = out.gather(1, index[..., None].expand(-1, -1, out.shape[-1]))
        return torch.cat([out[:, :self.prefix], patches], 1) if self.prefix else patches

    def _look(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The block's output (B, P + N, D), importance of the patch tokens (B, N), and their keys (B, N, D).

        Queries and keys are those the block itself computes on the way; only their product is taken once more, since
        fused attention never stores it.
        """
        attn: Any = self.block.attn
        seen: list[Tensor] = []
        hook = attn.qkv.register_forward_hook(lambda _module, _inputs, made: seen.append(made.detach()))
        try:
            out = self.block(x)
        finally:
            hook.remove()
        if not seen:
            raise UsageError("The attention of this block computes queries and keys beside its qkv layer.",
                             where="layers", fix="Use osteon's vit_* or a plain ViT of timm.")
        q, k, _ = seen[0].unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = getattr(attn, "q_norm", _same)(q), getattr(attn, "k_norm", _same)(k)
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        score = combine_heads(page_rank(weights, self.iterations), self.low, self.high)
        return out, score[:, self.prefix:], k.transpose(1, 2).flatten(2)[:, self.prefix:]


def _same(x: Tensor) -> Tensor:
    return x
