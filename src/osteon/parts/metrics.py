"""How good scores are: accuracy, F1, AUROC, average precision, each also for many re-weightings of the samples at once.

Letters: M test samples, K classes, R sets of sample weights (the bootstrap's resampling counts). Undefined values
(AUROC without a negative, say) are NaN, and averages over classes leave them out.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from osteon.core.errors import DataError

#: Score from which a label counts as predicted in multi-label metrics that need a decision.
THRESHOLD = 0.5


def check_scores(scores: np.ndarray, y: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores (M, K) as float and labels (M,) int64 or (M, K) bool, or a DataError saying what does not fit."""
    scores, y = np.asarray(scores), np.asarray(y)
    if scores.ndim != 2 or scores.shape[1] != classes:
        raise DataError(f"Scores have the shape {scores.shape}, but (samples, {classes} classes) is needed.",
                        where="scores")
    if len(scores) == 0 or len(scores) != len(y):
        raise DataError(f"There are {len(scores)} rows of scores and {len(y)} labels.", where="scores")
    if not np.isfinite(scores).all():
        raise DataError("Scores hold NaN or infinite values.", where="scores",
                        fix="Look for NaN in the features the scores were made from.")
    if y.ndim == 2:
        if y.shape[1] != classes:
            raise DataError(f"Labels have {y.shape[1]} columns, but there are {classes} classes.", where="labels")
        return scores, y > 0
    if y.min() < 0 or y.max() >= classes:
        raise DataError(f"Labels run from {y.min()} to {y.max()}, but there are {classes} classes.", where="labels")
    return scores, y.astype(np.int64)


