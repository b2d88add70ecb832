"""``osteon compare``: recipes against each other and against honest controls, at equal compute, on your own data."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from osteon.core.atomic import write_text
from osteon.core.plain import plain
from osteon.core.provenance import collect
from osteon.core.run import RunFolder
from osteon.parts.forecast import MSE
from osteon.recipes import Recipe
from osteon.report.numbers import seconds
from osteon.report.sections import budget_words
from osteon.report.tournament_page import write_tournament_report
from osteon.verbs._arms import Arm
from osteon.verbs._labelled import spread_of
from osteon.verbs._tournament import Entrant, Tournament
from osteon.verbs._tournament_ahead import NOTES, Ahead, about, row_of
from osteon.verbs._tournament_engine import make_engine
from osteon.verbs._tournament_final import against_best, agreement, conclude, ranking
from osteon.verbs._tournament_jobs import ground
from osteon.verbs._tournament_plan import METRICS, check_wish, make_plan
from osteon.verbs.evaluate import _row, _support, summary
from osteon.verbs.forecast import summary as errors

__all__ = ["Recipe", "compare", "table"]


def compare(source: str | Path, *, train: str | Path | None = None, test: str | Path | None = None,
            recipes: str | Path | Sequence[str | Recipe] = "auto", budget: str = "2000steps", seeds: int = 3,
            out: str | Path, metrics: Sequence[str] = METRICS,
            label_budget: Sequence[int | str] = ("all",), public: Sequence[str] = (), control: Sequence[str] = (),
            settings: Mapping[str, Any] | None = None, trials: int = 3, finalists: int = 6, engine: str = "local",
            workers: int | None = None, leaks: str = "error", task: str = "auto", target: str | None = None,
            horizon: int | None = None, context: int | None = None, progress: bool = True) -> dict[str, Any]:
    """Run recipes against each other and against controls at equal compute, and say whether pre-training pays.

    The same call on an existing folder goes on where it stopped, also from several processes at a time. Recipes and
    their options are chosen on a held-out part of ``train``; ``test`` is looked at once, at the end.

    With ``task="forecast"`` the source is one long series: pre-training reads its training part, contestants are chosen
    on its validation part by their mean squared errors, and its test part takes the place of ``test``.

    Args:
        source: data of pre-training; labels are not used.
        train: labelled source; none of a forecast.
        test: labelled source, disjoint from the others; none of a forecast.
        recipes: ``auto`` (the large families), ``all``, names of objectives, ``rsb_a1`` to ``rsb_a3`` (labels of
            ``source``), functions as ``package.module:function``, recipes, or a YAML file.
        budget: what one arm may spend on one seed, adaptation included: a time (``10m``), operations (``5e15flop``) or
            optimiser steps (``2000steps``).
        seeds: runs of each finalist.
        out: folder of the tournament.
        metrics: evaluators that read labels, and ``fine_tune``.
        label_budget: numbers of labels, or ``all``.
        public: run folders, ``timm:NAME`` or ``hf:NAME`` that take part with frozen features, as controls.
        control: ``self`` adds each recipe pre-trained on the images of ``train`` alone.
        settings: common settings, for those recipes that know them.
        trials: most combinations of searched options a recipe.
        finalists: most recipes in the final.
        engine: ``local``, ``slurm`` or ``ray``.
        workers: processes, or jobs at once; by default one a core.
        leaks: what to do about copies of test samples in ``source`` or ``train``: ``error``, ``drop`` or ``allow``.
        task: what labels are: ``classes``, ``regression`` (numbers to be predicted), or ``auto``, by a noted rule; or
            ``forecast``.
        target: column of the numbers to be predicted, in the place of labels.
        horizon: steps ahead of a forecast; 96 when None.
        context: steps a forecast sees: the window of pre-training, by its rule when None.
        progress: tell what goes on.

    Returns:
        ``verdict`` (``answer`` pays, does not pay or cannot tell; ``paragraph``; ``numbers``; ``winner``;
        ``crossing``), ``arms``, ``comparisons``, ``costs``, ``halving``, ``agreement``, ``crashed`` and ``report``.

    Raises:
        UsageError, DataError: before anything is computed.
        InUseError: the folder holds a tournament with other settings.
        MonitorStop: every arm failed.
    """
    say = _speaker(progress)
    wish = check_wish(source, train=train, test=test, recipes=recipes, budget=budget, seeds=seeds, metrics=metrics,
                      label_budget=label_budget, public=public, control=control, settings=settings, trials=trials,
                      finalists=finalists, leaks=leaks, task=task, target=target, horizon=horizon, context=context)
    root = Path(out)
    crew = make_engine(engine, root, workers)
    try:
        plan = make_plan(root, wish, say)
        course = Tournament(root, plan, crew, say)
        course.price()
        chosen = course.search()
        entrants = course.final(chosen)
        arms = course.exam(entrants)
    finally:
        crew.close()
    result = _result(course, entrants, arms, say)
    write_text(root / "tournament.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    page = write_tournament_report({**result, "curves": _curves(root, entrants), "environment": collect({})},
                                   root / "report.html")
    result["report"] = str(page)
    return result


def _result(course: Tournament, entrants: Sequence[Entrant], arms: Sequence[Arm],
            say: Callable[[str], None]) -> dict[str, Any]:
    task = ground(course.root).judged
    costs = course.costs(entrants)
    same = agreement(_measures(course, entrants, arms))
    for row in same:
        say(f"rank correlation of {row['a']} and {row['b']} over {row['arms']} arms: {row['spearman']:+.2f}")
    for row in costs:
        if row["flag"]:
            say(f"NOT EQUAL: {row['name']} spent {row['flag']}")
    verdict = conclude(arms, task.unit, costs)
    notes = [*ground(course.root).source.notes, *course.plan["notes"], *_notes(course)]
    result = {"verdict": verdict, "metric": task.unit, "budgets": task.budgets, "budget": str(course.budget),
              "arms": [row_of(a) if a.errors else _row(a) for a in arms], "ranking": ranking(arms),
              "comparisons": against_best(arms),
              "costs": costs, "search_cost": course.search_cost([e.trial for e in entrants]),
              "halving": course.halving, "agreement": same, "crashed": course.crashed,
              "classes": task.classes, "seeds": course.seeds,
              "recipes": course.plan["recipes"], "asked": course.plan["asked"], "notes": notes}
    if isinstance(task, Ahead):
        result |= about(task, result)
    else:
        result |= {"support": _support(task), "test_samples": len(task.test)}
        if task.regression:
            result["target"] = spread_of(task.test_y)
    return dict(plain(result, finite=True))


def _notes(course: Tournament) -> list[str]:
    """What was automatic about the tournament itself."""
    task = ground(course.root).judged
    if isinstance(task, Ahead):
        return [*NOTES, *(f"{name}: {note}" for name, known in course.known.items() for note in known["notes"])]
    lines = [f"{len(task.held_out)} labelled samples of --train are held out: recipes, options and controls are chosen "
             "on them, they train nothing",
             "equal compute: an arm's budget pays for its views, networks, teachers and gradients, for reading the "
             "features of all labelled images, and for fine-tuning where that is asked for; fitting an evaluator on "
             "features, which costs next to nothing, is not counted, nor is halving, which is told apart"]
    lines += [f"{name}: {note}" for name, known in course.known.items() for note in known["notes"]]
    if any("source" in t for t in course.plan["trials"]):
        lines.append("recipes on --train see all of its images, the held-out ones included, and none of its labels")
    if course.plan["asked"]["public"]:
        lines.append("public weights see images of this source's size; what they cost others is not counted")
    return lines


def _measures(course: Tournament, entrants: Sequence[Entrant],
              arms: Sequence[Arm]) -> dict[str, dict[str, float]]:
    """Measures by arm: label-free scores of the features, and each use of labels on the validation part."""
    names = {e.source for e in entrants}
    last = ground(course.root).judged.budgets[-1]
    found: dict[str, dict[str, float]] = {"rankme": {}}
    for e in entrants:
        exam = course.exams[f"exam-{e.run}"]
        if "error" not in exam:
            found["rankme"][e.source] = float(exam["label_free"]["rankme"])
    for arm in arms:
        if arm.source in names and str(arm.budget) == str(last):
            found.setdefault(arm.evaluator, {})[arm.source] = arm.validation
    return found


def _curves(root: Path, entrants: Sequence[Entrant]) -> dict[str, dict[str, list[float]]]:
    """Loss and rank of each finalist's first seed."""
    curves = {}
    for e in entrants:
        rows = RunFolder(root / "runs" / f"{e.run}-s0").metrics()
        if rows:
            curves[e.source] = {key: [float(r.get(key, np.nan)) for r in rows] for key in ("step", "loss", "rank")}
    return curves


