"""The page of a tournament: the verdict, the leaderboard, accuracy against compute, and a section for every arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from osteon.report.numbers import (
    bounds,
    is_error,
    is_fraction,
    known,
    number,
    percent,
    points,
    score,
    seconds,
    signed,
    words,
)
from osteon.report.page import Cell, Report, Verdict
from osteon.report.sections import add_scores, add_training_curves, budget_head, budget_words, verdict_of
from osteon.report.svg import Series


def write_tournament_report(result: Mapping[str, Any], out: Path) -> Path:
    """Write the page of a tournament.

    Args:
        result: what :func:`osteon.compare` returns, with ``curves`` (arm -> step, loss, rank) and ``environment``.
        out: the file to write.

    Returns:
        path of the page.
    """
    stated = dict(result["verdict"])
    verdict = verdict_of({**result, "verdict": {"answer": stated["answer"], "sentence": stated["paragraph"],
                                                "numbers": stated["numbers"]}})
    report = Report("Does pre-training pay here?", verdict or Verdict(stated["answer"], stated["paragraph"]))
    fraction = is_fraction(str(result["metric"]))
    _agreement(report, result["agreement"])
    add_scores(report, result)
    _against_compute(report, result, fraction)
    _comparisons(report, result["comparisons"], fraction)
    _crossing(report, stated.get("crossing"), fraction)
    _costs(report, result["costs"], result["search_cost"], str(result["budget"]))
    _halving(report, result["halving"], fraction)
    for row in result["costs"]:
        _arm(report, row, result, fraction)
    add_training_curves(report, result.get("curves") or {})
    if result["crashed"]:
        report.table("Arms that failed", ["Job", "Error", "What it said"],
                     [[c["arm"], c["type"], c["what"]] for c in result["crashed"]],
                     "They did not stop the others, and stand in no table.", fold=False, stack=True)
    report.text("Notes", [str(n) for n in result["notes"]])
    report.config("As asked for", result["asked"])
    if result.get("environment"):
        report.environment(result["environment"])
    return report.save(out)


def _agreement(report: Report, rows: Sequence[Mapping[str, Any]]) -> None:
    """How far the measures rank the arms alike: shown before any of them names a best."""
    note = ("Rank correlation over the arms of the final, on the validation part: 1 means that two measures order the "
            "arms alike, 0 that one says nothing about the other. Where they disagree, the best features to read are "
            "not the best weights to fine-tune.")
    if rows:
        report.table("Do the measures agree?", ["Measures", "Rank correlation", "Arms"],
                     [[f"{_measure(r['a'])} and {_measure(r['b'])}", _signed(r["spearman"]), r["arms"]] for r in rows],
                     note, fold=False)
    else:
        report.text("Do the measures agree?", "Fewer than three arms reached the final: too few to say.", note=note)


def _measure(name: str) -> str:
    return "RankMe" if name == "rankme" else words(name)


def _signed(value: Any) -> str:
    return f"{float(value):+.2f}" if known(value) else "n/a"


def _best(result: Mapping[str, Any], source: str, budget: Any) -> Mapping[str, Any] | None:
    """An arm at one budget by the evaluation that did best on the validation part."""
    here = [a for a in result["arms"] if a["source"] == source and str(a["budget"]) == str(budget)]
    sign = -1 if is_error(str(result["metric"])) else 1
    return max(here, key=lambda a: sign * a["validation"]) if here else None


def _against_compute(report: Report, result: Mapping[str, Any], fraction: bool) -> None:
    """Accuracy against what every arm cost; controls without training stand at the left."""
    budget = result["budgets"][-1]
    series = []
    for row in result["costs"]:
        arm = _best(result, row["name"], budget)
        if arm is not None:
            series.append(Series(row["name"], [row["wall_s"] / 60], [arm["mean"]], [arm["low"]], [arm["high"]],
                                 row["kind"] == "control"))
    if series:
        note = (f"With {budget_words(budget)}: the mean over seeds, against the minutes an arm took on a seed, "
                "adaptation included. Circles are controls. Arms were given the same budget of "
                f"{result['budget']}; the table under Compute has operations, steps and processor time.")
        error = is_error(str(result["metric"]))
        title = f"{'Accuracy' if fraction else 'Error' if error else 'Quality'} against compute"
        report.curves(title, series, "minutes a seed", words(str(result["metric"])), False, note,
                      in_percent=fraction)


def _comparisons(report: Report, rows: Sequence[Mapping[str, Any]], fraction: bool) -> None:
    shown = [[Cell(r["source"], tag="tie" if r["tie"] else "", look="tie" if r["tie"] else ""),
              budget_words(r["budget"]), r["best"],
              Cell(points(r["mean"]) if fraction else signed(r["mean"]),
                   bounds(r["low"], r["high"], in_percent=fraction)), f"{r['p']:.3f}"] for r in rows]
    if shown:
        head = budget_head(r["budget"] for r in rows)
        report.table("Against the best", ["Arm", head, "Best on validation", "Lead of the best", "p"], shown,
                     "Paired over test samples and seeds, p after Holm's correction over the arms of a label budget. "
                     "A tie is an arm that 0.05 does not tell from the best.", fold=len(shown) > 12, stack=True)


def _crossing(report: Report, caught: Mapping[str, Any] | None, fraction: bool) -> None:
    if caught is None:
        return
    rows = [[budget_words(r["budget"]), Cell(points(r["mean"]) if fraction else signed(r["mean"]),
                                             bounds(r["low"], r["high"], in_percent=fraction)),
             f"{r['p']:.3f}", "ahead" if r["ahead"] else "caught up", r["pretrained"], r["scratch"]]
            for r in caught["budgets"]]
    head = budget_head(r["budget"] for r in caught["budgets"])
    report.table("Against training from scratch", [head, "Lead of pre-training", "p", "Pre-training is",
                                                   "Pre-trained", "From scratch"], rows,
                 "Both were given the same compute. Pre-training is ahead where its lead is positive with p below "
                 "0.05, after Holm's correction over the label budgets.", fold=False, stack=True)


def _costs(report: Report, rows: Sequence[Mapping[str, Any]], search: Mapping[str, Any], budget: str) -> None:
    shown = [[Cell(r["name"], tag="control" if r["kind"] == "control" else ""), r["steps"], _flop(r["flop"]),
              seconds(r["wall_s"]), seconds(r["cpu_s"]), r["flag"] or "within 5 %"] for r in rows]
    spent = ("" if not search["flop"] else f" Halving spent {_flop(search['flop'])} FLOP and "
             f"{seconds(search['wall_s'])} more on trials that did not reach the final.")
    report.table("Compute", ["Arm", "Steps", "FLOP", "Time", "Processor time", "Equal?"], shown,
                 f"Each arm on a seed, adaptation included; every one was given {budget}. Other controls are not "
                 f"trained.{spent}", fold=False, stack=True)


def _halving(report: Report, rows: Sequence[Mapping[str, Any]], fraction: bool) -> None:
    if rows:
        report.table("Halving", ["Trial", "Rung", "Options", "Step", "Validation", "Goes on"],
                     [[r["trial"], r["rung"], _options(r["options"]), r["step"],
                       score(r["score"], in_percent=fraction), "yes" if r["kept"] else "no"] for r in rows],
                     "On the first seed, by the validation part; the test part plays no role.", stack=True)


def _flop(value: Any) -> str:
    return f"{float(value):.2e}" if known(value) else "n/a"


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in options.items()) or "–"


def _arm(report: Report, row: Mapping[str, Any], result: Mapping[str, Any], fraction: bool) -> None:
    """All about one arm, as a section that the contents lead to."""
    arms = [a for a in result["arms"] if a["source"] == row["name"]]
    scores = [[f"{words(a['evaluator'])}, {budget_words(a['budget'])}",
               Cell(score(a["mean"], in_percent=fraction), bounds(a["low"], a["high"], in_percent=fraction)),
               ", ".join(score(s, in_percent=fraction) for s in a["seeds"]),
               score(a["validation"], in_percent=fraction)] for a in arms]
    total = row["shares"].get("total", 0)
    shares = ", ".join(f"{name} {percent(row['shares'][name] / total, 0)}"
                       for name in ("forward", "backward", "views", "teachers")) if total else ""
    about = [f"{row['network']} with {number(row['parameters'])} parameters, batch {row['batch_size']}",
             f"{row['pretraining']:,} steps of pre-training" if row["pretraining"] else "no pre-training",
             f"searched options: {_options(row['options'])}" if row["options"] else "",
             f"operations of a step: {shares}" if shares else ""]
    report.table(row["name"], ["Evaluation", words(str(result["metric"])), "Seeds", "Validation"], scores,
                 ". ".join(a for a in about if a) + ".", fold=False, stack=True)
