"""Arms of a comparison: every pre-trained backbone and every control, scored the same way at every label budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from osteon.core import registry
from osteon.core.errors import UsageError
from osteon.data import Dataset, train_validation_split
from osteon.parts.metrics import score_all
from osteon.parts.rows import Rows
from osteon.parts.subsets import nested_subsets

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
        quality: (S, M) per-seed, per-test-sample quality in [0, 1], averaged over draws of labels: right or wrong, or
            with several labels a sample the label-ranking average precision.
        validation: mean quality on held-out training samples, by which a recipe is chosen.
        scores: metric -> value for each seed.
        wall_s: seconds spent on this arm.
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


@dataclass
class Task:
    """A labelled task: who trains, who tests, which labels are shown at each budget and seed.

    Args:
        train: labelled samples; some of them, ``held_out``, train nothing: recipes and controls are chosen on them.
        test: labelled samples looked at once.
        classes: K.
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
        return np.asarray(self.train.labels).ndim == 2


def make_task(train: Dataset, test: Dataset, budgets: Sequence[int | str], seeds: int, *, flip: bool = True,
              held_out: float = 0.2, draws: int = DRAWS) -> Task:
    """Hold out a part of the labelled samples for choices and draw nested, stratified label budgets from the rest.

    Raises:
        UsageError: missing labels, classes that differ, a budget larger than what is there.
    """
    for dataset, option in ((train, "--train"), (test, "--test")):
        if dataset.labels is None:
            raise UsageError("Evaluation needs labels; this source has none.", where=f"{option} {dataset.source}")
    if train.class_names != test.class_names:
        extra = sorted(set(test.class_names) ^ set(train.class_names))
        raise UsageError(f"The classes of --train and --test differ: {', '.join(map(str, extra[:5]))}.",
                         where=test.source, fix="Give both the same classes.")
    y = np.asarray(train.labels)
    top = 0 if y.ndim == 2 else int(max(y.max(), np.asarray(test.labels).max())) + 1
    classes = y.shape[1] if y.ndim == 2 else len(train.class_names) or top
    if classes < 2:
        raise UsageError("Evaluation needs at least two classes.", where=train.source)
    pool, rest = train_validation_split(y, held_out, 0, groups=train.groups)
    for budget in budgets:
        if str(budget) != "all" and int(budget) > len(pool):
            raise UsageError(f"A budget of {budget} labels is more than the {len(pool)} there are beside the "
                             f"{len(rest)} held out for choices.", where="--label-budget",
                             fix="Use a smaller one or all.")
    subsets = [[[pool[rows] for rows in nested_subsets(y[pool], list(budgets), seed * draws + draw)]
                for draw in range(draws)] for seed in range(seeds)]
    return Task(train, test, classes, list(budgets), subsets, rest, flip)


def quality(scores: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Quality of each of M samples from (M, K) scores: right or wrong; with (M, K) labels, average precision."""
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
    y = np.asarray(task.train.labels)
    arms = []
    for evaluator in evaluators:
        for b, budget in enumerate(task.budgets):
            begun = time.perf_counter()
            scores = []
            for seed, draws in enumerate(task.subsets):
                train_x, test_x = features[seed % len(features)]
                asked = _both(train_x, task.held_out, test_x)
                shown = [draw[b] for draw in draws]
                different = shown[:1] if len(shown[0]) == len(y) - len(task.held_out) else shown  # all labels: one draw
                judge = registry.build("evaluator", evaluator)
                scores.append([judge(_part(train_x, rows), y[rows], asked, classes=task.classes, seed=seed)
                               for rows in different])
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


def labelled_arms(name: str, fit: Callable[..., np.ndarray], task: Task) -> list[Arm]:
    """Score a classifier that reads raw samples and labels, a control, at every budget."""
    y, arms = np.asarray(task.train.labels), []
    asked = np.concatenate([task.train.images[task.held_out], task.test.images])
    for b, budget in enumerate(task.budgets):
        begun, scores = time.perf_counter(), []
        for seed, draws in enumerate(task.subsets):
            shown = [draw[b] for draw in draws]
            different = shown[:1] if len(shown[0]) == len(y) - len(task.held_out) else shown  # all labels: one draw
            scores.append([fit(task.train.images[rows], y[rows], asked, task.train.spec, classes=task.classes,
                               seed=seed) for rows in different])
        arms.append(make_arm(name, "control", name, "labels", budget, scores, task, begun))
    return arms


def make_arm(label: str, kind: str, source: str, evaluator: str, budget: int | str, scores: list[list[np.ndarray]],
             task: Task, begun: float) -> Arm:
    """An arm from scores [seed][draw] (V + M, K): first of the held-out training samples, then of the test samples."""
    held = len(task.held_out)
    held_y, test_y = np.asarray(task.train.labels)[task.held_out], np.asarray(task.test.labels)
    validation = [float(quality(s[:held], held_y).mean()) for draws in scores for s in draws]
    every = [[score_all(s[held:], test_y, task.classes) for s in draws] for draws in scores]
    numbers = {k: [float(np.mean([e[k] for e in draws])) for draws in every]
               for k, v in every[0][0].items() if isinstance(v, int | float)}
    return Arm(label, kind, source, evaluator, budget,
               np.stack([np.mean([quality(s[held:], test_y) for s in draws], axis=0) for draws in scores]),
               float(np.mean(validation)), numbers, time.perf_counter() - begun)
