"""Arms of a comparison: every pre-trained backbone and every control, scored the same way at every label budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from osteon.core import registry
from osteon.core.errors import UsageError
from osteon.data import Dataset, train_validation_split
from osteon.data.targets import need_spread
from osteon.parts.intervals import Interval, hierarchical_interval
from osteon.parts.metrics import score_all
from osteon.parts.regression import R2, check_numbers, qualities, scale_of, score_numbers, strata_of
from osteon.parts.rows import Rows
from osteon.parts.subsets import nested_subsets
from osteon.parts.types import DataSpec

#: draws of labels a seed, over which scores of features are averaged
DRAWS = 5


@dataclass
class Arm:
    """One contestant at one label budget.

    Args:
        name: what is shown, e.g. ``"simclr + linear_probe"``.
        kind: ``"pretrained"`` or ``"control"``.
        source: run or control it belongs to, e.g. ``"simclr"``, ``"raw pixels"``.
        evaluator: how labels were used.
        budget: number of labels, or ``"all"``.
        quality: (S, M) per-seed, per-test-sample quality, averaged over draws of labels: right or wrong; with several
            labels a sample the label-ranking average precision; of a predicted number its share of R2, at most 1;
            of a forecast less the mean squared error of a stretch of test time (M stretches).
        validation: mean quality on held-out training samples, by which a recipe is chosen.
        scores: metric -> value for each seed.
        wall_s: seconds spent on this arm.
        targets: (M,) numbers that were to be predicted; None where classes were.
        absolute: (S, M) absolute errors of predicted numbers, averaged over draws of labels; else None.
        errors: whether these are forecasts.
    """

    name: str
    kind: str
    source: str
    evaluator: str
    budget: int | str
    quality: np.ndarray
    validation: float
    scores: dict[str, list[float]] = field(default_factory=dict)
    wall_s: float = 0.0
    targets: np.ndarray | None = None
    absolute: np.ndarray | None = None
    errors: bool = False


@dataclass
class Task:
    """A labelled task: who trains, who tests, which labels are shown at each budget and seed.

    Args:
        train: labelled samples; some of them, ``held_out``, train nothing: recipes and controls are chosen on them.
        test: labelled samples looked at once.
        classes: K; 0 where a number is to be predicted.
        budgets: numbers of labels shown.
        subsets: [seed][draw][budget] -> rows of ``train``; within a draw, smaller budgets lie inside larger ones.
            Features are cheap to read, so a seed averages several draws of labels; a whole network is trained on the
            first draw alone.
        held_out: rows of ``train``.
        flip: whether whole-network training mirrors images.
    """

    train: Dataset
    test: Dataset
    classes: int
    budgets: list[int | str]
    subsets: list[list[list[np.ndarray]]]
    held_out: np.ndarray
    flip: bool = True

    @property
    def multi_label(self) -> bool:
        """Whether a sample may have several labels."""
        return self.train_y.ndim == 2

    @property
    def regression(self) -> bool:
        """Whether a number is to be predicted."""
        return self.train.targets is not None

    @property
    def reading(self) -> int:
        """Samples whose features are read."""
        return len(self.train) + len(self.test)

    @property
    def scoring(self) -> int:
        """Samples that a network trained on labels scores."""
        return len(self.held_out) + len(self.test)

    @property
    def unit(self) -> str:
        """What quality is."""
        return R2 if self.regression else "label-ranking average precision" if self.multi_label else "accuracy"

    @property
    def train_y(self) -> np.ndarray:
        """Labels (N,) or (N, K), or targets (N,), of the training samples."""
        return answers(self.train)

    @property
    def test_y(self) -> np.ndarray:
        """Labels (M,) or (M, K), or targets (M,), of the test samples."""
        return answers(self.test)

    def draws(self, seed: int, budget: int) -> list[np.ndarray]:
        """Rows shown at a seed and a label budget, of every draw that differs: with all labels there is one."""
        rows = [draw[budget] for draw in self.subsets[seed]]
        return rows[:1] if len(rows[0]) == len(self.train) - len(self.held_out) else rows

    def spec_of(self, spec: DataSpec, rows: np.ndarray) -> DataSpec:
        """What a network trained on the labels of ``rows`` is told of the task, and ``spec`` says of samples."""
        scale = scale_of(self.train_y[rows]) if self.regression else None
        return replace(spec, num_classes=self.classes, multi_label=self.multi_label, target=scale)


def answers(dataset: Dataset) -> np.ndarray:
    """Labels (N,) or (N, K) of a data set, or its targets (N,)."""
    return np.asarray(dataset.labels if dataset.targets is None else dataset.targets)


def make_task(train: Dataset, test: Dataset, budgets: Sequence[int | str], seeds: int, *, flip: bool = True,
              held_out: float = 0.2, draws: int = DRAWS) -> Task:
    """Hold out a part of the labelled samples for choices and draw nested, stratified label budgets from the rest.

    Raises:
        UsageError: missing labels, classes that differ, a budget larger than what is there.
        DataError: numbers to be predicted that are all equal.
    """
    for dataset, option in ((train, "--train"), (test, "--test")):
        need_spread(dataset, option)
        if dataset.labels is None and dataset.targets is None:
            raise UsageError("Evaluation needs labels; this source has none.", where=f"{option} {dataset.source}")
    if (train.targets is None) != (test.targets is None):
        raise UsageError("Labels are numbers to be predicted in one of --train and --test and classes in the other.",
                         where=test.source, fix="Say which with --task regression or --task classes.")
    if train.class_names != test.class_names:
        extra = sorted(set(test.class_names) ^ set(train.class_names))
        raise UsageError(f"The classes of --train and --test differ: {', '.join(map(str, extra[:5]))}.",
                         where=test.source, fix="Give both the same classes.")
    y, classes = (strata_of(train.targets), 0) if train.targets is not None else _classes(train, test)
    pool, rest = train_validation_split(y, held_out, 0, groups=train.groups)
    for budget in budgets:
        if str(budget) != "all" and int(budget) > len(pool):
            raise UsageError(f"A budget of {budget} labels is more than the {len(pool)} there are beside the "
                             f"{len(rest)} held out for choices.", where="--label-budget",
                             fix="Use a smaller one or all.")
    subsets = [[[pool[rows] for rows in nested_subsets(y[pool], list(budgets), seed * draws + draw)]
                for draw in range(draws)] for seed in range(seeds)]
    return Task(train, test, classes, list(budgets), subsets, rest, flip)


def _classes(train: Dataset, test: Dataset) -> tuple[np.ndarray, int]:
    """Labels of the training samples and the number of classes."""
    y = np.asarray(train.labels)
    top = 0 if y.ndim == 2 else int(max(y.max(), np.asarray(test.labels).max())) + 1
    classes = y.shape[1] if y.ndim == 2 else len(train.class_names) or top
    if classes < 2:
        raise UsageError("Evaluation needs at least two classes.", where=train.source)
    return y, classes


def quality(scores: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Quality of each of M samples from (M, K) scores: right or wrong; with (M, K) labels, average precision.

    Of (M,) numbers that were predicted, the shares of R2.
    """
    if scores.ndim == 1:
        told, y = check_numbers(scores, y)
        return qualities((told - y)**2, y)
    if y.ndim == 1:
        return (scores.argmax(1) == y).astype(np.float64)
    return ranking_precision(scores, y > 0)


