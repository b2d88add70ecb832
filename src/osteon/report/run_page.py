"""``report.html`` of one run: what was trained, how it went, what the features look like, and how they score."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from osteon.core.errors import DataError
from osteon.core.run import RunFolder
from osteon.report.numbers import known, number, seconds, words
from osteon.report.page import Report, Verdict
from osteon.report.sections import add_artefacts, add_scores, add_training_curves, named, smooth, verdict_of
from osteon.report.svg import Series


def write_run_report(folder: Path) -> Path:
    """Read a run folder and write its ``report.html``; what is missing is left out, with a line on how to get it.

    Args:
        folder: a run folder with at least ``config.yaml``.

    Returns:
        path of the page.

    Raises:
        DataError: there is no readable ``config.yaml``, or a file of the run is damaged.
    """
    folder = Path(folder)
    run = RunFolder(folder)
    config, metrics = run.config(), last_of_each_step(run.metrics())
    result = read_json(folder / "evaluation.json")
    verdict, told, figures = verdict_of(result), summary(config, metrics), key_figures(metrics)
    missing: list[str] = []
    report = Report(f"Run {folder.resolve().name}",
                    verdict or Verdict("Not evaluated yet", told, dict(figures) if metrics else {}))
    if verdict is None:
        missing.append(f"Verdict: `osteon evaluate {folder.name} --train LABELLED --test LABELLED` compares the run "
                       "with its controls.")
    else:
        report.text("What was done", [told])
    add_scores(report, result)
    if metrics:
        if verdict is not None:
            report.table("Training at a glance", ["Measure", "Value"], figures, fold=False)
        add_curves(report, metrics)
    else:
        missing.append(f"Curves: metrics.jsonl is empty; run `osteon pretrain` into {folder.name} to go on training.")
    missing += add_artefacts(report, read_arrays(folder / "artefacts.npz"))
    add_record(report, folder, config,
               f"`osteon pretrain --config {folder.name}/config.yaml --out NEW` repeats this run.", missing)
    return report.save(folder / "report.html")


def add_record(report: Report, folder: Path, config: Mapping[str, Any], note: str, missing: list[str]) -> None:
    """What every run's page ends with: configuration, what was skipped, automatic choices, environment, what lacks.

    Args:
        report: the page.
        folder: the run folder.
        config: its settings.
        note: line under the settings.
        missing: what is not on the page and how to get it; lines are added.

    Raises:
        DataError: ``provenance.json`` is damaged.
    """
    report.config("Configuration", config, note)
    if (folder / "skipped.csv").exists():
        report.skipped(_skipped(folder / "skipped.csv"))
    else:
        missing.append("Skipped samples: no skipped.csv was left by this run.")
    provenance = read_json(folder / "provenance.json")
    notes = provenance.pop("notes", None)
    if isinstance(notes, list) and notes:
        report.text("Chosen automatically", [str(n) for n in notes])
    if provenance:
        report.environment(provenance)
    else:
        missing.append("Environment: no provenance.json was left by this run.")
    if missing:
        report.text("Not on this page", missing)


def summary(config: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> str:
    """One or two sentences: which backbone learned by which objective from what, and how the loss went."""
    backbone, objective = (_name(config.get(key)) for key in ("backbone", "objective"))
    source = _name(config.get("source"))
    first = f"{backbone or 'A backbone'} was pre-trained"
    first += (f" with {objective}" if objective else "") + (f" on {source}" if source else "")
    steps = [int(m["step"]) for m in metrics if known(m.get("step"))]
    first += f" for {max(steps):,} steps." if steps else "."
    losses = [float(m["loss"]) for m in metrics if known(m.get("loss"))]
    if len(losses) < 2:
        return first
    tenth = max(1, len(losses) // 10)
    start, end = float(np.mean(losses[:tenth])), float(np.mean(losses[-tenth:]))
    return first + f" The loss went from {number(start)} to {number(end)}."


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Arrays of an ``artefacts.npz`` (never pickled objects); empty when there is no such file."""
    if not path.exists():
        return {}
    try:
        # opened here so that a damaged file is closed too
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"The arrays cannot be read: {error}", where=str(path),
                        fix="Delete the file and run `osteon pretrain` on the folder again.") from error


def _name(value: Any) -> str:
    """A name from a plain value or from a mapping that holds one."""
    if isinstance(value, Mapping):
        value = value.get("name", "")
    return str(value) if value not in (None, "") else ""


def last_of_each_step(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows in the order of their steps; of a step written twice (a resumed run) the later one."""
    by_step = {float(r["step"]): r for r in rows if known(r.get("step"))}
    return [by_step[step] for step in sorted(by_step)]


def key_figures(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What one wants to know of a training at a glance: (name, value) pairs."""
    rows = [("Steps", number(metrics[-1]["step"]))] if metrics else []
    for key, name in (("loss", "Last loss"), ("rank", "Last effective rank"),
                      ("feature_std", "Last feature deviation")):
        values = [m[key] for m in metrics if known(m.get(key))]
        if values:
            rows.append((name, number(values[-1])))
    speeds = [float(m["images_per_s"]) for m in metrics if known(m.get("images_per_s"))]
    if speeds:
        rows.append(("Images a second", number(round(float(np.median(speeds)), 1))))
    times = [float(m["wall_s"]) for m in metrics if known(m.get("wall_s"))]
    if times:
        rows.append(("Time", seconds(times[-1])))
    bad = sum("loss" in m and not known(m["loss"]) for m in metrics)
    if bad:
        rows.append(("Steps with a NaN or infinite loss", number(bad)))
    return rows


def add_curves(report: Report, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Loss and its terms, effective rank and standard deviation, learning rate."""
    steps = [float(m["step"]) for m in metrics]

    def line(key: str) -> Series:
        values = [float(m[key]) if known(m.get(key)) else float("nan") for m in metrics]
        return smooth(steps, values)[0]

    add_training_curves(report, {"loss": {key: [m.get(key) for m in metrics] for key in ("step", "loss", "rank")}})
    parts = sorted({key for m in metrics for key in m if key.startswith("loss/")})
    terms = [(key.removeprefix("loss/"), named(key.removeprefix("loss/"), line(key))) for key in parts]
    others = [(title, named(title, line(key))) for key, title in (
        ("feature_std", "Feature standard deviation"), ("lr", "Learning rate"), ("images_per_s", "Images a second"))]
    terms, others = [t for t in terms if t[1].x], [o for o in others if o[1].x]
    if len(terms) > 1:
        report.panels("Terms of the loss", [(words(name), s) for name, s in terms], "step", "value")
    if others:
        report.panels("Monitors", others, "step", "value")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one when the file is absent."""
    if not path.exists():
        return {}
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"The file is not valid JSON: {error}", where=str(path),
                        fix="Delete it and make it again.") from error
    return loaded if isinstance(loaded, dict) else {}


def _skipped(path: Path) -> list[tuple[str, str]]:
    """Rows (id, reason) of ``skipped.csv`` without its heading."""
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        rows = [(r[0], r[1] if len(r) > 1 else "") for r in csv.reader(file) if r]
    return rows[1:] if rows and rows[0][0] == "id" else rows
