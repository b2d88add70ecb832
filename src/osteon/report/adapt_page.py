"""``report.html`` of an adapted run: how it scores, what a step costs beside full fine-tuning, how training went."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from osteon.core.run import RunFolder
from osteon.report.numbers import bounds, interval, known, number, percent, score, size, words
from osteon.report.page import Report, Verdict
from osteon.report.run_page import add_curves, add_record, key_figures, last_of_each_step, read_json
from osteon.report.svg import Arm

#: costs: key -> (what it is, how it is written)
_COSTS: dict[str, tuple[str, Callable[[float], str]]] = {
    "trainable": ("Numbers that train", number), "saved_bytes": ("Kept for the backward pass", size),
    "optimizer_bytes": ("State of the optimiser", size),
    "step_seconds": ("Time of a step", lambda s: f"{1000 * s:.1f} ms"), "stored": ("Stored", size)}
#: size of a stored weight, in bytes
_FLOAT = 4
#: metrics of predicted numbers, which are no fractions; of the errors less is better
_PLAIN, _ERRORS = frozenset({"r2", "mae", "rmse"}), frozenset({"mae", "rmse"})


def write_adapt_report(folder: Path) -> Path:
    """Read an adapted run's folder and write its ``report.html``; what is missing is left out, with a line on why.

    Args:
        folder: a run folder with ``config.yaml`` and ``adaptation.json``.

    Returns:
        Path of the page.

    Raises:
        DataError: a file of the run is damaged.
    """
    folder = Path(folder)
    run = RunFolder(folder)
    config, metrics, found = run.config(), last_of_each_step(run.metrics()), read_json(folder / "adaptation.json")
    name, costs = str(found.get("adapter", "?")), dict(found.get("costs") or {})
    report = Report(f"Adapted run {folder.resolve().name}", _verdict(name, found, costs))
    missing: list[str] = []
    _scores(report, name, found)
    if costs:
        _table(report, name, found, costs)
    else:
        missing.append("Costs of a step: they are measured where one process trains; several did.")
    if metrics:
        report.table("Training at a glance", ["Measure", "Value"], key_figures(metrics), fold=False)
        add_curves(report, metrics)
    else:
        missing.append(f"Curves: metrics.jsonl is empty; run `osteon adapt` into {folder.name} again.")
    others = [f"`--adapter {other}`" for other in ("linear", "full") if other != name]
    missing.append(f"Scores of {' and '.join(others)}, the controls below and above: the same command with another "
                   "`--out` makes them, on the same labels and validation samples.")
    add_record(report, folder, config, "`osteon adapt` with these settings and another `--out` repeats this run.",
               missing)
    return report.save(folder / "report.html")


def _verdict(name: str, found: Mapping[str, Any], costs: Mapping[str, Any]) -> Verdict:
    """What was done, the main scores and the size of the change, on top of the page."""
    scores = dict((found.get("scores") or {}).get("intervals") or {})
    numbers: dict[str, Any] = {
        words(metric): (score(s["value"], in_percent=metric not in _PLAIN),
                        bounds(s["low"], s["high"], in_percent=metric not in _PLAIN))
        for metric, s in scores.items() if known(s.get("value"))}
    own, full = costs.get(name), costs.get("full")
    if own and full and name != "full":
        numbers["Numbers that train"] = (number(own["trainable"]), f"{_share(own, full, 'trainable')} of full "
                                         "fine-tuning")
    if known(found.get("delta_bytes")):
        numbers["The change, stored"] = size(found["delta_bytes"])
    sentence = (f"{found.get('base', 'A backbone')} was adapted by {name} on {number(found.get('labels'))} labelled "
                f"samples in {number(found.get('steps'))} steps and scored on {number(found.get('val_samples'))} "
                "validation samples, which trained and chose nothing.")
    leaks = [str(note) for note in found.get("notes") or () if str(note).startswith("LEAK")]
    return Verdict("Adapted", sentence, numbers, " ".join(["Intervals are 95 %, over validation samples.", *leaks]))


def _share(own: Mapping[str, Any], full: Mapping[str, Any], key: str) -> str:
    """A cost as a share of full fine-tuning's, three figures."""
    return f"{100 * own[key] / full[key]:.3g} %" if known(full.get(key)) and full[key] else "–"


def _scores(report: Report, name: str, found: Mapping[str, Any]) -> None:
    """A leaderboard with the control that reads no samples, every metric, and every class."""
    scores = found.get("scores") or {}
    intervals, controls = dict(scores.get("intervals") or {}), dict(found.get("controls") or {})
    for metric, s in intervals.items():
        if metric in _ERRORS:
            continue
        label = f"{number(found.get('labels'))} labels"
        arms = [_arm(name, "recipe", metric, s, label),
                *(_arm(other, "control", metric, c[metric], "reads no samples") for other, c in controls.items()
                  if metric in c)]
        report.leaderboard(words(metric), arms, metric=words(metric), in_percent=metric not in _PLAIN)
    values = dict(scores.get("values") or {})
    none = {"low": None, "high": None}
    rows = [[words(metric), interval(v, *(intervals.get(metric, none)[end] for end in ("low", "high")),
                                     in_percent=metric not in _PLAIN)] for metric, v in values.items() if known(v)]
    report.table("All scores", ["Metric", "Value"], rows, fold=False)
    recall, support = values.get("per_class_recall") or (), values.get("per_class_support") or ()
    if recall:
        classes: Sequence[Any] = found.get("class_names") or range(len(recall))
        report.table("Every class", ["Class", "Recall", "Validation samples"], [
            [str(c), percent(r), n] for c, r, n in zip(classes, recall, support, strict=False)])


def _arm(name: str, kind: str, metric: str, s: Mapping[str, float], note: str) -> Arm:
    """One line of a leaderboard; scores that may be near 0 are as long as others."""
    ends = [s[key] for key in ("value", "low", "high")]
    value, low, high = (round(e, 3) if metric in _PLAIN and known(e) else e for e in ends)
    return Arm(name, kind, value, low, high, note)


def _table(report: Report, name: str, found: Mapping[str, Any], costs: Mapping[str, Any]) -> None:
    """What one step costs, and what is stored, beside full fine-tuning."""
    whole = {"stored": _FLOAT * costs["full"]["trainable"]}
    own, full = {"stored": found.get("delta_bytes"), **costs[name]}, {**whole, **costs["full"]}
    alone = name == "full"  # then there is nothing to stand beside
    rows = [[what, form(own[key])] if alone else [what, form(own[key]), form(full[key]), _share(own, full, key)]
            for key, (what, form) in _COSTS.items() if known(own[key])]
    report.table("What it costs", ["Measure", name] if alone else ["Measure", name, "full fine-tuning", "Share"], rows,
                 f"One step at a batch of {number(found.get('measured_batch'))}, measured on this machine one after "
                 "the other, the augmentation included; weights are not counted as kept. Stored, full fine-tuning is "
                 "taken as four bytes a number.", fold=False)
