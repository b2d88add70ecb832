"""Contestants of a forecast: naive ones, a linear map of the context, and ridge regression from a network's features.

A ridge predicts what is to come less the mean of the context. Where the network sees each window normalised by its own
mean and deviation, features and a constant are multiplied by that deviation, so that least squares still counts errors
in the units in which they are scored (the reversible normalisation of Kim et al. 2022, with its scale inside the fit).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from osteon.backbones import Backbone
from osteon.core.errors import UsageError
from osteon.data.series import LongSeries
from osteon.modalities.series import own_scale
from osteon.parts.forecast import Chosen, choose_ridge, cut
from osteon.parts.types import DataSpec

#: Windows that pass through a network, or count into a sum, at once.
BATCH = 256


@dataclass
class Task:
    """What is to be forecast.

    Args:
        values: (C, T) standardised by the training part.
        rows: ``train``, ``val``, ``test`` -> origins (N,).
        context: L.
        horizon: H.
        notes: every choice with its rule.
    """

    values: np.ndarray
    rows: dict[str, np.ndarray]
    context: int
    horizon: int
    notes: list[str] = field(default_factory=list)


@dataclass
class ForecastArm:
    """One contestant on the test windows.

    Args:
        name: what is shown.
        kind: ``"pretrained"`` or ``"control"``.
        squared: (N,) squared error of each test window, averaged over channels and steps (and over networks).
        absolute: (N,) the same of the absolute error.
        channel_squared: (C,) squared error of each channel.
        validation: mean squared error on validation windows, by which arms are chosen.
        predict: numbers of test windows (n,) -> forecasts (n, C, H).
        penalty: that was chosen, of ridge regression.
        shared: whether one map serves all channels, of ridge regression.
        wall_s: seconds it took.
    """

    name: str
    kind: str
    squared: np.ndarray
    absolute: np.ndarray
    channel_squared: np.ndarray
    validation: float
    predict: Callable[[np.ndarray], np.ndarray]
    penalty: float | None = None
    shared: bool | None = None
    wall_s: float = 0.0


@dataclass
class Features:
    """What a network says of every part.

    Args:
        parts: part -> (N, C or 1, F) float32.
        scaled: whether each window had its own scale.
        length: last steps of the context that the network saw; 0: all.
        spans: how many features of one token each row of F holds.
    """

    parts: dict[str, np.ndarray]
    scaled: bool
    length: int = 0
    spans: int = 1


@torch.inference_mode()
def reader(backbone: Backbone, spec: DataSpec, series: LongSeries, task: Task, spans: int) -> Features:
    """Features of the contexts of every part: tokens averaged over equal spans of time, in their order.

    A network whose window is shorter than the context sees the last steps of it.
    """
    length = spec.extent[0]
    if length > task.context:
        raise UsageError(f"The network sees {length} steps; the context has {task.context}.", where="context",
                         fix=f"Give a context of {length} steps or more.")
    alone, scaled = bool(spec.traits.get("independent")), spec.traits.get("norm") == "window"
    source = series.standardised() if alone else series.values
    mean, std = (torch.tensor(v, dtype=torch.float32)[:, None] for v in (spec.mean, spec.std))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backbone.eval().to(device)
    parts = {}
    for part, rows in task.rows.items():
        known, _ = cut(source, rows, task.context, task.horizon)
        out = []
        for start in range(0, len(known), BATCH):
            x = np.asarray(known[start:start + BATCH, :, -length:], np.float64)
            if scaled:
                middle, size = own_scale(x)
                x = (x - middle) / size
            flat = x.reshape(-1, 1, length) if alone else x
            tokens = backbone(((torch.from_numpy(flat).float() - mean) / std).to(device)).tokens
            held = [span.mean(1) for span in tokens.tensor_split(min(spans, tokens.shape[1]), dim=1)]
            out.append(torch.cat(held, 1).float().cpu().numpy().reshape(len(x), -1, sum(h.shape[1] for h in held)))
        parts[part] = np.concatenate(out)
    backbone.to("cpu")
    return Features(parts, scaled, length, len(held))


def naive_arm(name: str, rule: Callable[[np.ndarray], np.ndarray], task: Task, kind: str = "control") -> ForecastArm:
    """A forecast by a rule on the context (..., C, L) -> (..., C, H), without any fit here."""
    begun = time.perf_counter()

    def predict(part: str, at: np.ndarray) -> np.ndarray:
        return rule(cut(task.values, task.rows[part][at], task.context, task.horizon)[0])

    return _scored(name, kind, [predict], task, _validation(predict, task), begun)


@dataclass
class Direct:
    """Forecasts of an objective's trained head.

    Args:
        method: has ``forecast(past (B, C, L), steps) -> (B, C, steps)``, the same in any units of each channel.
        alone: whether it takes one channel at a time.
        steps: asked for.
    """

    method: Any
    alone: bool
    steps: int

    @torch.inference_mode()
    def __call__(self, known: np.ndarray) -> np.ndarray:
        """(N, C, L) -> (N, C, H)."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.method.eval().to(device)
        flat = known.reshape(-1, 1, known.shape[-1]) if self.alone else known
        out = [self.method.forecast(torch.from_numpy(np.ascontiguousarray(flat[i:i + BATCH], np.float32)).to(device),
                                    self.steps).float().cpu().numpy() for i in range(0, len(flat), BATCH)]
        self.method.to("cpu")
        return np.concatenate(out).reshape(*known.shape[:2], self.steps)


