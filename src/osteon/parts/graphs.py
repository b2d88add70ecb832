"""Graphs as dense tensors: features over the adjacency in one sample, propagation, places of nodes, and errors.

A sample (F + N, N) holds the F features of N nodes, a column each, and below them the symmetric adjacency without
self-loops, whose diagonal is 1 for nodes that exist and 0 for those that only fill the sample up.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from osteon.core.errors import UsageError
from osteon.parts.tracing import holds, tracing

#: Nodes from which a single graph with few edges is multiplied as a sparse matrix.
LARGE = 512
#: ... and the share of all pairs that may be edges.
FEW = 0.05


def features_of(x: Tensor) -> Tensor:
    """The features in samples (B, F + N, N): (B, N, F)."""
    return x[:, :x.shape[1] - x.shape[2]].transpose(1, 2)


def present_of(x: Tensor) -> Tensor:
    """Which nodes exist in samples (B, F + N, N): (B, N) bool."""
    return x[:, x.shape[1] - x.shape[2]:].diagonal(dim1=1, dim2=2) > 0


def adjacency_of(x: Tensor) -> Tensor:
    """Weights of the edges in samples (B, F + N, N), the diagonal 0: (B, N, N)."""
    square = x[:, x.shape[1] - x.shape[2]:].clone()
    square.diagonal(dim1=1, dim2=2).zero_()
    return square


def assemble(features: Tensor, adjacency: Tensor, present: Tensor) -> Tensor:
    """Samples (B, F + N, N) from features (B, N, F), adjacency (B, N, N) and existing nodes (B, N)."""
    made = torch.cat([features.transpose(1, 2), adjacency.to(features.dtype)], 1)
    made[:, features.shape[2]:].diagonal(dim1=1, dim2=2).copy_(present)
    return made


def check_samples(x: Tensor, features: int, where: str) -> None:
    """Raise UsageError unless x is (B, ``features`` + N, N)."""
    if x.dim() != 3 or x.shape[1] != features + x.shape[2]:
        raise UsageError(f"Graphs with {features} features are (B, {features} + nodes, nodes).",
                         where=f"{where}: shape {tuple(x.shape)}",
                         fix="Read the graph like the one the network was built for.")


def sparse_or_none(matrix: Tensor) -> Tensor | None:
    """One large graph (1, N, N) with few edges as a sparse matrix (N, N); None of others."""
    if tracing() or len(matrix) > 1 or matrix.shape[1] < LARGE:
        return None
    where = matrix[0].nonzero()
    if len(where) > FEW * matrix.shape[1] ** 2:
        return None
    return torch.sparse_coo_tensor(where.T, matrix[0][where[:, 0], where[:, 1]], tuple(matrix.shape[1:]),
                                   is_coalesced=True, check_invariants=False)


def symmetric_norm(adjacency: Tensor, present: Tensor) -> Tensor:
    """``D^-1/2 (A + I) D^-1/2`` over the nodes that exist, D the degrees of A + I.

    Kipf & Welling 2017, arXiv:1609.02907, equation 2. (B, N, N), (B, N) -> (B, N, N), or sparse (N, N) of one large
    graph with few edges.
    """
    degree = adjacency.sum(-1) + present
    scale = degree.clamp(min=1e-12).rsqrt() * present
    sparse = sparse_or_none(adjacency)
    if sparse is None:
        looped = adjacency + torch.diag_embed(present.to(adjacency))
        return scale[..., None] * looped * scale[:, None]
    row, column = sparse.indices()
    every = torch.arange(len(scale[0]), device=scale.device)
    return torch.sparse_coo_tensor(
        torch.stack([torch.cat([row, every]), torch.cat([column, every])]),
        torch.cat([sparse.values() * scale[0, row] * scale[0, column], scale[0].square()]), tuple(sparse.shape),
        check_invariants=False).coalesce()


def walk_diagonals(adjacency: Tensor, count: int = 8) -> Tensor:
    """Probability that a random walk is back at its start after 2, 3, ... ``count`` + 1 steps: (B, N, N) -> (B, N, K).

    Dwivedi et al. 2022, arXiv:2110.07875, section 3.3 (random-walk positional encoding); one step is left out, since
    without self-loops it never returns.
    """
    walk = adjacency / adjacency.sum(-1, keepdim=True).clamp(min=1e-12)
    powers, out = [walk], []
    for steps in range(2, count + 2):
        first = (steps + 1) // 2
        if len(powers) < first:
            powers.append(powers[-1] @ walk)
        out.append((powers[first - 1] * powers[steps - first - 1].transpose(1, 2)).sum(-1))
    return torch.stack(out, -1)


def example_rings(shape: Sequence[int], features: int, draws: torch.Generator) -> Tensor:
    """Graphs of this shape (B, F + N, N) whose N nodes form a ring, with normal features."""
    nodes = shape[-1]
    ring = torch.eye(nodes) + torch.eye(nodes).roll(1, 0) + torch.eye(nodes).roll(-1, 0)
    x = torch.randn(*shape, generator=draws)
    x[:, features:] = ring.clamp(max=1)
    return x


def closeness(adjacency: Tensor) -> Tensor:
    """``1 / (1 + hops)`` from the first node, 0 where no path leads: (B, N, N) -> (B, N)."""
    edges, nodes = adjacency != 0, adjacency.shape[1]
    hops = adjacency.new_full(adjacency.shape[:2], torch.inf)
    hops[:, 0] = 0
    reached = hops == 0
    for hop in range(1, nodes):
        fresh = (edges & reached[:, None]).any(-1) & ~reached
        if holds(~fresh.any()):
            break
        hops = hops.masked_fill(fresh, float(hop))
        reached = reached | fresh
    return 1 / (1 + hops)


def scaled_cosine_error(prediction: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """``(1 - cos(prediction, target))^gamma`` over the last side: (..., F), (..., F) -> (...).

    Norms do not matter, and nodes that are nearly right count less the larger gamma is. Hou et al. 2022 (GraphMAE),
    section 3, the scaled cosine error.
    """
    cosine = (F.normalize(prediction.float(), dim=-1) * F.normalize(target.float(), dim=-1)).sum(-1)
    return (1 - cosine).clamp(min=0).pow(gamma)


def propagate(matrix: Tensor, h: Tensor) -> Tensor:
    """``matrix @ h``: (B, N, N), or sparse (N, N) of one graph, and (B, N, D) -> (B, N, D)."""
    if matrix.is_sparse:
        return torch.sparse.mm(matrix.to(h.dtype), h[0])[None]
    return matrix.to(h.dtype) @ h
