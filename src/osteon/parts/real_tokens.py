"""Which rows of a layer's input belong to tokens that are there, so that statistics do not count what only fills up."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RealTokens:
    """Of one batch: which tokens are real, for layers that see all of them, with or without the prefix.

    Class and register tokens are real. A Transformer whose stem is sparse skips tokens that no sample of a batch has:
    its layers see fewer.

    Args:
        network: that the batch goes through.
        x: samples (B, C, *extent) as it takes them.
    """

    def __init__(self, network: nn.Module, x: Tensor) -> None:
        known = cast(Any, network)
        self.tokens: Tensor | None = known.present(x) if hasattr(known, "present") else None
        self._layers: dict[int, Tensor] = {}
        if self.tokens is not None:
            prefix = int(known.prefix(1).shape[1]) if known.kind == "tokens" else 0
            skips = getattr(getattr(known, "patch_embed", None), "sparse", False)
            seen = self.tokens[:, self.tokens.any(0)] if skips else self.tokens
            for mask in (self.tokens, F.pad(seen, (prefix, 0), value=True)):
                self._layers[mask.shape[1]] = mask

    def of(self, rows: Tensor) -> Tensor | None:
        """(B, N) bool for what a layer takes in or puts out, (B, N, D), or None where all of it is real."""
        mask = self._layers.get(rows.shape[1]) if rows.dim() == 3 else None
        return mask if mask is not None and len(mask) == len(rows) else None

    def take(self, rows: Tensor) -> Tensor:
        """Real rows of what a layer takes in or puts out: (B, N, D) -> (R, D); of other shapes (..., D) all."""
        mask = self.of(rows)
        return rows.flatten(0, -2) if mask is None else rows[mask]

    def mean(self, rows: Tensor, mask: Tensor | None) -> Tensor:
        """(B, N, D) -> (B, D), the mean over the tokens of a mask (B, N), or over all."""
        if mask is None:
            return rows.mean(1)
        return torch.einsum("bn,bnd->bd", mask.to(rows) / mask.sum(1, keepdim=True), rows)
