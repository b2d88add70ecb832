"""Finding partners in a shared space: ranks, recall, and classes by the mean of their examples."""

from __future__ import annotations

import numpy as np


def partner_ranks(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Rank of every query's own partner in the gallery, 0 = found first; ties count against it.

    Args:
        queries: (N, D) on the unit sphere.
        gallery: (N, D) partners, row for row.

    Returns:
        (N,) int64.
    """
    ranks = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), 1024):
        score = queries[start:start + 1024] @ gallery.T
        own = score[np.arange(len(score)), np.arange(start, start + len(score))]
        ranks[start:start + len(score)] = (score >= own[:, None]).sum(1) - 1
    return ranks


def nearest_rows(queries: np.ndarray, gallery: np.ndarray, count: int = 1) -> np.ndarray:
    """The ``count`` most alike rows of the gallery for every query, most alike first: (N, count)."""
    found = [np.argsort(-(queries[i:i + 1024] @ gallery.T), axis=1, kind="stable")[:, :count]
             for i in range(0, len(queries), 1024)]
    return np.concatenate(found) if found else np.empty((0, count), np.int64)


def class_means(z: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Unit means of the unit vectors of every class, (K, D); zeros for a class without any. Radford et al. 2021."""
    out = np.zeros((classes, z.shape[1]), np.float64)
    np.add.at(out, labels, z)
    length = np.linalg.norm(out, axis=1, keepdims=True)
    return out / np.where(length > 0, length, 1.0)
