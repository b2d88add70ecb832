"""What a tournament will take: its own prices, measured as it would measure them, in a folder that is thrown away."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from osteon.core.plain import plain
from osteon.recipes import Recipe
from osteon.verbs._plan_data import check_data
from osteon.verbs._pool import cores
from osteon.verbs._tournament import Tournament
from osteon.verbs._tournament_budget import FEWEST
from osteon.verbs._tournament_engine import make_engine
from osteon.verbs._tournament_jobs import ground
from osteon.verbs._tournament_plan import METRICS, check_wish, make_plan, searched
from osteon.verbs._tournament_study import rungs, survivors

#: columns of the table of arms
ARM = ["name", "network", "batch", "steps", "seconds", "flop"]
#: fewer steps than this rarely tell recipes apart
FEW = 20 * FEWEST


def plan_compare(source: str | Path, *, train: str | Path | None, test: str | Path | None,
                 recipes: str | Path | Sequence[str | Recipe], budget: str, seeds: int,
                 settings: Mapping[str, Any] | None, say: Callable[[str], None], task: str = "auto",
                 horizon: int | None = None, context: int | None = None) -> dict[str, Any]:
    """Measure what every arm costs and say how long the tournament takes; see :func:`osteon.verbs.plan.plan`.

    Returns:
        ``arms`` (:data:`ARM`: seconds and operations of one seed), ``time`` (seconds: ``search``, ``final`` and
        ``scratch`` of one process, ``total`` on all ``workers``), ``data``, ``notes``, ``warnings``.
    """
    wish = check_wish(source, train=train, test=test, recipes=recipes, budget=budget, seeds=seeds,
                      metrics=METRICS, label_budget=("all",), public=(), control=(), settings=settings, trials=3,
                      finalists=6, leaks="error", task=task, horizon=horizon, context=context)
    with tempfile.TemporaryDirectory(prefix="osteon-plan-") as folder:
        crew = make_engine("local", Path(folder), None)
        try:
            course = Tournament(Path(folder), make_plan(Path(folder), wish, say), crew, say)
            course.price()
        finally:
            crew.close()
        dataset = ground(course.root).source
        data, warnings = check_data(dataset)
        arms = _arms(course)
        for crash in course.crashed:
            warnings.append(f"{crash['arm'].removeprefix('probe-')} cannot run and would be left out: {crash['what']}")
        result = {"budget": str(wish.budget), "seeds": seeds, "data": data, "arms": arms, "time": _time(course),
                  "notes": [*dataset.notes, *course.plan["notes"], *(f"{name}: {note}" for name, known in
                            course.known.items() for note in known["notes"])],
                  "warnings": warnings + [f"{a['name']} takes only {a['steps']} steps: the budget is small for it"
                                          for a in arms if a["steps"] < FEW]}
    return dict(plain(result, finite=True))


def _arms(course: Tournament) -> list[dict[str, Any]]:
    rows = [{"name": name, "network": course.known[name]["backbone"]["name"], "batch": course.known[name]["batch_size"],
             "steps": allotted.steps, "seconds": allotted.price[0].seconds, "flop": allotted.price[0].flop}
            for name, allotted in course.allotted.items()]
    for label, (recipe, allotted) in course.scratch.items():
        rows.append({"name": f"{label} from scratch", "network": label,
                     "batch": course.known[recipe]["supervised"][0]["batch"], "steps": allotted.supervised[0],
                     "seconds": allotted.price[0].seconds, "flop": allotted.price[0].flop})
    return rows


def _time(course: Tournament) -> dict[str, float]:
    """Seconds; of the search, that the dearest trials go on is assumed."""
    price = {name: a.price[0].seconds / max(1, a.steps) for name, a in course.allotted.items()}
    live = [t for t in searched(course.plan) if t.recipe in price]
    finalists = min(int(course.plan["asked"]["finalists"]), len({t.recipe for t in live}))
    search, reached = 0.0, {t.number: 0 for t in live}
    places = {t.recipe: rungs(len(live), finalists, steps=course.allotted[t.recipe].steps) for t in live}
    count = max((len(p) for p in places.values()), default=0)
    for rung in range(count):
        for t in live:
            search += price[t.recipe] * (places[t.recipe][rung] - reached[t.number])
            reached[t.number] = places[t.recipe][rung]
        live = survivors(live, {t.number: price[t.recipe] for t in live}, finalists=finalists, last=rung == count - 1)
    final = sum(price[t.recipe] * (course.seeds * course.allotted[t.recipe].steps - reached[t.number]) for t in live)
    scratch = course.seeds * sum(p.seconds for _, a in course.scratch.values() for p in a.price)
    workers = cores()
    return {"search": search, "final": final, "scratch": scratch, "workers": workers,
            "total": (search + final + scratch) / workers}
