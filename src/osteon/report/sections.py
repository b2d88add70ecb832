"""Sections that the pages of a run and of an evaluation share: pictures, training curves, scores against controls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from osteon.report import numbers as form
from osteon.report.numbers import (
    bounds,
    is_error,
    is_fraction,
    known,
    leader,
    number,
    percent,
    points,
    score,
    seconds,
    signed,
    words,
)
from osteon.report.page import Cell, Report, Verdict
from osteon.report.svg import Arm, Series

#: Points a training curve is drawn with; longer ones are averaged in equal stretches.
CURVE_POINTS = 300
Arrays = Mapping[str, np.ndarray]


def smooth(x: Sequence[float], y: Sequence[float], limit: int = CURVE_POINTS) -> tuple[Series, int]:
    """A long curve as at most ``limit`` averages with a band from the smallest to the largest value of each stretch.

    Returns:
        the series (without a name) and how many values one point averages (1: nothing was averaged).
    """
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    finite = np.isfinite(xs) & np.isfinite(ys)
    xs, ys = xs[finite], ys[finite]
    if len(xs) <= limit:
        return Series("", xs.tolist(), ys.tolist()), 1
    parts = np.array_split(np.arange(len(xs)), limit)
    return Series("", [float(xs[p].mean()) for p in parts], [float(ys[p].mean()) for p in parts],
                  [float(ys[p].min()) for p in parts], [float(ys[p].max()) for p in parts]), -(-len(xs) // limit)


def named(name: str, series: Series) -> Series:
    """The same series under a name."""
    return Series(name, series.x, series.y, series.low, series.high, series.control)


def add_training_curves(report: Report, curves: Mapping[str, Mapping[str, Sequence[Any]]]) -> None:
    """Loss (one panel a run: losses of different methods do not compare) and effective rank (one chart)."""
    losses: list[Series] = []
    ranks: list[Series] = []
    width = 1
    for name, curve in curves.items():
        steps = [_float(v) for v in curve.get("step", ())]
        for key, into in (("loss", losses), ("rank", ranks)):
            values = [_float(v) for v in curve.get(key, ())]
            line, per_point = smooth(steps[: len(values)], values[: len(steps)])
            if line.x:
                into.append(named(name, line))
                width = max(width, per_point)
    averaged = f" Each point averages up to {width} values; the band spans the smallest and the largest." * (width > 1)
    if len(losses) == 1:
        report.curves("Loss", losses, "step", "loss", note=averaged.strip())
    elif losses:
        report.panels("Loss", [(s.name, s) for s in losses], "step", "loss",
                      note="Every run on its own scale: losses of different objectives do not compare." + averaged)
    if ranks:
        flat = [Series(s.name, s.x, s.y) for s in ranks] if len(ranks) > 1 else ranks
        report.curves("Effective rank of the features", flat, "step", "effective rank",
                      note="How many directions the features use. A fall towards 1 means collapse.")


def add_artefacts(report: Report, arrays: Arrays | None) -> list[str]:
    """Gallery, map and reconstructions, as far as their arrays are there; returns a line for each that is missing."""
    arrays, missing = arrays or {}, []
    if {"gallery_query", "gallery_neighbours"} <= set(arrays):
        _gallery(report, arrays)
    else:
        missing.append("Nearest neighbours: drawn when a run on more than a handful of images finishes; run "
                       "`osteon pretrain` on the same folder.")
    if "map_xy" in arrays:
        xy = arrays["map_xy"]
        labels = arrays.get("map_label", np.full(len(xy), -1))
        report.feature_map("Map of the features", xy, labels, [str(c) for c in arrays.get("class_names", ())],
                           "Every dot is an image; near dots have similar features. Labels only colour the map: they "
                           "played no part in placing the dots." if "map_label" in arrays else
                           "Every dot is an image; near dots have similar features.")
    else:
        missing.append("Map of the features: drawn when a run finishes; run `osteon pretrain` on the same folder.")
    if {"recon_input", "recon_corrupted", "recon_output"} <= set(arrays):
        report.reconstructions("Reconstructions", (arrays["recon_input"], arrays["recon_corrupted"],
                                                   arrays["recon_output"]),
                               "What the network was shown, and what it rebuilt from that.")
    else:
        missing.append("Reconstructions: only objectives that rebuild their input have them, e.g. `--objective mae`.")
    return missing


def _gallery(report: Report, arrays: Arrays) -> None:
    query, near = arrays["gallery_query"], arrays["gallery_neighbours"]
    labels = arrays.get("gallery_labels")
    first = arrays.get("gallery_query_labels")
    if first is None and labels is not None and labels.ndim == 2 and labels.shape[1] == near.shape[1] + 1:
        first, labels = labels[:, 0], labels[:, 1:]
    labelled = first is not None and labels is not None and labels.shape == near.shape[:2]
    rows = []
    for i in range(len(query)):
        captions = [str(labels[i, j]) if labelled and labels is not None else "" for j in range(near.shape[1])]
        name = str(first[i]) if first is not None else "query"
        rows.append([(query[i], name), *((near[i, j], captions[j]) for j in range(near.shape[1]))])
    note = "Left of each row: a query; then the images whose features are nearest, nearest first."
    if labelled:
        same = [caption == row[0][1] for row in rows for _, caption in row[1:]]
        note += f" {percent(sum(same) / max(1, len(same)), 0)} of the neighbours shown share the query's class"
        note += "." if all(same) else "; the others are framed and marked ≠."
    report.gallery("Nearest neighbours", rows, note, labelled=labelled)


def verdict_of(result: Mapping[str, Any]) -> Verdict | None:
    """The verdict of an evaluation, its numbers formatted after the metric they are in."""
    stated = result.get("verdict")
    if not isinstance(stated, Mapping) or not stated.get("sentence"):
        return None
    fraction = is_fraction(str(result.get("metric", "accuracy")))
    if is_error(str(result.get("metric"))):
        return Verdict(str(stated["answer"]), str(stated["sentence"]), *error_saved(stated["numbers"]))
    numbers: dict[str, Any] = {}
    rules: list[str] = []
    for key, value in dict(stated.get("numbers") or {}).items():
        if key == "budgets" and isinstance(value, (list, tuple)) and all(isinstance(v, Mapping) for v in value):
            numbers.update((f"Gain with {budget_words(r.get('budget'))}", _difference(r, fraction)) for r in value)
        elif key == "level":
            rules.append(f"Intervals hold with a confidence of {percent(value)}.")
        elif key == "margin" and fraction:
            rules.append(f"A gain below {points(value).lstrip('+')} would be of no practical use.")
        elif key not in ("unit", "metric"):
            numbers[words(key)] = _key_number(str(key), value, fraction)
    return Verdict(str(stated.get("answer", "cannot tell")), str(stated["sentence"]), numbers, " ".join(rules))


def error_saved(numbers: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The numbers of a verdict on forecasts, and the rules they follow."""
    mean, low, high = (f"{100 * numbers[key]:+.1f}" for key in ("mean", "low", "high"))
    shown = {"Error saved": (f"{mean} %", f"[{low}, {high}] {numbers['pretrained']} against {numbers['control']}")}
    return shown, (f"Intervals hold with a confidence of {percent(numbers['level'])}. Saving less than "
                   f"{percent(numbers['margin'])} of the error would be of no practical use.")