def _speaker(progress: bool) -> Callable[[str], None]:
    return (lambda text: print(f"  {text}", file=sys.stderr, flush=True)) if progress else (lambda _text: None)


def table(result: Mapping[str, Any]) -> str:
    """For the terminal: how the measures agree, every arm at every budget, what each cost, then the verdict."""
    shown = errors if result.get("metric") == MSE else summary
    scores = shown({**result, "verdict": {"sentence": ""}}).rstrip()
    wide = max(len(c["name"]) for c in result["costs"])
    costs = [f"{c['name']:{wide}}  {c['steps']:>9,} steps  {c['flop']:>9.2e} FLOP  {seconds(c['wall_s']):>12}  "
             f"{seconds(c['cpu_s']):>12} of CPU  {c['flag']}".rstrip() for c in result["costs"]]
    spent = result["search_cost"]
    if spent["flop"]:
        costs.append(f"halving, on trials that did not reach the final: {spent['flop']:.2e} FLOP, "
                     f"{seconds(spent['wall_s'])}")
    same = [f"rank correlation of {r['a']} and {r['b']} over {r['arms']} arms: "
            + ("n/a" if r["spearman"] is None else f"{r['spearman']:+.2f}") for r in result["agreement"]]
    ties: dict[tuple[Any, str], list[str]] = {}
    for row in result["comparisons"]:
        if row["tie"]:
            ties.setdefault((row["budget"], row["best"]), []).append(row["source"])
    tied = [f"a tie with {best} ({budget_words(budget)}): {', '.join(names)}"
            for (budget, best), names in ties.items()]
    failed = [f"FAILED: {c['arm']}: {c['what'].splitlines()[0]}" for c in result["crashed"]]
    parts = ["\n".join(same), scores, "\n".join(costs), "\n".join(tied), "\n".join(failed),
             result["verdict"]["paragraph"]]
    return "\n\n".join(p for p in parts if p)
