"""Low-rank training: every weight stays, and a thin product beside it learns.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685, section 4.1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.core.errors import UsageError
from osteon.parts.reparam import Change, Layer, Reparam, as_matrix, reparametrise, run_layer, select_layers


class LowRank(Change):
    """``dW = B A`` with A (rank, in) drawn as a linear layer's weight and B (out, rank) zero, so training starts at W.

    Args:
        layer: whose weight it changes.
        rank: r, at least 1; more than the weight's own rank is cut to it.
    """

    def __init__(self, layer: Layer, rank: int) -> None:
        super().__init__()
        matrix = as_matrix(layer.weight)
        rank = min(rank, *matrix.shape)
        self.shape = layer.weight.shape
        self.down = nn.Parameter(torch.empty(rank, matrix.shape[1], device=matrix.device, dtype=matrix.dtype))
        self.up = nn.Parameter(torch.zeros(matrix.shape[0], rank, device=matrix.device, dtype=matrix.dtype))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def weight_delta(self) -> Tensor:
        """B A in the weight's own shape."""
        return (self.up @ self.down).view(self.shape)

    def respond(self, x: Tensor, base: Layer) -> Tensor | None:
        """Through the thin side: rank (in + out) operations a row instead of in times out."""
        if isinstance(base, nn.Linear):
            return F.linear(F.linear(x, self.down), self.up)
        if base.groups > 1:
            return None
        thin = run_layer(base, x, self.down.view(-1, *self.shape[1:]), None)
        return F.conv2d(thin, self.up[:, :, None, None])


def train_low_rank(network: nn.Module, rank: int) -> tuple[int, int]:
    """Freeze a network and put a low-rank change beside every linear layer and, in convolutional ones, convolution.

    Running statistics of BatchNorm go on following the data. Fold the changes in with
    :func:`osteon.parts.reparam.merged`.

    Args:
        network: changed in place; computes the same as before.
        rank: r, at least 1.

    Returns:
        Numbers of the changed layers and of the parameters that train.
    """
    if rank < 1:
        raise UsageError(f"A rank of {rank} trains nothing.", where="low_rank", fix="Use 1 or more, e.g. 8.")
    network.requires_grad_(False)
    made: dict[str, Reparam] = reparametrise(network, select_layers(network, "auto", grouped=False),
                                             lambda _name, layer: LowRank(layer, rank))
    return len(made), sum(p.numel() for p in network.parameters() if p.requires_grad)