def _difference(row: Mapping[str, Any], fraction: bool) -> tuple[str, str]:
    """The best recipe against the best control at one budget: the difference, its interval, and who was compared."""
    low, high = _float(row.get("low")), _float(row.get("high"))
    sign = "" if not (known(low) and known(high)) else \
        f"[{100 * low:+.1f}, {100 * high:+.1f}] " if fraction else f"[{signed(low)}, {signed(high)}] "
    sides = [", ".join((first, *(words(w).lower() if w != "knn" else "k-NN" for w in rest)))
             for first, *rest in (str(row.get(key, "?")).split(" + ") for key in ("pretrained", "control"))]
    mean = row.get("mean")
    return (points(mean) if fraction else signed(mean)), f"{sign}{sides[0]} against {sides[1]}"


def _key_number(key: str, value: Any, fraction: bool) -> Any:
    """One of the verdict's numbers: an arm (name and score), an interval, a difference, a time or plain text."""
    if isinstance(value, Mapping):
        small = " ".join(v for v in (bounds(value.get("low"), value.get("high"), in_percent=fraction),
                                     str(value.get("name", ""))) if v)
        difference = any(w in key for w in ("gain", "difference", "delta", "margin"))
        mean = value.get("mean", value.get("value"))
        return (points(mean) if difference and fraction else score(mean, in_percent=fraction)), small
    if isinstance(value, (list, tuple)) and len(value) == 3 and all(known(v) for v in value):
        return score(value[0], in_percent=fraction), bounds(value[1], value[2], in_percent=fraction)
    if isinstance(value, float) and known(value):
        if key.endswith(("_s", "seconds")):
            return seconds(value)
        if fraction and any(w in key for w in ("gain", "difference", "delta", "margin")):
            return points(value)
        return percent(value) if fraction and abs(value) <= 1 else number(value)
    return value