def ridge_arm(name: str, kind: str, features: Sequence[Features], task: Task, *, beside: bool = False) -> ForecastArm:
    """Ridge regression from the context, from features, or from both; one map for all channels, or one each.

    Both ways are tried where features do not decide it (those of a network that sees all channels at once are the same
    for each, so each has a map of its own); validation windows choose.

    Args:
        name: what is shown.
        kind: ``"pretrained"`` or ``"control"``.
        features: of one network or of several, whose errors are averaged; none: of the context alone.
        task: what is to be forecast.
        beside: whether the context stands beside the features.
    """
    begun = time.perf_counter()
    predictors, errors, chosen, together = [], [], None, True
    for one in features or (None,):
        together, chosen = fit_ridge(one, task, beside=beside)
        predictors.append(_predictor(one, beside or one is None, together, chosen, task))
        errors.append(chosen.error)
    assert chosen is not None
    arm = _scored(name, kind, predictors, task, float(np.mean(errors)), begun)
    arm.penalty, arm.shared = chosen.penalty, together
    return arm


def fit_ridge(one: Features | None, task: Task, *, beside: bool) -> tuple[bool, Chosen]:
    """Whether one map serves all channels, and the maps; of a network, or of the context alone (None)."""
    wide = one is not None and one.parts["train"].shape[1] == 1 and len(task.values) > 1
    tried = {shared: _fit(one, beside or one is None, shared, task)
             for shared in ((False,) if wide else (True, False) if one is None else (True,))}
    together = min(tried, key=lambda shared: tried[shared].error)
    return together, tried[together]


def _design(one: Features | None, raw: bool, part: str, at: np.ndarray, channel: int,
            task: Task) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows (n, F), targets (n, H) and the level (n, 1) that a forecast of one channel adds back."""
    known, future = (v[:, 0] for v in cut(task.values[channel:channel + 1], task.rows[part][at], task.context,
                                          task.horizon))
    seen = known if one is None else known[:, -one.length:]
    level = known[:, -1:] if one is None else seen.mean(-1, keepdims=True)
    columns = [known - level] if raw else []
    if one is not None:
        held = one.parts[part][at, min(channel, one.parts[part].shape[1] - 1)]
        size = own_scale(seen)[1] if one.scaled else np.ones_like(level)
        columns += [size * held, size]
    return np.concatenate(columns, 1).astype(np.float32), (future - level).astype(np.float32), level


def _fit(one: Features | None, raw: bool, shared: bool, task: Task) -> Chosen:
    def batches(part: str, channels: Sequence[int]) -> Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]:
        def go() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for channel in channels:
                for start in range(0, len(task.rows[part]), 4 * BATCH):
                    at = np.arange(start, min(start + 4 * BATCH, len(task.rows[part])))
                    yield _design(one, raw, part, at, channel, task)[:2]

        return go

    every = range(len(task.values))
    groups = [list(every)] if shared else [[c] for c in every]
    return choose_ridge([batches("train", g) for g in groups], [batches("val", g) for g in groups])


def _predictor(one: Features | None, raw: bool, shared: bool, chosen: Chosen,
               task: Task) -> Callable[[str, np.ndarray], np.ndarray]:
    def predict(part: str, at: np.ndarray) -> np.ndarray:
        out = []
        for channel in range(len(task.values)):
            x, _, level = _design(one, raw, part, at, channel, task)
            out.append(x @ chosen.weights[0 if shared else channel] + level)
        return np.stack(out, 1)

    return predict


def _validation(predict: Callable[[str, np.ndarray], np.ndarray], task: Task) -> float:
    rows = task.rows["val"]
    asked = cut(task.values, rows, task.context, task.horizon)[1]
    return float(np.square(predict("val", np.arange(len(rows))) - asked).mean())


def _scored(name: str, kind: str, predictors: Sequence[Callable[[str, np.ndarray], np.ndarray]], task: Task,
            validation: float, begun: float) -> ForecastArm:
    rows, channels = task.rows["test"], len(task.values)
    squared, absolute, by_channel = np.zeros(len(rows)), np.zeros(len(rows)), np.zeros(channels)
    for start in range(0, len(rows), BATCH):
        at = np.arange(start, min(start + BATCH, len(rows)))
        asked = cut(task.values, rows[at], task.context, task.horizon)[1]
        for predict in predictors:
            error = predict("test", at) - asked
            squared[at] += np.square(error).mean((1, 2)) / len(predictors)
            absolute[at] += np.abs(error).mean((1, 2)) / len(predictors)
            by_channel += np.square(error).mean(2).sum(0) / len(predictors) / len(rows)
    return ForecastArm(name, kind, squared, absolute, by_channel, validation, lambda at: predictors[0]("test", at),
                       wall_s=time.perf_counter() - begun)
