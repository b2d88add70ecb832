"""Geometry of choosing samples: farthest-first traversal, thinning of near copies, k-means on the sphere."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

_BLOCK = 512


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1 (zero rows stay zero), (N, D) -> (N, D) float32."""
    x = np.asarray(x, np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def farthest_first(x: np.ndarray, count: int, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose samples one by one, each the farthest from all chosen before (Gonzalez 1985).

    The largest distance from any sample to its nearest chosen one is at most twice the least possible.

    Args:
        x: (N, D).
        count: how many, 1..N.
        first: number of the first one.

    Returns:
        (count,) int64 rows in the order of choice, and the Euclidean distance of each to those before it (infinity for
        the first).
    """
    x = np.asarray(x, np.float32)
    rows = np.empty(count, np.int64)
    distances = np.empty(count, np.float64)
    squares = np.square(x, dtype=np.float64).sum(1)
    best = np.full(len(x), np.inf)
    free = np.ones(len(x), bool)
    chosen = first
    for i in range(count):
        rows[i], distances[i] = chosen, np.sqrt(best[chosen])
        free[chosen] = False
        gap = squares + squares[chosen] - 2.0 * (x @ x[chosen])
        np.minimum(best, np.maximum(gap, 0.0), out=best)
        # Copies lie at distance 0 and are still not to be chosen twice.
        chosen = int(np.where(free, best, -1.0).argmax())
    return rows, distances


def thin(distance: Callable[[np.ndarray, np.ndarray], np.ndarray], count: int, threshold: float,
         groups: Sequence[str] | None = None) -> np.ndarray:
    """Go through the samples in order and keep those farther than ``threshold`` from every one kept before.

    Args:
        distance: (rows A, rows B) -> (A, B) distances.
        count: number of samples N.
        threshold: distance up to which a sample repeats another; negative keeps everything.
        groups: samples of different groups are never compared; None = one group.

    Returns:
        (K,) int64 rows kept, ascending.
    """
    members: dict[str, list[int]] = {}
    for i in range(count):
        members.setdefault("" if groups is None else groups[i], []).append(i)
    kept = [_thin_group(distance, np.array(rows, np.int64), threshold) for rows in members.values()]
    return np.sort(np.concatenate(kept)) if kept else np.empty(0, np.int64)


def _thin_group(distance: Callable[[np.ndarray, np.ndarray], np.ndarray], rows: np.ndarray,
                threshold: float) -> np.ndarray:
    kept: list[int] = []
    for start in range(0, len(rows), _BLOCK):
        block = rows[start:start + _BLOCK]
        covered = np.zeros(len(block), bool)
        for first in range(0, len(kept), 8 * _BLOCK):  # blocks of exemplars bound the memory
            exemplars = np.array(kept[first:first + 8 * _BLOCK], np.int64)
            covered |= (distance(block, exemplars) <= threshold).any(1)
        within = distance(block, block) <= threshold
        for i in range(len(block)):
            if not covered[i]:
                kept.append(int(block[i]))
                covered[i + 1:] |= within[i, i + 1:]
    return np.array(kept, np.int64)


def spherical_kmeans(x: np.ndarray, k: int, seed: int, iterations: int = 50) -> np.ndarray:
    """Centres of unit-length rows by cosine, themselves of unit length: (N, D) -> (k, D); all rows if N <= k.

    Starts by k-means++ on the squared distance 2 - 2 cosine; an empty cluster takes the sample that fits worst.
    """
    x = unit_rows(x)
    if len(x) <= k:
        return x
    rng = np.random.default_rng(seed)
    chosen = [int(rng.integers(len(x)))]
    gap = np.full(len(x), np.inf)
    for _ in range(k - 1):
        gap = np.minimum(gap, np.maximum(2 - 2 * (x @ x[chosen[-1]]), 0))
        total = float(gap.sum())
        chosen.append(int(rng.choice(len(x), p=gap / total)) if total > 0 else int(rng.integers(len(x))))
    centres = x[chosen]
    label = np.full(len(x), -1)
    for _ in range(iterations):
        similarity = x @ centres.T
        new = similarity.argmax(1)
        if (new == label).all():
            break
        label = new
        sums = np.zeros_like(centres)
        np.add.at(sums, label, x)
        for empty in np.flatnonzero(np.bincount(label, minlength=k) == 0):
            sums[empty] = x[similarity.max(1).argmin()]
        centres = unit_rows(sums)
    return centres