def add_scores(report: Report, result: Mapping[str, Any]) -> None:
    """Everything about the scores: at a glance, a leaderboard a budget, the label-budget curve, all numbers."""
    arms = [a for a in result.get("arms") or () if isinstance(a, Mapping)]
    if not arms:
        return
    metric = str(result.get("metric", "accuracy"))
    arms = [_three_decimals(a) for a in arms] if metric in ("R2", "MSE") else arms
    every, arms, note = arms, *chosen(arms, lowest=is_error(metric))
    fraction = is_fraction(metric)
    budgets = list(dict.fromkeys([*(result.get("budgets") or ()), *(a.get("budget") for a in arms)]))
    budgets = [b for b in budgets if any(str(a.get("budget")) == str(b) for a in arms)]
    budgets = [b for i, b in enumerate(budgets) if str(b) not in {str(c) for c in budgets[:i]}]
    _glance(report, arms, budgets, metric, fraction, note)
    if len(budgets) > 1:
        _budget_curves(report, arms, budgets, metric, fraction)
    rule = ("A dot is the mean, its bar the interval; the shade is the interval of the best. Overlapping intervals are "
            "a tie.")
    for i, budget in enumerate(budgets):
        here = [_arm(a) for a in arms if str(a.get("budget")) == str(budget)]
        if len(budgets) > 1 and i == 0:
            report.text("Leaderboards", [rule])
        title = budget_words(budget) if len(budgets) > 1 else f"Leaderboard, {budget_words(budget)}"
        report.leaderboard(title, here, "" if len(budgets) > 1 else rule, metric=words(metric), in_percent=fraction,
                           sub=len(budgets) > 1, lowest=is_error(metric))
    _all_scores(report, every, metric, fraction)
    _support(report, result.get("support") or {})
    _target(report, result.get("target") or {})


def _three_decimals(arm: Mapping[str, Any]) -> Mapping[str, Any]:
    """An arm whose scores, which may be near 0, are as long as others'."""
    return {**arm, **{k: round(float(arm[k]), 3) for k in ("mean", "low", "high") if known(arm.get(k))}}


def chosen(arms: Sequence[Mapping[str, Any]], *, lowest: bool = False) -> tuple[list[Mapping[str, Any]], str]:
    """One arm a source and budget, where several evaluations of it were tried and scored on held-out samples.

    Choosing on held-out training samples keeps the choice fair; without those scores every arm stays.

    Returns:
        the arms, named after their source, and a line that says how they were chosen (or nothing).
    """
    named_arms = [{**a, "name": a.get("source") or a.get("name", "?")} for a in arms]
    best: dict[tuple[str, bool, str], dict[str, Any]] = {}
    sign = -1 if lowest else 1
    for a in named_arms:
        key = (str(a["name"]), is_control(a), str(a.get("budget")))
        if key not in best or sign * _float(a.get("validation")) > sign * _float(best[key].get("validation")):
            best[key] = a
    if len(best) == len(named_arms) or not all(known(a.get("validation")) for a in arms):
        return list(named_arms), ""
    return ([{**a, "how": a.get("evaluator", ""), "evaluator": ""} for a in best.values()],
            "Each by the evaluation that did best on held-out training samples; every one is under All scores. ")


def budget_words(budget: Any) -> str:
    """A label budget in words: ``100`` -> ``"100 labels"``."""
    if str(budget).lower() == "all":
        return "all labels"
    return f"{int(budget):,} labels" if str(budget).isdigit() else str(budget)


