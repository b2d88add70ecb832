"""k nearest neighbours: the labels of the most similar training samples vote. Nothing is trained.

Jia et al. 2021, "Rethinking Nearest Neighbors for Visual Classification", arXiv:2112.08459, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.evaluators._inputs import Array, feature_rows, labelled_rows, labels, numbered_rows, validation_quality
from osteon.parts.neighbours import centred_unit, nearest
from osteon.parts.regression import scale_of
from osteon.parts.rows import OneHot, Rows
from osteon.parts.subsets import holdout

CARD = Card(kind="evaluator", name="knn",
            papers=("Rethinking Nearest Neighbors for Visual Classification",), modalities=("any",),
            differs="votes are divided by their sum (the authors' code leaves that to the caller) and computed "
                    "relative to the nearest neighbour, which changes nothing but underflow at small temperatures; "
                    "numbers are predicted by the weighted mean of the neighbours' (the paper has classes only); the "
                    "authors' re-weighted training loss is not part of this evaluation; equal distances are ordered "
                    "by row number; with several labels a sample, each label is voted on by itself",
            rows=(203,), labels=True, cost="one matrix product of test and training features")

#: Values tried by ``tune=True`` (the authors' grids, thinned).
K_GRID = (1, 2, 5, 10, 20, 50, 100, 200)
TEMPERATURE_GRID = (0.01, 0.03, 0.07, 0.2, 0.5, 1.0, 3.0)
LAMBDA_GRID = tuple(round(0.05 * i, 2) for i in range(21))


def votes(similarity: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Class probabilities from neighbours: p_c = sum_j w_j y_jc / sum_j w_j, w_j = exp(-d_j^2 / T), d^2 = 2 - 2 s.

    Args:
        similarity: (M, k) cosine similarity of each neighbour.
        target: (M, k, K) labels of the neighbours, 0 or 1.
        temperature: T. It acts on squared distances of unit vectors, so it equals a cosine temperature of T / 2.

    Returns:
        (M, K) in [0, 1].
    """
    return weighted_mean(similarity, target, temperature).clamp(max=1.0)  # weights sum to 1 but for rounding


