"""``osteon forecast``: how well a frozen backbone forecasts a series, beside what costs nothing and a linear map."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from osteon.core.atomic import write_text
from osteon.core.errors import UsageError
from osteon.core.plain import plain
from osteon.data.series import LongSeries, open_long
from osteon.parts.forecast import block_means, cut, detect_period, last_value, origins, seasonal_naive
from osteon.parts.intervals import bootstrap_interval
from osteon.parts.types import DataSpec
from osteon.report.forecast_page import write_forecast_report
from osteon.verbs._alone import alone_in
from osteon.verbs._forecast_arms import Direct, ForecastArm, Task, naive_arm, reader, ridge_arm
from osteon.verbs._model import Trained, load_head, load_trained
from osteon.verbs._networks import fresh
from osteon.verbs._verdict import judge_errors
from osteon.verbs.pretrain import speaker

#: Period of the seasonal forecast where nothing is asked: a day of hours.
DAY = 24


@alone_in("out", "run")
def forecast(run: str | Path, *, source: str | Path, horizon: int = 96, context: int | None = None,
             period: int | str = DAY, spans: int = 8, fit_windows: int = 1500, test_windows: int = 0, seeds: int = 1,
             block: int | None = None, split: str = "", out: str | Path | None = None,
             progress: bool = True) -> dict[str, Any]:
    """Forecast the test part of a long series from the frozen backbone of a run, and from its controls.

    A run whose objective forecasts by itself (``forecast``, ``next_patch``) also shows its own head.

    Errors are those of the field: values standardised by the training part, all channels, every origin of the test
    part; contexts may reach back before it, targets do not leave it. Everything that is fitted is fitted on the same
    training windows and its penalty is chosen on the validation part.

    Args:
        run: run folder of a model pre-trained on series.
        source: csv, tsv or parquet file of one long series (not a part of it).
        horizon: steps ahead.
        context: steps a forecast sees; those of the model's window, which a network cannot leave.
        period: of the seasonal forecast in steps, or ``auto``: by the autocorrelation of the training part.
        spans: the network's tokens are averaged over so many equal spans of time, one after another, for the ridge.
        fit_windows: at most so many training windows (of all channels), evenly spaced; a third as many for validation.
        test_windows: at most so many test windows, evenly spaced; 0: every one, as the field does.
        seeds: untrained networks, whose errors are averaged.
        block: neighbouring test windows that count as one sample of the bootstrap; twice the horizon when None.
        split: parts by time, see ``osteon.data.series.OPTIONS``; those of the model's data when empty.
        out: folder for ``forecast.json`` and ``forecast.html``; the run's own when None.
        progress: tell what goes on.

    Returns:
        Verdict, arms with mean squared and absolute errors and their intervals, examples, notes; JSON-ready.
    """
    say = speaker(progress)
    model = load_trained(run)
    series = open_long(source, like=_checked(model, horizon, spans, seeds), **({"split": split} if split else {}))
    task = windows_of(series, _within(model.spec, context), horizon, fit_windows, test_windows)
    season = season_of(period, series, task)
    for note in task.notes:
        say(note)
    name = str(model.meta.get("objective", {}).get("name") or model.name)
    arms = [naive_arm("last value", lambda x: last_value(x, horizon), task)]
    if season <= task.context:
        arms.append(naive_arm(f"seasonal naive ({season})", lambda x: seasonal_naive(x, horizon, season), task))
    say("linear map of the context")
    arms += [ridge_arm("linear map", "control", [], task)]
    say(f"{name}: features of {sum(map(len, task.rows.values())):,} windows")
    ours = reader(model.backbone, model.spec, series, task, spans)
    arms += [ridge_arm(f"{name} + ridge", "pretrained", [ours], task),
             ridge_arm(f"{name} and context + ridge", "pretrained", [ours], task, beside=True)]
    method = load_head(run, model)
    if hasattr(method, "forecast"):
        say(f"{name}: its own head")
        arms.append(naive_arm(f"{name} head", Direct(method, model.spec.channels == 1, horizon), task,
                              "pretrained"))
    say(f"untrained {model.backbone.name}")
    others = [reader(fresh(model.backbone, seed), model.spec, series, task, spans) for seed in range(seeds)]
    arms += [ridge_arm("untrained + ridge", "control", others, task),
             ridge_arm("untrained and context + ridge", "control", others, task, beside=True)]
    size = block or 2 * horizon
    # blocks count rows of time: with a hop between test windows, fewer of them make one
    size = max(1, round(size / max(1, int(np.diff(task.rows["test"][:2]).sum()))))
    result = {"verdict": judge(arms, size), "metric": "MSE", "horizon": horizon, "context": task.context,
              "period": season, "channels": series.names, "block": size,
              "windows": {part: len(rows) for part, rows in task.rows.items()},
              "arms": [_row(arm, size, series.names) for arm in arms], "examples": _examples(arms, task, series.names),
              "source": str(source), "run": str(run), "notes": task.notes}
    result = plain(result, finite=True)
    folder = Path(out) if out is not None else Path(run)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "forecast.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    result["report"] = str(write_forecast_report(result, folder / "forecast.html"))
    return dict(result)


def _checked(model: Trained, horizon: int, spans: int, seeds: int) -> Any:
    if model.spec.modality != "series":
        raise UsageError(f"The model was trained on {model.spec.modality}; series alone are forecast.", where="run",
                         fix="Pre-train on a series, e.g. osteon pretrain ETTh1.csv:train.")
    if horizon < 1 or spans < 1 or seeds < 1:
        raise UsageError("horizon, spans and seeds are at least 1.", where="forecast")
    return model.spec


def _within(spec: DataSpec, context: int | None) -> DataSpec:
    length = spec.extent[0]
    if context not in (None, length):
        raise UsageError(f"The model sees {length} steps; a context of {context} is not its window.", where="context",
                         fix=f"Leave it out, or pre-train with --set window={context}.")
    return spec


def windows_of(series: LongSeries, spec: DataSpec, horizon: int, fit: int = 1500, test: int = 0) -> Task:
    """Origins of every part, and the values by which errors are counted.

    Args:
        series: what is forecast.
        spec: the data of a model; its window is the context.
        horizon: steps ahead.
        fit: at most so many training windows, a third as many for validation.
        test: at most so many test windows; 0: every one.
    """
    length = spec.extent[0]
    wide = 1 if spec.traits.get("independent") else len(series.names)
    if spec.channels != wide:
        raise UsageError(f"The model takes {spec.channels} channels, the series has {len(series.names)}.",
                         where="source", fix="Pre-train with --set independent=true to forecast any number of them.")
    parts, notes = dict(series.parts), list(series.notes)
    begin, end = parts["train"]
    scale = series.values[:, begin:end]
    std = scale.std(1, keepdims=True)
    values = (series.values - scale.mean(1, keepdims=True)) / np.where(std < 1e-8, 1.0, std)
    if "val" not in parts:
        border = begin + int(0.8 * (end - begin))
        parts |= {"train": (begin, border), "val": (border, end)}
        notes.append(f"validation: the last {end - border:,} rows of the training part (rule: a fifth; there is no "
                     "part val)")
    rows = {"train": origins(parts["train"], length, horizon, fit),
            "val": origins(parts["val"], length, horizon, max(1, fit // 3)),
            "test": origins(parts["test"], length, horizon, test)}
    notes.append("forecasts: " + ", ".join(f"{len(r):,} windows of {part}" for part, r in rows.items())
                 + f", each {length} steps of context and {horizon} ahead; errors in deviations of the training part")
    return Task(values, rows, length, horizon, notes)


def season_of(asked: int | str, series: LongSeries, task: Task) -> int:
    """Period of the seasonal forecast: a number of steps, or ``auto``, by a noted rule."""
    if asked == "auto":
        begin, end = series.parts["train"]
        found = detect_period(task.values[:, begin:end], task.context)
        task.notes.append(f"period: {found} steps (rule: the highest peak of the autocorrelation of the training part)")
        return found
    if not str(asked).isdigit() or int(asked) < 1:
        raise UsageError(f"A period is a number of steps or 'auto', not '{asked}'.", where="period")
    if int(asked) > task.context:
        task.notes.append(f"period: {asked} steps are more than the context; the seasonal forecast is left out")
    return int(asked)


def judge(arms: list[ForecastArm], block: int) -> dict[str, Any]:
    """Did pre-training pay? The pre-trained arm and the control that are best on validation windows, on test windows.

    See :func:`osteon.verbs._verdict.judge_errors`.
    """
    ours, control = (min((a for a in arms if a.kind == kind), key=lambda a: a.validation)
                     for kind in ("pretrained", "control"))
    mine, theirs = (block_means(a.squared, block)[None] for a in (ours, control))
    return judge_errors(ours.name, control.name, mine, theirs,
                        (float(ours.squared.mean()), float(control.squared.mean())))


def _row(arm: ForecastArm, block: int, names: list[str]) -> dict[str, Any]:
    row: dict[str, Any] = {"name": arm.name, "kind": arm.kind, "validation": arm.validation, "penalty": arm.penalty,
                           "shared": arm.shared, "wall_s": arm.wall_s,
                           "channel_mse": dict(zip(names, arm.channel_squared.tolist(), strict=True))}
    for key, errors in (("mse", arm.squared), ("mae", arm.absolute)):
        found = bootstrap_interval(block_means(errors, block))
        mean = float(errors.mean())  # of windows: blocks differ by one in size
        row |= {key: mean, f"{key}_low": min(found.low, mean), f"{key}_high": max(found.high, mean)}
    return row


def _examples(arms: list[ForecastArm], task: Task, names: list[str], count: int = 3) -> list[dict[str, Any]]:
    """Forecasts for a picture: evenly spaced test origins, channels in turn; the last steps of the context only."""
    at = np.linspace(0, len(task.rows["test"]) - 1, count).round().astype(int)
    shown = min(task.context, 2 * task.horizon)
    known, future = cut(task.values, task.rows["test"][at], task.context, task.horizon)
    out = []
    for i, place in enumerate(at):
        channel = (len(names) - 1 - i) % len(names)
        out.append({"row": int(task.rows["test"][place]), "channel": names[channel],
                    "context": known[i, channel, -shown:].tolist(), "future": future[i, channel].tolist(),
                    "forecasts": {arm.name: arm.predict(at[i:i + 1])[0, channel].tolist() for arm in arms}})
    return out


def summary(result: Mapping[str, Any]) -> str:
    """A table for the terminal: every arm, least error first, then the verdict."""
    arms = sorted(result["arms"], key=lambda arm: arm["mse"])
    wide = max(len(arm["name"]) for arm in arms)
    lines = [f"{'':{wide}}  {'':10}  {'MSE':>23}  {'MAE':>23}"]
    for arm in arms:
        cells = [f"{arm[k]:.3f} [{arm[k + '_low']:.3f}, {arm[k + '_high']:.3f}]" for k in ("mse", "mae")]
        lines.append(f"{arm['name']:{wide}}  {arm['kind']:10}  " + "  ".join(f"{cell:>23}" for cell in cells))
    return "\n".join([*lines, "", result["verdict"]["sentence"]])
