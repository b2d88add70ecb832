"""The jobs of a tournament on forecasting: what training a forecaster costs, reading features, training, the exam.

A network is read by ridge regression from its frozen features (:mod:`osteon.verbs._forecast_arms`) or trained as a
whole by the objective ``forecast``: one linear map from all its tokens to the horizon, mean squared error, at random
origins of the whole training part; of a few checkpoints the one that is best on validation windows is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from osteon.backbones import Backbone
from osteon.core import registry
from osteon.objectives.forecast import Forecast
from osteon.parts.flops import count_step
from osteon.parts.forecast import block_means, cut, last_value, origins, seasonal_naive
from osteon.parts.types import DataSpec, Step
from osteon.train.loop import Engine, make_fabric
from osteon.train.settings import resolve_settings
from osteon.verbs._arms import Arm
from osteon.verbs._forecast_arms import Direct, Features, ForecastArm, fit_ridge, naive_arm, reader, ridge_arm
from osteon.verbs._networks import BATCH, epochs_of_rows, fresh
from osteon.verbs._tournament_ahead import CHECKS, READERS, SPANS, Ahead, spread_over
from osteon.verbs._tournament_kit import cpu_seconds, median_seconds, save_arrays


class ToHorizon(Forecast):
    """Direct forecasting of windows that are read as context and horizon alone: any horizon suits any patch."""

    reads_whole: ClassVar[bool] = False


class Forecaster:
    """A network with a head for the whole horizon, and what trains the two together.

    Args:
        network: with its initial weights; it is trained in place.
        ahead: the task.
        steps: of the whole training.
        seed: key of all randomness.
    """

    def __init__(self, network: Backbone, ahead: Ahead, *, steps: int, seed: int) -> None:
        self.ahead, self.steps, self.seed = ahead, steps, seed
        size, channels = network.size, 1 if ahead.alone else len(ahead.series.names)
        self.length = size if isinstance(size, int) else size[0]
        torch.manual_seed(seed)
        span = self.length + ahead.task.horizon
        data = DataSpec("series", channels, span, (0.0,) * channels, (1.0,) * channels, 1.0, shape=(span,))
        self.method = ToHorizon(network, data, horizon=ahead.task.horizon)
        self.rows = origins(ahead.series.parts["train"], ahead.task.context, ahead.task.horizon)
        self.count = len(self.rows) * ahead.passes
        settings, _ = resolve_settings({"steps": steps, "batch_size": min(BATCH, self.count), "seed": seed,
                                        "precision": "32"}, self.method.recipe, max(2, self.count), kind=network.kind)
        self.batch = settings.batch_size
        self.engine = Engine(self.method.train(), settings, make_fabric("32"))
        self.method.to(self.engine.fabric.device)

    def sample(self, at: np.ndarray) -> dict[str, torch.Tensor]:
        """The windows (B, C, L + H) of some numbers below ``count``: origins, and channels where they are apart."""
        known, future = cut(self.ahead.task.values, self.rows[at // self.ahead.passes], self.length,
                            self.ahead.task.horizon)
        x = np.concatenate([known, future], -1)
        if self.ahead.alone:
            x = x[np.arange(len(at)), at % self.ahead.passes][:, None]
        given = {"series": torch.from_numpy(x.astype(np.float32)), "index": torch.from_numpy(at)}
        return {k: v.to(self.engine.fabric.device) for k, v in given.items()}

    def step(self, at: np.ndarray, index: int) -> None:
        """One optimiser step on some windows."""
        self.engine.run(self.sample(at), Step(index, self.steps, self.seed))

    def rule(self) -> Callable[[np.ndarray], np.ndarray]:
        """The forecast as it is now: contexts (N, C, L) -> (N, C, H)."""
        direct = Direct(self.method, self.ahead.alone, self.ahead.task.horizon)
        return lambda known: direct(known[..., -self.length:])

    def error(self) -> float:
        """Mean squared error on the validation windows."""
        rows = self.ahead.task.rows["val"]
        known, future = cut(self.ahead.task.values, rows, self.ahead.task.context, self.ahead.task.horizon)
        found = float(np.square(self.rule()(known) - future).mean())
        self.method.to(self.engine.fabric.device).train()
        return found


def price(network: Backbone, ahead: Ahead) -> dict[str, float]:
    """What one step of training a network to forecast costs."""
    made = Forecaster(fresh(network, 0), ahead, steps=1000, seed=0)
    rows = np.arange(made.batch)
    flop = count_step(made.engine, made.sample(rows), Step(0, 1000, 0)).total
    return {"flop": flop, "batch": made.batch, "seconds": median_seconds(lambda i: made.step(rows, i))}


def train(network: Backbone, ahead: Ahead, *, steps: int, seed: int) -> ForecastArm:
    """Train a network to forecast and score the checkpoint that is best on validation windows on the test windows."""
    made = Forecaster(network, ahead, steps=steps, seed=seed)
    checks = {round(steps * (i + 1) / CHECKS) for i in range(CHECKS)}
    best, state = float("inf"), made.method.state_dict()
    for index, at in enumerate(epochs_of_rows(made.count, made.batch, steps, seed)):
        made.step(at, index)
        if index + 1 in checks and (found := made.error()) < best:
            best, state = found, {k: v.detach().clone() for k, v in made.method.state_dict().items()}
    made.method.load_state_dict(state)
    return naive_arm("", made.rule(), ahead.task)


def supervise(network: Backbone, ahead: Ahead, file: Path, *, steps: int, seed: int) -> dict[str, Any]:
    """Train a network to forecast and keep its errors for the exam; see :func:`train`."""
    begun, cpu = time.perf_counter(), cpu_seconds()
    arm = train(network, ahead, steps=steps, seed=seed)
    save_arrays(file, squared=arm.squared, absolute=arm.absolute, validation=np.array(arm.validation))
    spent = time.perf_counter() - begun
    return {"wall_s": spent, "train_s": spent, "cpu_s": cpu_seconds() - cpu, "steps": steps}


def trained(files: Sequence[Path], ahead: Ahead, *, name: str, kind: str, source: str, evaluator: str) -> Arm:
    """The arm of networks that were trained to forecast, one a seed, from the errors they left."""
    found = []
    for file in files:
        with np.load(file, allow_pickle=False) as stored:
            found.append(ForecastArm("", kind, stored["squared"], stored["absolute"], np.zeros(0),
                                     float(stored["validation"]), lambda at: at))
    return as_arm(found, ahead, name=name, kind=kind, source=source, evaluator=evaluator)


def look(backbone: Backbone, spec: DataSpec, ahead: Ahead, parts: Sequence[str] = ("train", "val", "test")) -> Features:
    """Features of the windows of some parts."""
    task = replace(ahead.task, rows={part: ahead.task.rows[part] for part in parts})
    return reader(backbone, spec, ahead.series, task, SPANS)


def save_features(file: Path, seen: Features) -> None:
    """Write features for the exam."""
    save_arrays(file, **seen.parts, about=np.array([seen.scaled, seen.length, seen.spans]))


def load_features(file: Path) -> Features:
    """The features :func:`save_features` wrote."""
    with np.load(file, allow_pickle=False) as stored:
        scaled, length, spans = (int(v) for v in stored["about"])
        return Features({part: stored[part] for part in ("train", "val", "test")}, bool(scaled), length, spans)


def validate(seen: Features, ahead: Ahead) -> dict[str, dict[str, float]]:
    """Less the mean squared error on validation windows: reader -> horizon -> quality."""
    return {name: {ahead.budget: -fit_ridge(seen, ahead.task, beside=name != "ridge")[1].error} for name in READERS}


def label_free(seen: Features) -> dict[str, float]:
    """Scores of the features of training windows (the mean over spans of time) that need nothing that follows them."""
    x = seen.parts["train"]
    return dict(registry.build("evaluator", "label_free")(x.reshape(-1, seen.spans, x.shape[-1] // seen.spans).mean(1)))


def control_arm(name: str, rule: str, ahead: Ahead) -> Arm:
    """A control without a network: ``last``, ``seasonal`` or ``linear``."""
    task = ahead.task
    if rule == "linear":
        made = ridge_arm(name, "control", [], task)
    elif rule == "last":
        made = naive_arm(name, lambda x: last_value(x, task.horizon), task)
    else:
        made = naive_arm(name, lambda x: seasonal_naive(x, task.horizon, ahead.period), task)
    return as_arm([made], ahead, name=name, kind="control", source=name, evaluator="context")


def feature_arms(source: str, kind: str, seen: Sequence[Features], ahead: Ahead) -> list[Arm]:
    """Forecasts from features by every reader, one network a seed."""
    arms = []
    for evaluator in READERS:
        beside = evaluator != "ridge"
        name = f"{source} and context + ridge" if beside else f"{source} + ridge"
        made = [ridge_arm(name, kind, [one], ahead.task, beside=beside) for one in seen]
        arms.append(as_arm(made, ahead, name=name, kind=kind, source=source, evaluator=evaluator))
    return arms


def as_arm(made: Sequence[ForecastArm], ahead: Ahead, *, name: str, kind: str, source: str, evaluator: str) -> Arm:
    """An arm of a tournament from forecasts, one a seed, or one that serves every seed."""
    squared, absolute = (spread_over([block_means(getattr(m, key), ahead.block) for m in made], ahead.seeds)
                         for key in ("squared", "absolute"))
    every = [made[seed % len(made)] for seed in range(ahead.seeds)]
    scores = {"mse": [float(m.squared.mean()) for m in every], "mae": [float(m.absolute.mean()) for m in every]}
    return Arm(name, kind, source, evaluator, ahead.budget, -squared, -float(np.mean([m.validation for m in every])),
               scores, sum(m.wall_s for m in made), absolute=absolute, errors=True)
