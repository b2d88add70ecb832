"""The label-budget curve: the same features read with few, more and all labels, over several seeds.

Wolf et al. 2023, "Self-supervised pre-training with contrastive and masked autoencoder methods for dealing with small
datasets in deep learning for medical imaging": subsets there are nested but not stratified, and one a size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from osteon.evaluators._inputs import Array, labelled, labels
from osteon.parts.intervals import Interval, score_intervals
from osteon.parts.metrics import correctness, score_all
from osteon.parts.subsets import nested_subsets


@dataclass(frozen=True)
class BudgetPoint:
    """One label budget.

    Args:
        budget: as asked for, e.g. 100 or ``"all"``.
        samples: number of labelled samples it came to.
        seeds: the S seeds.
        scores: S dicts of :func:`osteon.parts.metrics.score_all`.
        correct: (S, M) how right each test sample is under each seed, for paired comparison.
        intervals: metric -> interval over seeds and test samples.
    """

    budget: int | str
    samples: int
    seeds: tuple[int, ...]
    scores: list[dict[str, Any]]
    correct: np.ndarray
    intervals: dict[str, Interval]


def label_budget_curve(train_x: Array, train_y: Array, test_x: Array, test_y: Array, budgets: Sequence[int | str],
                       evaluator: Callable[..., np.ndarray], classes: int, seeds: Sequence[int] = (0, 1, 2), *,
                       resamples: int = 1000) -> list[BudgetPoint]:
    """Scores at each label budget; a seed draws the subsets (stratified, the small within the large) and the fit.

    Args:
        train_x: (N, D) features.
        train_y: (N,) int or (N, K) multi-label.
        test_x: (M, D) features.
        test_y: (M,) int or (M, K).
        budgets: numbers of labels, or ``"all"``.
        evaluator: called as ``evaluator(x, y, test_x, classes=K, seed=s)``.
        classes: K.
        seeds: the seeds; intervals over one seed allow for test samples only.
        resamples: bootstrap resamples of the intervals.

    Returns:
        One point a budget, in the order given.
    """
    x, y, test = labelled(train_x, train_y, test_x, classes)
    truth = labels(test_y, len(test), classes)
    chosen = {seed: nested_subsets(y, budgets, seed) for seed in seeds}
    points = []
    for i, budget in enumerate(budgets):
        told = [evaluator(x[chosen[s][i]], y[chosen[s][i]], test, classes=classes, seed=s) for s in seeds]
        points.append(BudgetPoint(budget, len(chosen[seeds[0]][i]), tuple(seeds),
                                  [score_all(t, truth, classes) for t in told],
                                  np.stack([correctness(t, truth) for t in told]),
                                  score_intervals(told, truth, classes, resamples=resamples)))
    return points