def weighted_mean(similarity: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Mean of what neighbours have, (M, k, K) -> (M, K), with the weights of :func:`votes`."""
    weight = torch.softmax(2 * similarity / temperature, dim=1)
    return (weight[:, None, :] @ target)[:, 0]


def knn_interpolate(knn: np.ndarray, classifier: np.ndarray, weight: float) -> np.ndarray:
    """Mix neighbours with a classifier: ``weight * knn + (1 - weight) * classifier``; both (M, K) probabilities."""
    if not 0 <= weight <= 1:
        raise UsageError(f"The mixing weight {weight} is not between 0 and 1.", where="weight")
    if np.shape(knn) != np.shape(classifier):
        raise UsageError(f"Neighbours give {np.shape(knn)} scores and the classifier {np.shape(classifier)}.",
                         where="knn_interpolate")
    return weight * np.asarray(knn) + (1 - weight) * np.asarray(classifier)


def tune_interpolation(knn: np.ndarray, classifier: np.ndarray, y: np.ndarray,
                       grid: Sequence[float] = LAMBDA_GRID) -> float:
    """The mixing weight that is best on validation samples (never give it test samples).

    Args:
        knn: (V, K) probabilities of neighbours for the validation samples, which must not be in the store.
        classifier: (V, K) probabilities of the classifier.
        y: (V,) int or (V, K) labels of the validation samples.
        grid: weights tried; of equals the smallest wins, so that neighbours must earn their place.
    """
    return max(sorted(grid), key=lambda weight: validation_quality(knn_interpolate(knn, classifier, weight), y))


class KNN:
    """Score test samples by their k nearest training samples.

    Features are centred by the training mean and scaled to length 1; neighbours by squared Euclidean distance d^2,
    weighted exp(-d^2 / temperature). The search is exact and its memory bounded, whatever the number of samples;
    memory-mapped features are read in blocks.

    Args:
        k: number of neighbours (at most the number of training samples is used).
        temperature: how fast votes fall with distance; at 1.0 the k neighbours count nearly alike.
        tune: choose k and temperature on a validation part of the training data instead; needs a class with two
            samples, and keeps the values given where there is none.
        fraction: share of the training data that ``tune`` holds out.
    """

    needs = "labels"

    def __init__(self, *, k: int = 20, temperature: float = 1.0, tune: bool = False, fraction: float = 0.2) -> None:
        if k < 1:
            raise UsageError(f"k must be at least 1, not {k}.", where="k")
        if not temperature > 0:
            raise UsageError(f"The temperature must be positive, not {temperature}.", where="temperature")
        if not 0 < fraction < 1:
            raise UsageError(f"The validation share {fraction} is not between 0 and 1.", where="fraction")
        self.k, self.temperature, self.tune, self.fraction = k, temperature, tune, fraction
        #: what the last call used: ``{"k": ..., "temperature": ...}``
        self.chosen: dict[str, float] = {}

    def __call__(self, train_x: Array, train_y: Array, test_x: Array, *, classes: int, seed: int = 0) -> np.ndarray:
        """Probabilities (M, K) for test features (M, D) from train features (N, D) and labels (N,) or (N, K)."""
        x, y, test = labelled_rows(train_x, train_y, test_x, classes)
        k, temperature = self._choose(x, y, classes, seed)
        mean = x.mean()
        return _score(_units(test, mean), _units(x, mean), OneHot(y, classes, x.device), k, temperature)

    def regress(self, train_x: Array, train_y: Array, test_x: Array, *, seed: int = 0) -> np.ndarray:
        """Numbers (M,) for test features (M, D): the weighted mean of the neighbours' of train targets (N,)."""
        x, y, test = numbered_rows(train_x, train_y, test_x)
        mean, scale = scale_of(y)
        target = torch.from_numpy((y - mean) / scale).float().to(x.device)[:, None]
        best = (min(self.k, len(x)), self.temperature)
        if self.tune and len(x) > 1:
            fit, held = holdout(np.zeros(len(x), np.int64), self.fraction, seed)
            truth = target[held].cpu().numpy()
            best = _tune(x.subset(fit), target[fit], x.subset(held),
                         lambda told: -float(np.square(told - truth).mean()), -np.inf)
        self.chosen = {"k": best[0], "temperature": best[1]}
        centre = x.mean()
        told = _score(_units(test, centre), _units(x, centre), target, *best, read=weighted_mean)
        return np.asarray(mean + scale * told[:, 0].astype(np.float64))

    def leave_one_out(self, x: Array, y: Array, *, classes: int, seed: int = 0) -> np.ndarray:
        """Probabilities (N, K) for the training samples themselves, each from all the others."""
        rows = feature_rows(x, "x")
        target = labels(y, len(rows), classes)
        if len(rows) < 2:
            raise UsageError("Leaving one out of a single sample leaves none.", where="x")
        k, temperature = self._choose(rows, target, classes, seed)
        unit = _units(rows, rows.mean())
        return _score(unit, unit, OneHot(target, classes, rows.device), k, temperature, exclude_self=True)

    def _choose(self, x: Rows, y: np.ndarray, classes: int, seed: int) -> tuple[int, float]:
        best = (min(self.k, len(x)), self.temperature)
        if self.tune:
            fit, held = holdout(y, self.fraction, seed)
            if len(held):
                target = OneHot(y[fit], classes, x.device)
                best = _tune(x.subset(fit), target, x.subset(held), lambda s: validation_quality(s, y[held]),
                             (-np.inf, -np.inf))
        self.chosen = {"k": best[0], "temperature": best[1]}
        return best


def _units(x: Rows, mean: Tensor) -> Rows:
    return x.mapped(lambda block: centred_unit(block, mean.to(block.device)))


def _score(query: Rows, store: Rows, target: OneHot | Tensor, k: int, temperature: float, *,
           exclude_self: bool = False, read: Callable[[Tensor, Tensor, float], Tensor] = votes) -> np.ndarray:
    similarity, rows = nearest(query, store, k, exclude_self=exclude_self)
    return _read(similarity, rows, target, temperature, read)


def _read(similarity: Tensor, rows: Tensor, target: OneHot | Tensor, temperature: float,
          read: Callable[[Tensor, Tensor, float], Tensor]) -> np.ndarray:
    """(M, K) from neighbours (M, k): (block, k, K) of what they have at once, bounded like the search itself."""
    block = max(1, 2**22 // max(1, rows.shape[1] * target.shape[1]))
    parts = [read(s, target[r], temperature) for s, r in zip(similarity.split(block), rows.split(block), strict=True)]
    return torch.cat(parts).cpu().numpy()


def _tune(x: Rows, target: OneHot | Tensor, held_x: Rows, judge: Callable[[np.ndarray], Any],
          worst: Any) -> tuple[int, float]:
    """k and temperature that ``judge`` thinks most of; one search serves the whole grid."""
    mean = x.mean()
    similarity, rows = nearest(_units(held_x, mean), _units(x, mean), max(K_GRID))
    best, choice = worst, (1, 1.0)
    for k in sorted({min(k, rows.shape[1]) for k in K_GRID}):
        for temperature in TEMPERATURE_GRID:
            quality = judge(_read(similarity[:, :k], rows[:, :k], target, temperature, weighted_mean))
            if quality > best:
                best, choice = quality, (k, temperature)
    return choice
