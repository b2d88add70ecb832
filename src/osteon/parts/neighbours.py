"""Exact nearest neighbours in bounded memory: blocks of queries against blocks of the store."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

#: Rows of queries and of the store that meet at once: 512 x 8,192 similarities are 16 MiB.
QUERY_BLOCK, STORE_BLOCK = 512, 8192


def centred_unit(x: Tensor, mean: Tensor) -> Tensor:
    """Features less ``mean`` (D,), scaled to length 1; (N, D) -> (N, D). A row equal to the mean stays 0."""
    return F.normalize(x - mean, dim=1, eps=1e-12)


def nearest(query: Tensor, store: Tensor, k: int, *, exclude_self: bool = False,
            query_block: int = QUERY_BLOCK, store_block: int = STORE_BLOCK) -> tuple[Tensor, Tensor]:
    """The k rows of ``store`` with the largest inner product with each query, exactly.

    For rows of length 1 these are the nearest in Euclidean distance, d^2 = 2 - 2 similarity. Equal similarities are
    ordered by row number, so the result does not depend on the block sizes. Memory beyond the inputs and the result is
    about ``query_block * (store_block + 2 k)`` numbers.

    Args:
        query: (M, D).
        store: (N, D).
        k: neighbours wanted; at most N (N - 1 with ``exclude_self``) are returned.
        exclude_self: query i is row i of the store and must not find itself (leave-one-out).
        query_block: rows of queries at once.
        store_block: rows of the store at once.

    Returns:
        Similarities (M, k), falling, and row numbers (M, k) int64.
    """
    n = store.shape[0]
    k = max(0, min(k, n - 1 if exclude_self else n))
    values, rows = query.new_empty(len(query), k), torch.empty(len(query), k, dtype=torch.int64, device=query.device)
    for start in range(0, len(query), query_block):
        block = query[start:start + query_block]
        # Always multiply full blocks: with another number of rows the matrix product may take another path and round
        # differently, and a query's neighbours would depend on its company.
        padded = F.pad(block, (0, 0, 0, query_block - len(block))) if len(block) < query_block else block
        best_v, best_i = query.new_empty(len(block), 0), rows.new_empty(len(block), 0)
        for first in range(0, n, store_block):
            similarity = (padded @ store[first:first + store_block].T)[:len(block)]
            if exclude_self:
                own = torch.arange(start, start + len(block), device=query.device) - first
                inside = (own >= 0) & (own < similarity.shape[1])
                similarity[inside.nonzero()[:, 0], own[inside]] = -torch.inf
            v, i = _top(similarity, k)
            best_v, best_i = _merge(torch.cat([best_v, v], 1), torch.cat([best_i, i + first], 1), k)
        values[start:start + query_block], rows[start:start + query_block] = best_v, best_i
    return values, rows


def _top(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, the lower column winning ties at the edge (``topk`` leaves that open)."""
    k = min(k, similarity.shape[1])
    if k == 0:
        return similarity[:, :0], similarity.new_empty(len(similarity), 0, dtype=torch.int64)
    v, i = similarity.topk(k, dim=1)
    tied = ((similarity >= v[:, -1:]).sum(1) > k).nonzero()[:, 0]
    if len(tied):
        ordered = similarity[tied].sort(dim=1, descending=True, stable=True)
        v[tied], i[tied] = ordered.values[:, :k], ordered.indices[:, :k]
    return v, i


def _merge(values: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Sort candidates by falling value, then rising row number, and keep k."""
    by_row = rows.argsort(dim=1)
    values, rows = values.gather(1, by_row), rows.gather(1, by_row)
    ordered = values.sort(dim=1, descending=True, stable=True)
    return ordered.values[:, :k], rows.gather(1, ordered.indices)[:, :k]
