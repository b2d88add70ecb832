"""Contrast of the views of a sample with everything else in the batch.

Chen et al. 2020 (SimCLR), arXiv:2002.05709, eq. 1 and algorithm 1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def nt_xent(z_BVP: Tensor, temperature: float) -> Tensor:
    """Normalised-temperature cross-entropy over every pair of views of a sample.

    For view i of a sample and each other view p of it: -log exp(s_ip/T) / sum over all a != i of exp(s_ia/T), with s
    the cosine similarity. (B, V, P) -> ().
    """
    b, v, _ = z_BVP.shape
    z = F.normalize(z_BVP.float(), dim=-1).transpose(0, 1).reshape(v * b, -1)
    logits = z @ z.T / temperature
    logits.fill_diagonal_(float("-inf"))
    log_prob = logits.log_softmax(dim=1)
    rows = torch.arange(v * b, device=z.device)
    shifts = [log_prob[rows, (rows + k * b) % (v * b)] for k in range(1, v)]
    return -torch.stack(shifts).mean()