def budget_head(budgets: Iterable[Any]) -> str:
    """What a column of budgets is called: of labels, or of a forecast."""
    return "Labels" if all(str(b).lower() == "all" or str(b).isdigit() for b in budgets) else "Forecast"


def is_control(arm: Mapping[str, Any]) -> bool:
    """Whether an arm is there to compare with."""
    return str(arm.get("kind", "")) == "control"


def _arm(arm: Mapping[str, Any]) -> Arm:
    seeds = arm.get("seeds")
    count = len(seeds) if isinstance(seeds, (list, tuple)) else seeds if isinstance(seeds, int) else 0
    notes = [words(arm.get("how") or arm.get("evaluator") or ""),
             f"{count} seed{'s' if count != 1 else ''}" if count else ""]
    return Arm(str(arm.get("name", "?")), "control" if is_control(arm) else "recipe", _float(arm.get("mean")),
               arm.get("low"), arm.get("high"), ", ".join(n for n in notes if n))


def _glance(report: Report, arms: Sequence[Mapping[str, Any]], budgets: Sequence[Any], metric: str,
            fraction: bool, note: str) -> None:
    """Arms by budgets, the best of each column bold, ties with it marked; recipes first, each by its last score."""
    table: dict[tuple[str, str, bool], dict[str, Mapping[str, Any]]] = {}
    for a in arms:
        table.setdefault((str(a.get("name", "?")), str(a.get("evaluator") or ""), is_control(a)), {})[
            str(a.get("budget"))] = a
    last = str(budgets[-1])
    rank = {key: _float(row.get(last, {}).get("mean")) for key, row in table.items()}
    lowest = is_error(metric)
    sign = 1 if lowest else -1
    order = sorted(table, key=lambda k: (k[2], sign * rank[k] if known(rank[k]) else float("inf")))
    best = {}
    for b in budgets:
        column = [table[k].get(str(b), {}) for k in order]
        first = leader([c.get("mean") for c in column], lowest=lowest)
        best[str(b)] = column[first] if first is not None else {}
    rows: list[list[Any]] = []
    for key in order:
        row: list[Any] = [Cell(key[0], words(key[1]), tag="control" if key[2] else "")]
        for b in budgets:
            a, top = table[key].get(str(b), {}), best[str(b)]
            if not a:
                row.append(Cell("–"))
                continue
            tie = a is not top and known(a.get("mean")) and _tied(top, a)
            row.append(Cell(score(a.get("mean"), in_percent=fraction),
                            bounds(a.get("low"), a.get("high"), in_percent=fraction) + (" tie" if tie else ""),
                            words(a.get("how") or ""), strong=a is top))
        rows.append(row)
    report.table("At a glance", [words(metric), *(budget_words(b) for b in budgets)], rows, fold=False, stack=True,
                 note=note + f"Bold: the {'lowest' if lowest else 'highest'} mean of the column; tie: its interval "
                      "overlaps the best one's. Intervals in brackets.")


def _tied(top: Mapping[str, Any], arm: Mapping[str, Any]) -> bool:
    return form.tied(top.get("low"), top.get("high"), arm.get("low"), arm.get("high"))


def _budget_curves(report: Report, arms: Sequence[Mapping[str, Any]], budgets: Sequence[Any], metric: str,
                   fraction: bool) -> None:
    """Score against the number of labels, one chart an evaluator; controls dashed, also those scored their own way."""
    place = budget_places(budgets, arms)
    ticks = [(place[str(b)], "all" if str(b).lower() == "all" else f"{int(b):,}" if str(b).isdigit() else str(b))
             for b in budgets]
    stated = any(str(a.get("budget")).lower() == "all" and known(a.get("labels")) for a in arms)
    note = "Bands are intervals. Controls are dashed." + (
        "" if stated or "all" not in place else " “all” stands one step further on, not at its number of labels.")
    shared = list(dict.fromkeys(str(a.get("evaluator") or "") for a in arms if not is_control(a))) or [""]
    for i, evaluator in enumerate(shared):
        lines: dict[tuple[str, str, bool], list[Mapping[str, Any]]] = {}
        for a in arms:
            own = str(a.get("evaluator") or "")
            if own == evaluator or (is_control(a) and own not in shared):
                lines.setdefault((str(a.get("name", "?")), own, is_control(a)), []).append(a)
        series = []
        for (name, _, control), row in sorted(lines.items(), key=lambda item: item[0][2]):
            row = sorted(row, key=lambda a: place[str(a.get("budget"))])
            low = [_float(a.get("low")) for a in row]
            high = [_float(a.get("high")) for a in row]
            some = any(map(known, low)) and any(map(known, high))
            series.append(Series(name, [place[str(a.get("budget"))] for a in row], [_float(a.get("mean")) for a in row],
                                 low if some else None, high if some else None, control))
        if len(shared) > 1 and i == 0:
            report.text("More labels", [note])
        report.curves(words(evaluator) if len(shared) > 1 else "More labels", series, "labels (log scale)",
                      words(metric), True, note if len(shared) == 1 else "",
                      in_percent=fraction, x_ticks=ticks, sub=len(shared) > 1)


