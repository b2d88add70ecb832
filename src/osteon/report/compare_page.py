"""The page of an evaluation or a tournament: did pre-training pay, against which controls, and how sure is that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from osteon.report.numbers import known, number, plain, seconds, words
from osteon.report.page import Cell, Report
from osteon.report.sections import add_artefacts, add_scores, add_training_curves, verdict_of


def write_evaluation_report(result: dict[str, Any], out: Path, runs: list[dict[str, Any]] | None = None) -> Path:
    """Write the page of an evaluation.

    Args:
        result: ``verdict`` (answer, sentence, numbers), ``metric``, ``budgets``, ``arms`` (name, kind, evaluator,
            budget, mean, low, high, seeds; scores are fractions in [0, 1]; ``labels`` where a budget is "all"), and
            optionally ``title``, ``support``, ``curves``, ``notes``, ``config``, ``environment``, ``skipped``,
            ``artefacts``.
        out: the file to write, or a folder to write ``report.html`` into.
        runs: one flat mapping a run (name, objective, backbone, steps, wall_s, ...), shown as a table.

    Returns:
        path of the page.
    """
    out = Path(out)
    target = out if out.suffix.lower() in (".html", ".htm") else out / "report.html"
    report = Report(str(result.get("title") or "Did pre-training pay?"), verdict_of(result))
    missing: list[str] = []
    if report.verdict is None:
        missing.append("Verdict: needs at least one pre-trained arm and one control, e.g. `osteon evaluate RUN --train "
                       "LABELLED --test LABELLED`.")
    for section in (result.get("held_out") or {}).values():
        _held_out(report, section)
    add_scores(report, result)
    if not result.get("arms"):
        missing.append("Scores: none were given; `osteon evaluate RUN --train LABELLED --test LABELLED` makes them.")
    if runs:
        _runs(report, runs)
    curves = result.get("curves") or {}
    add_training_curves(report, curves)
    if not curves:
        missing.append("Training curves: they are in each run's own report.html.")
    missing += add_artefacts(report, result.get("artefacts"))
    if result.get("notes"):
        report.text("Notes", [str(n) for n in result["notes"]])
    if result.get("config"):
        report.config("Configuration", result["config"])
    report.skipped(result.get("skipped") or [])
    if result.get("environment"):
        report.environment(result["environment"])
    if missing:
        report.text("Not on this page", missing)
    return report.save(target)


def _held_out(report: Report, section: Mapping[str, Any]) -> None:
    """What a run's own task costs on test samples, beside its controls."""
    named = {"perplexity": words(section["perplexity"]), "bits_per_byte": "Bits a byte"}
    more = [key for key in named if key in section["arms"][0]]
    rows = [[Cell(a["name"], tag="control" if a["kind"] == "control" else ""),
             f"{number(a['loss'])} [{number(a['low'])}, {number(a['high'])}]", *(number(a[key]) for key in more)]
            for a in section["arms"]]
    report.table(f"Held-out samples: {section['name']}", ["", words(section["unit"]), *(named[k] for k in more)], rows,
                 fold=False, stack=True, note=f"{section['verdict']['sentence']} Less is better. {section['asked']:,} "
                 f"questions in {section['samples']:,} samples; intervals are bootstrapped over samples. "
                 + " ".join(f"{note[:1].upper()}{note[1:]}." for note in section["notes"]))


def _runs(report: Report, runs: Sequence[Mapping[str, Any]]) -> None:
    """The runs that were compared, with every plain value they have in common or alone."""
    keys = [k for k in dict.fromkeys(key for run in runs for key in run)
            if not any(isinstance(run.get(k), (Mapping, list, tuple)) for run in runs)]
    keys = sorted(keys, key=lambda k: k != "name")[:10]
    if not keys:
        return

    def cell(key: str, value: Any) -> str:
        if value is None:
            return "–"
        if key.endswith("_s") and known(value) and not key.endswith("per_s"):
            return seconds(value)
        return number(value) if known(value) and key != "seed" else plain(value)

    heads = {"wall_s": "Time", "images_per_s": "Images a second"}
    report.table("Runs", [heads.get(k, words(k.removesuffix("_s"))) for k in keys],
                 [[cell(k, run.get(k)) for k in keys] for run in runs])