def correctness(scores: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How right each sample is, (M,) float: 1 or 0; multi-label: the share of its K labels decided rightly."""
    y = np.asarray(y)
    if y.ndim == 2:
        return ((np.asarray(scores) >= THRESHOLD) == (y > 0)).mean(1)
    return (np.asarray(scores).argmax(1) == y).astype(np.float64)


def accuracy(scores: np.ndarray, y: np.ndarray) -> float:
    """Share of samples whose highest score is at their class; multi-label: all K labels right (exact match)."""
    return float(_accuracy(*_ready(scores, y))[0])


def balanced_accuracy(scores: np.ndarray, y: np.ndarray) -> float:
    """Mean over classes of the share found; multi-label: mean over labels of (sensitivity + specificity) / 2."""
    return float(_balanced(*_ready(scores, y))[0])


def macro_f1(scores: np.ndarray, y: np.ndarray) -> float:
    """Mean over classes of F1; classes neither present nor predicted are left out (single label)."""
    return float(_macro_f1(*_ready(scores, y))[0])


def auroc(scores: np.ndarray, y: np.ndarray) -> float:
    """Probability that a random positive outscores a random negative (ties count half), macro one-vs-rest.

    With two classes the score is column 1 less column 0, so one curve; multi-label averages over the labels.
    """
    return float(_auroc(*_ready(scores, y))[0])


def mean_average_precision(scores: np.ndarray, y: np.ndarray) -> float:
    """Mean over classes of average precision: the sum of precision times the gain in recall, ties taken together."""
    return float(_mean_ap(*_ready(scores, y))[0])


def per_class_support(y: np.ndarray, classes: int) -> np.ndarray:
    """How many samples each class has, (K,) int64."""
    y = np.asarray(y)
    return (y > 0).sum(0).astype(np.int64) if y.ndim == 2 else np.bincount(y.astype(np.int64), minlength=classes)


def score_all(scores: np.ndarray, y: np.ndarray, classes: int) -> dict[str, Any]:
    """Every metric of one set of scores.

    Args:
        scores: (M, K), higher is more likely; multi-label decisions are made at 0.5.
        y: (M,) int or (M, K) multi-label.
        classes: K.

    Returns:
        ``accuracy``, ``balanced_accuracy``, ``macro_f1``, ``auroc`` (floats in [0, 1]); multi-label also
        ``label_accuracy`` and ``mean_average_precision``; ``per_class_support`` and ``per_class_recall`` (lists of K;
        recall is NaN for a class without samples).
    """
    scores, y = check_scores(scores, y, classes)
    result: dict[str, Any] = {k: float(v[0]) for k, v in metric_values(scores, y, np.ones((len(y), 1))).items()}
    tp, support, _ = _counts(scores, y, np.ones((len(y), 1)))
    result["per_class_support"] = [int(v) for v in support[:, 0]]
    result["per_class_recall"] = [float(v) for v in _ratio(tp, support)[:, 0]]
    return result


def metric_values(scores: np.ndarray, y: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Every metric under R sets of sample weights at once: what the bootstrap needs.

    Args:
        scores: (M, K).
        y: (M,) int, or (M, K) bool.
        weights: (M, R), e.g. how often each sample was drawn.

    Returns:
        name -> (R,) float64.
    """
    values = {"accuracy": _accuracy(scores, y, weights), "balanced_accuracy": _balanced(scores, y, weights),
              "macro_f1": _macro_f1(scores, y, weights), "auroc": _auroc(scores, y, weights)}
    if y.ndim == 2:
        values["label_accuracy"] = correctness(scores, y) @ weights / weights.sum(0)
        values["mean_average_precision"] = _mean_ap(scores, y, weights)
    return values


def _ready(scores: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scores, y = check_scores(scores, y, np.asarray(scores).shape[-1])
    return scores, y, np.ones((len(y), 1))


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """top / bottom, NaN where bottom is 0."""
    return np.divide(top, bottom, out=np.full(np.broadcast(top, bottom).shape, np.nan), where=bottom > 0)


def _mean(values: np.ndarray) -> np.ndarray:
    """(K, R) -> (R,): mean over classes without the undefined ones; NaN where none is defined."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # "mean of empty slice" is the NaN we want
        return np.nanmean(values, axis=0)


def _sum_by_class(weights: np.ndarray, group: np.ndarray, classes: int) -> np.ndarray:
    """(M, R) weights summed within each class, (K, R)."""
    order = np.argsort(group, kind="stable")
    present, starts = np.unique(group[order], return_index=True)
    out = np.zeros((classes, weights.shape[1]))
    out[present] = np.add.reduceat(weights[order], starts, axis=0, dtype=np.float64)
    return out


def _counts(scores: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True positives, support and predicted positives, each (K, R)."""
    if y.ndim == 2:
        told = scores >= THRESHOLD
        return tuple((part.T.astype(weights.dtype) @ weights).astype(np.float64)  # type: ignore[return-value]
                     for part in (told & y, y, told))
    told = scores.argmax(1)
    classes = scores.shape[1]
    return (_sum_by_class(weights * (told == y)[:, None], y, classes), _sum_by_class(weights, y, classes),
            _sum_by_class(weights, told, classes))


def _accuracy(scores: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    right = ((scores >= THRESHOLD) == y).all(1) if y.ndim == 2 else scores.argmax(1) == y
    return right.astype(np.float64) @ weights / weights.sum(0)


def _balanced(scores: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    tp, support, told = _counts(scores, y, weights)
    recall = _ratio(tp, support)
    if y.ndim == 1:
        return _mean(recall)
    negatives = weights.sum(0) - support
    return _mean((recall + _ratio(negatives - (told - tp), negatives)) / 2)


def _macro_f1(scores: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    tp, support, told = _counts(scores, y, weights)
    f1 = _ratio(2 * tp, support + told)
    return np.nan_to_num(f1).mean(0) if y.ndim == 2 else _mean(f1)


def _auroc(scores: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    if y.ndim == 1 and scores.shape[1] == 2:
        return _auroc_one(scores[:, 1] - scores[:, 0], y == 1, weights)
    positive = y if y.ndim == 2 else y[:, None] == np.arange(scores.shape[1])
    return _mean(np.stack([_auroc_one(s, p, weights) for s, p in zip(scores.T, positive.T, strict=True)]))


def _mean_ap(scores: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    positive = y if y.ndim == 2 else y[:, None] == np.arange(scores.shape[1])
    return _mean(np.stack([_average_precision(s, p, weights) for s, p in zip(scores.T, positive.T, strict=True)]))


def _around_positives(score: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """Weight of samples and of positives above, and down to, the score of each of the P positives.

    Only rows of positives are kept: with K classes that is one in K, and the bootstrap repeats this R times.

    Returns:
        own weight (P, R), all above (P, R), all down to (P, R), positives above (P, R), positives down to (P, R).
    """
    order = np.argsort(-score, kind="stable")
    ranked, drawn, place = score[order], weights[order], np.flatnonzero(positive[order])
    first = np.searchsorted(-ranked, -ranked[place], side="left")  # samples that score higher
    last = np.searchsorted(-ranked, -ranked[place], side="right")  # ... or the same
    # Whole counts below 2^24 are exact in float32, which is what the bootstrap gives.
    kind = np.float32 if weights.dtype == np.float32 and len(score) < 2**23 else np.float64
    every = np.zeros((len(score) + 1, weights.shape[1]), dtype=kind)
    hits = np.zeros((len(place) + 1, weights.shape[1]), dtype=kind)
    for total, part in ((every, drawn), (hits, drawn[place])):
        if part.shape[1] < 16:
            np.cumsum(part, axis=0, out=total[1:])
            continue
        for i in range(len(part)):  # row by row: numpy's own cumsum walks this axis against the memory
            np.add(total[i], part[i], out=total[i + 1])
    return (drawn[place], every[first], every[last], hits[np.searchsorted(place, first)],
            hits[np.searchsorted(place, last)])


def _auroc_one(score: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of (positive, negative) pairs in the right order, a tie counting half; (R,)."""
    own, above, down_to, hits_above, hits_down_to = _around_positives(score, positive, weights)
    wins = -((above - hits_above) + (down_to - hits_down_to)) / 2
    positives, total = own.sum(0, dtype=np.float64), weights.sum(0, dtype=np.float64)
    negatives = total - positives
    area = np.einsum("pr,pr->r", own, wins, dtype=np.float64) + positives * negatives
    return _ratio(area, positives * negatives)


def _average_precision(score: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over positives of the precision down to their score; (R,)."""
    own, _, down_to, _, hits_down_to = _around_positives(score, positive, weights)
    precision = np.divide(hits_down_to, down_to, out=np.zeros(own.shape), where=down_to > 0)
    return _ratio(np.einsum("pr,pr->r", own, precision, dtype=np.float64), own.sum(0, dtype=np.float64))
