"""Stochastic depth: leave out a residual branch for some samples while training.

Huang et al. 2016, arXiv:1603.09382, section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from osteon.core.errors import UsageError


class DropPath(nn.Module):
    """Set the branch to zero for a random share of the samples and scale the rest so that the mean is unchanged.

    Draws from the global generator, which the training loop seeds at every step. The identity in evaluation mode.

    Args:
        rate: probability that a sample's branch is dropped, in [0, 1).
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise UsageError(f"The drop-path rate must lie in [0, 1), not {rate}.", where="drop_path")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        if self.rate == 0.0 or not self.training:
            return x
        kept = torch.rand(x.shape[0], *[1] * (x.dim() - 1), device=x.device) >= self.rate
        return x * (kept / (1.0 - self.rate)).to(x.dtype)

    def extra_repr(self) -> str:
        """Settings shown by ``print``."""
        return f"rate={self.rate}"


def drop_rates(rate: float, depth: int) -> list[float]:
    """Rates that grow linearly from 0 at the first block to ``rate`` at the last."""
    return [rate * i / max(1, depth - 1) for i in range(depth)]
