"""CKA: how alike two sets of features of the same samples are, whatever the rotation and scale.

Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited", arXiv:1905.00414, section 3; the
unbiased estimate is Song et al.'s (2012), as used by Nguyen et al. 2021, arXiv:2010.15327, equation 3.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from osteon.core.card import Card
from osteon.core.errors import DataError

CARD = Card(
    kind="analysis",
    name="cka",
    papers=("Similarity of Neural Network Representations Revisited",
            "Do Wide and Deep Networks Learn the Same Things? Uncovering How Neural Network Representations Vary "
            "with Width and Depth"),
    modalities=("image", "sound", "series", "text", "table", "graph", "points", "volume", "video", "several"),
    differs="the unbiased estimate on at most 512 samples in one batch instead of the minibatch average; positions "
            "of a layer (of texts, graphs and sets: those that are there) are averaged first",
    backbones=("tokens", "maps"),
    cost="1 forward per sample",
    switch="osteon analyse RUN SOURCE --only cka",
)


def linear_cka(x: Tensor, y: Tensor) -> float:
    """``|Y^T X|^2 / (|X^T X| |Y^T Y|)`` of centred features (N, D) and (N, E): 1 alike, 0 unrelated.

    With few samples and many features it is high for unrelated ones too; see :func:`unbiased_cka`.
    """
    x, y = _same(x, y)
    x, y = x - x.mean(0), y - y.mean(0)
    top = (y.T @ x).square().sum()
    bottom = (x.T @ x).norm() * (y.T @ y).norm()
    return float(top / bottom) if bottom > 0 else 0.0


def unbiased_cka(x: Tensor, y: Tensor) -> float:
    """CKA whose expectation is 0 for unrelated features however many there are; at least 4 samples, (N, D), (N, E)."""
    x, y = _same(x, y)
    if len(x) < 4:
        raise DataError(f"Unbiased CKA needs at least 4 samples, not {len(x)}.", where="x")
    k, m = (_gram(v - v.mean(0)) for v in (x, y))
    bottom = _hsic(k, k) * _hsic(m, m)
    return float(_hsic(k, m) / bottom.sqrt()) if bottom > 0 else 0.0


def cka_table(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> np.ndarray:
    """Unbiased CKA of every layer of ``a`` (rows) with every layer of ``b`` (columns): name -> (N, D)."""
    return np.array([[unbiased_cka(x, y) for y in b.values()] for x in a.values()])


def _same(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    x, y = x.double(), y.double()
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise DataError(f"Features of the same samples are needed, not {tuple(x.shape)} and {tuple(y.shape)}.",
                        where="cka")
    return x, y


def _gram(x: Tensor) -> Tensor:
    """(N, N) inner products with an empty diagonal."""
    return (x @ x.T).fill_diagonal_(0)


def _hsic(k: Tensor, m: Tensor) -> Tensor:
    """Song et al.'s estimator of dependence from two Gram matrices with empty diagonals."""
    n = len(k)
    rows, columns = k.sum(1), m.sum(1)
    total = (k * m).sum() + rows.sum() * columns.sum() / ((n - 1) * (n - 2)) - 2 * (rows @ columns) / (n - 2)
    return total / (n * (n - 3))
