"""Few-shot accuracy: how well features tell classes apart from one or a few examples of each.

Episodes as in Snell et al. 2017, "Prototypical Networks for Few-shot Learning", arXiv:1703.05175, section 3.1, on
frozen features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from osteon.core.card import Card
from osteon.core.errors import DataError, UsageError
from osteon.evaluators._inputs import Array, features, labelled, labels
from osteon.evaluators.ncm import NCM
from osteon.parts.intervals import Interval, t_interval

CARD = Card(kind="evaluator", name="few_shot",
            papers=("Prototypical Networks for Few-shot Learning",), modalities=("any",),
            differs="frozen features and the nearest class mean of unit-length samples; nothing is trained on "
                    "episodes; supports come from the training data and queries from the test data; one label a "
                    "sample",
            labels=True, cost="thousands of small matrix products")


@dataclass(frozen=True)
class Episodes:
    """Accuracy of each episode and the interval of their mean over the choice of classes and examples."""

    accuracies: np.ndarray
    interval: Interval


class FewShot:
    """Score test samples by the class means of a few training samples.

    Called like any evaluator, it draws ``shots`` training samples of every class and scores all test samples.
    ``episodes`` is the n-way k-shot protocol of the few-shot literature.

    Args:
        ways: classes in an episode (at most those there are).
        shots: labelled examples of each class.
        queries: test samples of each class in an episode (at most those there are).
        episodes: number of episodes.
    """

    needs = "labels"

    def __init__(self, *, ways: int = 5, shots: int = 5, queries: int = 15, episodes: int = 600) -> None:
        for name, value, least in (("ways", ways, 2), ("shots", shots, 1), ("queries", queries, 1),
                                   ("episodes", episodes, 2)):
            if value < least:
                raise UsageError(f"{name} must be at least {least}, not {value}.", where=name)
        self.ways, self.shots, self.queries, self.count = ways, shots, queries, episodes

    def __call__(self, train_x: Array, train_y: Array, test_x: Array, *, classes: int, seed: int = 0) -> np.ndarray:
        """Probabilities (M, K) from ``shots`` samples a class drawn by ``seed`` (fewer where a class has fewer)."""
        x, y, test = labelled(train_x, train_y, test_x, classes)
        _single(y)
        rng = np.random.default_rng(seed)
        rows = np.concatenate([rng.permutation(np.flatnonzero(y == c))[:self.shots] for c in range(classes)])
        return NCM()(x[torch.from_numpy(rows)], y[rows], test, classes=classes)

    def episodes(self, train_x: Array, train_y: Array, test_x: Array, test_y: Array, *, classes: int,
                 seed: int = 0) -> Episodes:
        """Mean accuracy over n-way k-shot episodes: supports from train, queries from test.

        Classes with fewer than ``shots`` training samples or without a test sample take no part.
        """
        x, y, test = labelled(train_x, train_y, test_x, classes)
        truth = labels(test_y, len(test), classes)
        _single(y)
        _single(truth)
        support = {c: np.flatnonzero(y == c) for c in range(classes)}
        query = {c: np.flatnonzero(truth == c) for c in range(classes)}
        usable = np.array([c for c in range(classes) if len(support[c]) >= self.shots and len(query[c])])
        if len(usable) < 2:
            raise DataError(f"Only {len(usable)} classes have {self.shots} training samples and a test sample.",
                            where="few_shot", fix="Ask for fewer shots.")
        rng = np.random.default_rng(seed)
        unit, asked = (torch.nn.functional.normalize(features(v, "x"), dim=1, eps=1e-12) for v in (x, test))
        results = np.empty(self.count)
        for e in range(self.count):
            chosen = rng.permutation(usable)[:self.ways]
            shown = np.stack([rng.choice(support[c], self.shots, replace=False) for c in chosen])
            posed = [rng.choice(query[c], min(self.queries, len(query[c])), replace=False) for c in chosen]
            means = unit[torch.from_numpy(shown)].mean(1)  # (ways, D)
            guess = torch.cdist(asked[torch.from_numpy(np.concatenate(posed))], means).argmin(1).cpu().numpy()
            results[e] = (guess == np.repeat(np.arange(len(chosen)), [len(p) for p in posed])).mean()
        return Episodes(results, t_interval(results))


def _single(y: np.ndarray) -> None:
    if y.ndim == 2:
        raise UsageError("Few-shot episodes need one label a sample.", where="train_y",
                         fix="Use linear_probe, knn or ncm for several labels a sample.")