def budget_places(budgets: Sequence[Any], arms: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Where each budget stands on the label axis: at its number, "all" at the stated number of labels or a step on."""
    numeric = [float(b) for b in budgets if known(_float(b)) and _float(b) > 0]
    top = max(numeric, default=1.0)
    ratio = max(2.0, top / sorted(numeric)[-2]) if len(numeric) > 1 else 10.0
    place = {}
    for b in budgets:
        if known(_float(b)) and _float(b) > 0:
            place[str(b)] = float(b)
            continue
        stated = [_float(a.get("labels")) for a in arms if str(a.get("budget")) == str(b) and known(a.get("labels"))]
        place[str(b)] = max(stated) if stated else top * ratio
    return place


def _all_scores(report: Report, arms: Sequence[Mapping[str, Any]], metric: str, fraction: bool) -> None:
    more = [key for key in ("macro_f1", "auroc", "mae", "rmse", "wall_s")
            if any(known(a.get(key)) for a in arms) and key != metric]
    heads = {"macro_f1": "Macro-F1", "auroc": "AUROC", "mae": "MAE", "rmse": "RMSE", "wall_s": "Time"}
    rows = []
    for a in arms:
        seeds = a.get("seeds")
        count = str(len(seeds)) if isinstance(seeds, (list, tuple)) else str(seeds or "–")
        values = [seconds(a.get(k)) if k == "wall_s" else percent(a.get(k)) if f"{k}_low" not in a else
                  Cell(number(a.get(k)), bounds(a[f"{k}_low"], a[f"{k}_high"], in_percent=False)) for k in more]
        rows.append([Cell(str(a.get("source") or a.get("name", "?")), tag="control" if is_control(a) else ""),
                     words(a.get("evaluator") or "–"), budget_words(a.get("budget")),
                     Cell(score(a.get("mean"), in_percent=fraction),
                          bounds(a.get("low"), a.get("high"), in_percent=fraction)),
                     *values, count])
    given = budget_head(a.get("budget") for a in arms)
    report.table("All scores", ["Arm", "Evaluation", given, words(metric), *(heads[k] for k in more), "Seeds"], rows,
                 fold=True)


def _support(report: Report, support: Mapping[str, Any]) -> None:
    if support:
        total = sum(int(v) for v in support.values() if known(v))
        report.table("Test samples", ["Class", "Samples", "Share"],
                     [[str(k), int(v), percent(int(v) / total if total else None)] for k, v in support.items()],
                     f"{total:,} samples of {len(support):,} classes; the rarest has {min(support.values()):,}.",
                     fold=True)


def _target(report: Report, spread: Mapping[str, Any]) -> None:
    """What the numbers were that had to be predicted."""
    if spread:
        report.table("Targets of the test samples", [words(k) for k in spread], [[number(v) for v in spread.values()]],
                     "MAE and RMSE are in this unit. R2 is one less the mean squared error over the variance here: 1 "
                     "is perfect, 0 is what always naming the mean reaches, and below that is worse.", fold=True)


def _float(value: Any) -> float:
    """A number, or NaN for anything else."""
    try:
        return float(value) if value is not None and not isinstance(value, bool) else float("nan")
    except (TypeError, ValueError):
        return float("nan")
