"""Predicting edges: which are held out, which pairs stand against them, and how well scores tell them apart.

Splits and scores as in Kipf & Welling 2016, arXiv:1611.07308, section 2: area under the ROC curve, average precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from osteon.core.errors import UsageError


@dataclass(frozen=True)
class Links:
    """A graph with some edges taken out, each list (E, 2) int64 with the smaller node first.

    Args:
        adjacency: (N, N) float32, what is left to train on.
        val: held-out edges; ``val_not`` as many pairs that are none.
        test: held-out edges, disjoint from the former; ``test_not`` as many pairs that are none.
    """

    adjacency: np.ndarray
    val: np.ndarray
    val_not: np.ndarray
    test: np.ndarray
    test_not: np.ndarray


def hold_out(adjacency: np.ndarray, *, val: float = 0.05, test: float = 0.1, seed: int = 0) -> Links:
    """Take random edges out of a symmetric adjacency (N, N), weights of edges off its diagonal.

    Args:
        adjacency: the whole graph.
        val: share of the edges for choosing.
        test: share of the edges for the last word.
        seed: of the choice.
    """
    nodes = len(adjacency)
    edges = np.stack(np.nonzero(np.triu(adjacency, 1)), 1)
    counts = int(val * len(edges)), int(test * len(edges))
    if adjacency.shape != (nodes, nodes) or min(val, test) < 0 or not 0 < sum(counts) < len(edges):
        raise UsageError(f"{val:.0%} and {test:.0%} of {len(edges)} edges cannot be held out.", where="hold_out",
                         fix="Hold out at least one edge and leave one to train on.")
    rng = np.random.default_rng([seed, 3])
    chosen = edges[rng.permutation(len(edges))[:sum(counts)]]
    free = nodes * (nodes - 1) // 2 - len(edges)
    if free < sum(counts):
        raise UsageError("There are fewer pairs without an edge than held-out edges.", where="hold_out",
                         fix="Hold out fewer.")
    against, seen = list[tuple[int, int]](), set[tuple[int, int]]()
    while len(against) < sum(counts):
        a, b = np.sort(rng.integers(nodes, size=2)).tolist()
        if a != b and not adjacency[a, b] and (a, b) not in seen:
            seen.add((a, b))
            against.append((a, b))
    left = np.array(adjacency, np.float32)
    left[chosen[:, 0], chosen[:, 1]] = left[chosen[:, 1], chosen[:, 0]] = 0
    none = np.array(against, np.int64).reshape(-1, 2)
    return Links(left, chosen[:counts[0]], none[:counts[0]], chosen[counts[0]:], none[counts[0]:])


def auc_ap(z: np.ndarray, edges: np.ndarray, none: np.ndarray) -> tuple[float, float]:
    """Area under the ROC curve and average precision of inner products: (N, D), (E, 2), (E, 2) -> two in [0, 1]."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    scores = np.concatenate([(z[pairs[:, 0]] * z[pairs[:, 1]]).sum(1) for pairs in (edges, none)])
    truth = np.repeat([1, 0], [len(edges), len(none)])
    return float(roc_auc_score(truth, scores)), float(average_precision_score(truth, scores))


def link_loss(logits: Tensor, adjacency: Tensor, present: Tensor, noise: Tensor) -> Tensor:
    """Cross-entropy of edges plus that of as many pairs without one, each a mean over pairs: -> (B,).

    Args:
        logits: (B, N, N) symmetric.
        adjacency: (B, N, N).
        present: (B, N) bool.
        noise: (B, N, N) uniform; the pairs without an edge that have the least are taken, all where there are too few.
            A graph without edges has one such pair.
    """
    upper = torch.ones(logits.shape[1:], dtype=torch.bool, device=logits.device).triu(1)
    pairs = present[:, None] & present[..., None] & upper
    edge = (adjacency != 0) & pairs
    count = edge.sum((1, 2)).clamp(min=1)
    key = noise.masked_fill(~pairs | edge, 2.0).flatten(1)
    most = min(int(count.max()), key.shape[1])
    low, at = key.topk(most, largest=False)
    taken = (torch.arange(most, device=key.device) < count[:, None]) & (low < 2.0)
    hits = (F.softplus(-logits.float()) * edge).sum((1, 2)) / count
    misses = (F.softplus(logits.float().flatten(1).gather(1, at)) * taken).sum(1) / taken.sum(1).clamp(min=1)
    return hits + misses
