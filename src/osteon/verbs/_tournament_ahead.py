"""What a tournament on forecasting forecasts: parts of one series by time instead of labelled sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from osteon.core.errors import UsageError
from osteon.data import Dataset
from osteon.data.series import LongSeries, open_long
from osteon.data.source import list_source, split_source
from osteon.parts.forecast import MSE
from osteon.parts.intervals import hierarchical_interval
from osteon.verbs._arms import Arm
from osteon.verbs._forecast_arms import Task
from osteon.verbs._verdict import FEWEST_BLOCKS
from osteon.verbs.forecast import season_of, windows_of

#: what ``--task`` says
FORECAST = "forecast"
#: steps ahead where nothing is asked
HORIZON = 96
#: how features are read: by ridge regression, alone or with the context beside them
READERS = ("ridge", "ridge_and_context")
#: spans of time over which tokens are averaged for the ridge
SPANS = 8
#: times at which a network trained to forecast is judged on validation windows, the best of which is kept
CHECKS = 5


#: what was automatic about such a tournament
NOTES = (
    "recipes, options, readouts and controls are chosen by their mean squared errors on windows of the validation "
    "part; the test part is looked at once",
    "equal compute: an arm's budget pays for its views, networks, teachers and gradients, for reading the features of "
    f"all windows once, and for fine-tuning where that is asked for; from scratch also for {CHECKS} looks at the "
    "validation windows; fitting a ridge, which costs little beside that, is not counted, nor is halving, which is "
    "told apart",
    "no curve over budgets of labels: every step of a series is its own label, so that labels cost nothing where there "
    "is data to pre-train on",
    "from scratch: the same network with a linear map of all its tokens to the horizon, trained with mean squared "
    f"error on all training windows; of {CHECKS} checkpoints the best on validation windows is kept")


@dataclass
class Ahead:
    """A task of forecasting, in the place of a labelled one (:class:`osteon.verbs._arms.Task`).

    Args:
        task: values, origins of every part, context and horizon.
        series: what is forecast.
        period: of the seasonal forecast in steps; 1 where there is no season.
        seeds: of every arm.
        alone: whether a network sees one channel at a time.
    """

    task: Task
    series: LongSeries
    period: int
    seeds: int
    alone: bool

    unit = MSE
    regression = False
    classes = 0

    @property
    def budget(self) -> str:
        """What stands in the place of a label budget."""
        return f"{self.task.horizon} steps ahead"

    @property
    def budgets(self) -> list[int | str]:
        """One: every step of a series is its own label."""
        return [self.budget]

    @property
    def passes(self) -> int:
        """Samples of a network that one window makes."""
        return len(self.series.names) if self.alone else 1

    @property
    def reading(self) -> int:
        """Samples whose features are read."""
        return self.passes * sum(map(len, self.task.rows.values()))

    @property
    def scoring(self) -> int:
        """Samples that a network trained to forecast scores: test windows once, validation windows at every check."""
        return self.passes * (CHECKS * len(self.task.rows["val"]) + len(self.task.rows["test"]))

    @property
    def block(self) -> int:
        """Neighbouring test windows that count as one sample of the bootstrap."""
        return 2 * self.task.horizon

    @property
    def controls(self) -> dict[str, str]:
        """Controls that need no network: name -> what makes it."""
        seasonal = {f"seasonal naive ({self.period})": "rule:seasonal"} if self.period > 1 else {}
        return {"last value": "rule:last", **seasonal, "linear map": "rule:linear"}


def open_ahead(source: Dataset, horizon: int, seeds: int) -> Ahead:
    """The task that a series sets, whose training part is the source of pre-training.

    Raises:
        UsageError: the source is no long series, or has no validation part.
        DataError: a part is too short for context and horizon.
    """
    series = open_long(whole(source.source), like=source.spec)
    if "val" not in series.parts:
        raise UsageError("Recipes are chosen on a validation part by time, and the series has none.", where="split",
                         fix="Give three parts, e.g. --set split=0.6,0.2,0.2.")
    task = windows_of(series, source.spec, horizon)
    period = season_of("auto", series, task)
    ahead = Ahead(task, series, period, seeds, bool(source.spec.traits.get("independent")))
    stretches = max(2, len(task.rows["test"]) // ahead.block)
    task.notes[:] = [note for note in task.notes if note not in source.notes]
    task.notes.append(f"intervals: {stretches} stretches of {ahead.block} test windows each are drawn with replacement "
                      "(rule: twice the horizon; neighbouring windows share most of their steps)"
                      + ("" if stretches >= FEWEST_BLOCKS else "; so few that nothing can be claimed"))
    return ahead


def whole(source: str) -> str:
    """The file of a series of which a part was named."""
    return split_source(source)[0]


def training_part(source: str, settings: Mapping[str, Any]) -> str:
    """The source of pre-training: the training part of a long series.

    Raises:
        UsageError: another part was named, or the source holds something else.
    """
    path, part = split_source(source)
    if part not in (None, "train"):
        raise UsageError(f"Pre-training reads the training part of a series, not '{part}'.", where=source,
                         fix=f"Give {path}; validation and test are its other parts by time.")
    kind = settings.get("modality", settings.get("data.modality"))
    found = list_source(path, modality=kind, options=None).modality
    if found != "series":
        raise UsageError(f"Series alone are forecast; this source holds {found}.", where=source,
                         fix="Give a csv, tsv or parquet file with a column of time and a column of numbers a channel, "
                             "or leave --task forecast out.")
    return f"{path}:train"


def check_ahead(source: str, *, horizon: int | None, context: int | None, settings: Mapping[str, Any],
                metrics: Sequence[str], usual: Sequence[str], foreign: Mapping[str, Any]) -> dict[str, Any]:
    """Check what is asked of a tournament on forecasting.

    Args:
        source: as given.
        horizon: steps ahead, or None for the usual.
        context: steps a forecast sees, or None for the window of the data.
        settings: common ones.
        metrics: as asked for.
        usual: what they are where nothing is asked.
        foreign: options of other tournaments -> whether they were given.

    Returns:
        ``source``, ``horizon``, ``settings`` and ``metrics``, settled.
    """
    for option, (given, why) in foreign.items():
        if given:
            raise UsageError(f"{option} makes no sense with --task forecast: {why}.", where=option, fix="Leave it out.")
    for option, value in (("--horizon", horizon), ("--context", context)):
        if value is not None and value < 1:
            raise UsageError(f"{option} is at least 1 step, not {value}.", where=option)
    odd = [] if tuple(metrics) == tuple(usual) else [m for m in metrics if m not in (*READERS, "fine_tune")]
    if odd:
        raise UsageError(f"'{odd[0]}' reads labels; forecasts are read by ridge regression.", where="--metrics",
                         fix="Leave it out, or give fine_tune to train the whole network too.")
    window = settings.get("window", settings.get("data.window"))
    if context is not None and window is not None and int(window) != context:
        raise UsageError(f"The context is the window of pre-training: {context} and window={window} differ.",
                         where="--context", fix="Give one of the two.")
    return {"source": training_part(source, settings), "horizon": HORIZON if horizon is None else int(horizon),
            "settings": {**settings, **({"window": context} if context and window is None else {})},
            "metrics": ("ridge", *(m for m in metrics if m == "fine_tune"))}


def spread_over(values: Sequence[np.ndarray], seeds: int) -> np.ndarray:
    """One row a seed, (S, B), of what was computed once a seed, or once for all."""
    return np.stack([values[seed % len(values)] for seed in range(seeds)])


def row_of(arm: Arm) -> dict[str, Any]:
    """An arm as the tables show it: mean squared error (``mean``, also ``mse``) and ``mae`` with their intervals."""
    assert arm.absolute is not None
    row: dict[str, Any] = {"name": arm.name, "kind": arm.kind, "source": arm.source, "evaluator": arm.evaluator,
                           "budget": arm.budget, "seeds": arm.scores["mse"], "validation": -arm.validation,
                           "wall_s": arm.wall_s}
    for key, errors in (("mse", -arm.quality), ("mae", arm.absolute)):
        found, mean = hierarchical_interval(errors), float(np.mean(arm.scores[key]))  # stretches differ by one in size
        row |= {key: mean, f"{key}_low": max(0.0, min(found.low, mean)), f"{key}_high": max(found.high, mean)}
    return {**row, "mean": row["mse"], "low": row["mse_low"], "high": row["mse_high"]}


def about(ahead: Ahead, result: Mapping[str, Any]) -> dict[str, Any]:
    """What a result says of the task, and what it ranked by as mean squared errors, of which less is better."""
    return {"horizon": ahead.task.horizon, "context": ahead.task.context, "period": ahead.period, "block": ahead.block,
            "channels": ahead.series.names, "windows": {part: len(rows) for part, rows in ahead.task.rows.items()},
            "ranking": [(name, -value) for name, value in result["ranking"]],
            "halving": [{**row, "score": None if row["score"] is None else -row["score"]}
                        for row in result["halving"]]}
