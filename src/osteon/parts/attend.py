"""Who may attend to whom: masks for the attention of Transformers, True = the row may attend to the column."""

from __future__ import annotations

import torch
from torch import Tensor


def prefix_attention(free: Tensor) -> Tensor:
    """All to the prefix, and every token to itself and what comes before it.

    Args:
        free: (B, M) bool, True = belongs to the prefix; none gives a causal mask.

    Returns:
        (B, M, M) bool.
    """
    m = free.shape[1]
    past = torch.ones(m, m, dtype=torch.bool, device=free.device).tril()
    return past | free[:, None]