def ranking_precision(scores: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Label-ranking average precision of each sample: (M, K) scores and bool labels -> (M,).

    For every label a sample has: the share of its labels among the classes that score at least as high; the mean of
    these. 1 where a sample has no label or all of them (Tsoumakas et al. 2010, section 7.2; scikit-learn gives the mean
    over samples alone).
    """
    out = np.ones(len(y))
    block = max(1, 2**22 // y.shape[1] ** 2)
    for start in range(0, len(y), block):
        s, have = scores[start:start + block], y[start:start + block]
        above = s[:, None, :] >= s[:, :, None]  # (m, K, K): does class k score at least as high as class j?
        share = (above & have[:, None, :]).sum(2) / above.sum(2)
        count = have.sum(1)
        some = (count > 0) & (count < y.shape[1])
        out[start:start + block][some] = (share * have).sum(1)[some] / count[some]
    return out


def feature_arms(name: str, kind: str, features: Sequence[tuple[np.ndarray, np.ndarray]], task: Task,
                 evaluators: Sequence[str]) -> list[Arm]:
    """Score features by every evaluator at every budget.

    Args:
        name: what the features are called.
        kind: ``"pretrained"`` or ``"control"``.
        features: (train, test) features of each seed; a single pair serves all seeds (controls without randomness).
        task: the labelled task.
        evaluators: names of evaluators that need labels.
    """
    arms = []
    for evaluator in evaluators:
        for b, budget in enumerate(task.budgets):
            begun = time.perf_counter()
            scores = []
            for seed in range(len(task.subsets)):
                train_x, test_x = features[seed % len(features)]
                asked = _both(train_x, task.held_out, test_x)
                scores.append([read(evaluator, task, train_x, rows, asked, seed) for rows in task.draws(seed, b)])
            arms.append(make_arm(f"{name} + {evaluator}", kind, name, evaluator, budget, scores, task, begun))
    return arms


def _part(x: np.ndarray, rows: np.ndarray) -> np.ndarray | Rows:
    """Some rows of features; of those that are mapped from a file nothing is read yet."""
    return Rows(x, rows) if isinstance(x, np.memmap) else x[rows]


def _both(train: np.ndarray, held_out: np.ndarray, test: np.ndarray) -> np.ndarray | Rows:
    """Features that are asked for: those of held-out training samples, then those of test samples."""
    if isinstance(train, np.memmap) or isinstance(test, np.memmap):
        return Rows(train, held_out).followed_by(Rows(test))
    return np.concatenate([train[held_out], test])


def read(evaluator: str, task: Task, features: np.ndarray, rows: np.ndarray, asked: np.ndarray | Rows,
         seed: int) -> np.ndarray:
    """What an evaluator makes of features: class scores (M, K), or numbers (M,), of those asked for.

    Args:
        evaluator: its name.
        task: whose labels are read.
        features: (N, D) of all training samples.
        rows: which of them are shown with their labels.
        asked: (M, D).
        seed: of the fit.
    """
    judge, y, shown = registry.build("evaluator", evaluator), task.train_y[rows], _part(features, rows)
    if task.regression:
        return np.asarray(judge.regress(shown, y, asked, seed=seed))
    return np.asarray(judge(shown, y, asked, classes=task.classes, seed=seed))


def labelled_controls(modality: Any, task: Task) -> dict[str, Callable[..., np.ndarray]]:
    """Controls of a modality that read samples and labels themselves: classifiers or, of numbers, regressions."""
    return dict(getattr(modality, "NUMBER_CONTROLS" if task.regression else "LABELLED_CONTROLS", {}))


def labelled_arms(name: str, fit: Callable[..., np.ndarray], task: Task) -> list[Arm]:
    """Score a classifier or a regression that reads raw samples and labels, a control, at every budget."""
    y, arms = task.train_y, []
    more = {} if task.regression else {"classes": task.classes}
    asked = np.concatenate([task.train.images[task.held_out], task.test.images])
    for b, budget in enumerate(task.budgets):
        begun = time.perf_counter()
        scores = [[fit(task.train.images[rows], y[rows], asked, task.train.spec, seed=seed, **more)
                   for rows in task.draws(seed, b)] for seed in range(len(task.subsets))]
        arms.append(make_arm(name, "control", name, "labels", budget, scores, task, begun))
    return arms


def make_arm(label: str, kind: str, source: str, evaluator: str, budget: int | str, scores: list[list[np.ndarray]],
             task: Task, begun: float) -> Arm:
    """An arm from scores [seed][draw] (V + M, K), or numbers (V + M,): of the held-out samples, then of the test."""
    held = len(task.held_out)
    held_y, test_y = task.train_y[task.held_out], task.test_y
    validation = [float(quality(s[:held], held_y).mean()) for draws in scores for s in draws]
    every = [[_scores_of(s[held:], test_y, task) for s in draws] for draws in scores]
    numbers = {k: [float(np.mean([e[k] for e in draws])) for draws in every]
               for k, v in every[0][0].items() if isinstance(v, int | float)}
    return Arm(label, kind, source, evaluator, budget,
               np.stack([np.mean([quality(s[held:], test_y) for s in draws], axis=0) for draws in scores]),
               float(np.mean(validation)), numbers, time.perf_counter() - begun,
               test_y if task.regression else None,
               np.stack([np.mean([np.abs(s[held:] - test_y) for s in draws], axis=0) for draws in scores])
               if task.regression else None)


def _scores_of(told: np.ndarray, y: np.ndarray, task: Task) -> dict[str, Any]:
    return dict(score_numbers(told, y)) if task.regression else score_all(told, y, task.classes)


def interval_of(arm: Arm) -> Interval:
    """An arm's quality with its interval over seeds and test samples."""
    return hierarchical_interval(arm.quality, targets=arm.targets)


def errors_of(arm: Arm) -> dict[str, float]:
    """Ends of the intervals of ``mae`` and ``rmse`` of an arm of predicted numbers; empty for others.

    The mean squared error, whose root ``rmse`` is, gets an interval as every mean does; the root is taken of its ends.
    """
    if arm.targets is None or arm.absolute is None:
        return {}
    absolute = hierarchical_interval(arm.absolute)
    squared = hierarchical_interval((1 - arm.quality) * float(np.var(arm.targets)))
    ends = {"mae_low": max(0.0, absolute.low), "mae_high": absolute.high}
    return {**ends, "rmse_low": max(0.0, squared.low)**0.5, "rmse_high": squared.high**0.5}
