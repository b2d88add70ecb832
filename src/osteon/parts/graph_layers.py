"""Layers of graph networks, for backbones and decoders: graph convolution, isomorphism and attention layers.

Each has ``mixing(adjacency, there)``, what is computed once a graph, and ``forward(h, mixing)``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.parts.graphs import propagate, sparse_or_none, symmetric_norm


class GCNConv(nn.Module):
    """``D^-1/2 (A + I) D^-1/2 H W + b``: Kipf & Welling 2017, arXiv:1609.02907, equation 2.

    Args:
        inputs: width of a node before.
        outputs: width after.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.xavier_uniform_(self.linear.weight)

    def mixing(self, adjacency: Tensor, there: Tensor) -> Tensor:
        """The normalised adjacency, (B, N, N), sparse of one large graph."""
        return symmetric_norm(adjacency, there)

    def forward(self, h: Tensor, mixing: Tensor) -> Tensor:
        """(B, N, inputs) -> (B, N, outputs); the narrower side is passed on, which is the same."""
        if self.linear.in_features < self.linear.out_features:
            return self.linear(propagate(mixing, h)) + self.bias
        return propagate(mixing, self.linear(h)) + self.bias


class GINConv(nn.Module):
    """A perceptron of ``(1 + eps) h_i + sum_j A_ij h_j``: Xu et al. 2019, arXiv:1810.00826, equation 4.1."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.eps = nn.Parameter(torch.zeros(()))
        self.first, self.second = nn.Linear(inputs, outputs), nn.Linear(outputs, outputs)
        self.norm = nn.LayerNorm(outputs)

    def mixing(self, adjacency: Tensor, there: Tensor) -> Tensor:
        """The adjacency itself, sparse of one large graph."""
        sparse = sparse_or_none(adjacency)
        return adjacency if sparse is None else sparse

    def forward(self, h: Tensor, mixing: Tensor) -> Tensor:
        """(B, N, inputs) -> (B, N, outputs)."""
        seen = (1 + self.eps) * h + propagate(mixing, h)
        return self.second(F.relu(self.norm(self.first(seen))))


class GATConv(nn.Module):
    """Attention over neighbours and the node itself: Velickovic et al. 2018, arXiv:1710.10903, equations 1 to 5.

    Args:
        inputs: width of a node before.
        outputs: width after, of all heads together.
        heads: number of heads, a divisor of ``outputs``.
    """

    def __init__(self, inputs: int, outputs: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.asks, self.tells = (nn.Parameter(torch.empty(heads, outputs // heads)) for _ in range(2))
        self.bias = nn.Parameter(torch.zeros(outputs))
        for weight in (self.linear.weight, self.asks, self.tells):
            nn.init.xavier_uniform_(weight)

    def mixing(self, adjacency: Tensor, there: Tensor) -> Tensor:
        """The adjacency with self-loops; a node that does not exist looks at itself alone."""
        return adjacency + torch.eye(adjacency.shape[1], dtype=adjacency.dtype, device=adjacency.device)

    def forward(self, h: Tensor, mixing: Tensor) -> Tensor:
        """(B, N, inputs) -> (B, N, outputs)."""
        values = self.linear(h).unflatten(-1, (self.heads, -1))  # (B, N, H, d)
        asked, told = ((values * w).sum(-1).transpose(1, 2) for w in (self.asks, self.tells))  # (B, H, N)
        out = []
        for head in range(self.heads):
            scores = F.leaky_relu(asked[:, head, :, None] + told[:, head, None], 0.2)
            weight = (scores.masked_fill(mixing == 0, -torch.inf) + mixing.clamp(min=1e-12).log()).softmax(-1)
            out.append(weight @ values[:, :, head])
        return torch.cat(out, -1) + self.bias


#: Name of a kind of layer -> its class.
CONVS: dict[str, type[GCNConv] | type[GINConv] | type[GATConv]] = {"gcn": GCNConv, "gin": GINConv, "gat": GATConv}


def make_conv(kind: str, inputs: int, outputs: int, heads: int = 1) -> GCNConv | GINConv | GATConv:
    """A layer of a kind; ``heads`` counts for attention alone."""
    return GATConv(inputs, outputs, heads) if kind == "gat" else CONVS[kind](inputs, outputs)
