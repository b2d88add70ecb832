"""Supervised contrastive loss: samples of one label attract, all others repel.

Khosla et al. 2020, arXiv:2004.11362, eq. 2 (the form with the sum outside the logarithm).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from osteon.core.errors import UsageError


def supcon(z_BP: Tensor, label: Tensor, temperature: float, *, cosine: bool = True) -> Tensor:
    """Mean over samples of ``-1/|P(i)| sum_{p in P(i)} log(exp(s_ip/T) / sum_{a != i} exp(s_ia/T))``.

    ``s`` is the cosine similarity (or the plain product) and P(i) the other samples with i's label. Samples whose label
    is alone in the batch have nothing to attract and are left out of the mean; if all are, the loss is zero.

    Args:
        z_BP: (B, P) embeddings of the whole batch.
        label: (B,) integers.
        temperature: T of the softmax.
        cosine: scale embeddings to length 1 first.

    Returns:
        () at least 0; log(B - 1) when all embeddings are the same.

    Raises:
        UsageError: for a temperature that is not positive.
    """
    if temperature <= 0:
        raise UsageError(f"temperature={temperature} must be positive.", where="--set temperature")
    z = F.normalize(z_BP.float(), dim=-1) if cosine else z_BP.float()
    self_pair = torch.eye(len(z), dtype=torch.bool, device=z.device)
    log_prob = (z @ z.T / temperature).masked_fill(self_pair, float("-inf")).log_softmax(1)
    positive = (label[:, None] == label[None, :]) & ~self_pair
    count = positive.sum(1)
    # Only positives are summed: the excluded self pair is -inf, and 0 * -inf would be NaN.
    per_sample = -log_prob.masked_fill(~positive, 0.0).sum(1) / count.clamp(min=1)
    return per_sample.sum() / (count > 0).sum().clamp(min=1)
