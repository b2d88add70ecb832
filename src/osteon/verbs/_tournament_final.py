"""What a tournament says at its end: who won, which arms are a tie, from how many labels on scratch catches up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from osteon.parts.intervals import holm
from osteon.report.numbers import seconds
from osteon.verbs._arms import Arm
from osteon.verbs._verdict import difference, judge

SCRATCH = "from scratch"


def by_source(arms: Sequence[Arm], budget: int | str) -> dict[str, Arm]:
    """At one label budget, each source's arm of the evaluation that did best on the validation part."""
    best: dict[str, Arm] = {}
    for arm in arms:
        if arm.budget == budget and (arm.source not in best or arm.validation > best[arm.source].validation):
            best[arm.source] = arm
    return best


def ranking(arms: Sequence[Arm], kind: str = "pretrained") -> list[tuple[str, float]]:
    """Sources and their validation quality, averaged over label budgets, best first; equals in their order."""
    budgets = list(dict.fromkeys(a.budget for a in arms))
    sources = list(dict.fromkeys(a.source for a in arms if a.kind == kind))
    score = {s: float(np.mean([by_source(arms, b)[s].validation for b in budgets])) for s in sources}
    return sorted(score.items(), key=lambda item: -item[1])


def against_best(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """At every label budget, each source against the one that did best on the validation part.

    Returns:
        rows ``budget``, ``best``, ``source``, ``mean`` (the best's lead), ``low``, ``high``, ``p`` (after Holm's
        correction over the sources of the budget) and ``tie`` (p at least 0.05).
    """
    rows: list[dict[str, Any]] = []
    for budget in dict.fromkeys(a.budget for a in arms):
        here = by_source(arms, budget)
        best = max(here.values(), key=lambda a: a.validation)
        others = [a for a in here.values() if a is not best]
        found = [difference(best, a) for a in others]
        for arm, d, p in zip(others, found, holm([d.p for d in found]), strict=True):
            rows.append({"budget": budget, "best": best.source, "source": arm.source, "evaluator": arm.evaluator,
                         "mean": d.mean, "low": d.low, "high": d.high, "p": float(p), "tie": bool(p >= 0.05)})
    return rows


def crossing(arms: Sequence[Arm]) -> dict[str, Any] | None:
    """From how many labels on training from scratch catches up with pre-training.

    At each budget the best pre-trained arm meets the best network trained from scratch, both by the validation part.
    It has caught up where pre-training is no longer better with p < 0.05 (Holm over the budgets).

    Returns:
        ``from`` (the first budget from which on it has caught up; None where it has not) and ``budgets`` (rows), or
        None where nothing was trained from scratch.
    """
    rows: list[dict[str, Any]] = []
    for budget in dict.fromkeys(a.budget for a in arms):
        ours = [a for a in arms if a.budget == budget and a.kind == "pretrained"]
        scratch = [a for a in arms if a.budget == budget and a.evaluator == SCRATCH]
        if not ours or not scratch:
            return None
        a, b = (max(side, key=lambda arm: arm.validation) for side in (ours, scratch))
        d = difference(a, b)
        rows.append({"budget": budget, "pretrained": a.name, "scratch": b.name, "mean": d.mean, "low": d.low,
                     "high": d.high, "p": d.p})
    for row, p in zip(rows, holm([r["p"] for r in rows]), strict=True):
        row["p"], row["ahead"] = float(p), bool(p < 0.05 and row["mean"] > 0)
    caught: int | str | None = None
    for row in reversed(rows):
        if row["ahead"]:
            break
        caught = row["budget"]
    return {"from": caught, "budgets": rows}


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation in [-1, 1], equal values sharing their mean rank; NaN where either side has one rank only."""
    x, y = (_ranks(np.asarray(v, dtype=np.float64)) for v in (a, b))
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 0 else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def agreement(measures: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """How far measures rank the arms alike: rank correlation of every pair over the arms that have both.

    Args:
        measures: measure -> arm -> value, higher meaning better.

    Returns:
        rows ``a``, ``b``, ``spearman``, ``arms``; pairs with fewer than three arms are left out.
    """
    names = list(measures)
    rows = []
    for i, first in enumerate(names):
        for second in names[i + 1:]:
            shared = [arm for arm in measures[first] if arm in measures[second]]
            if len(shared) >= 3:
                value = spearman([measures[first][s] for s in shared], [measures[second][s] for s in shared])
                rows.append({"a": first, "b": second, "spearman": value, "arms": len(shared)})
    return rows


def conclude(arms: Sequence[Arm], unit: str, costs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The verdict, with what it cost and where scratch catches up, as a paragraph a manager can read."""
    verdict = judge(arms, unit)
    winner = ranking(arms)[0][0]
    best = max((a for a in arms if a.kind == "pretrained" and a.source == winner), key=lambda a: a.validation)
    cost = next((c for c in costs if c["name"] == winner), None)
    lines = [verdict["sentence"], f"The recipe chosen on the validation part is {winner} (read by {best.evaluator})."]
    if cost is not None:
        lines.append(f"Each arm was given {cost['budget']} a seed; {winner} took {cost['steps']:,} steps, "
                     f"{cost['flop']:.2e} FLOP and {seconds(cost['wall_s'])} a seed, adaptation included.")
    caught = crossing(arms)
    if caught is not None:
        lines.append(_catching_up(caught))
    numbers = {**verdict["numbers"], "winner": winner}
    return {**verdict, "paragraph": " ".join(lines), "winner": winner, "numbers": numbers, "crossing": caught}


def _catching_up(caught: Mapping[str, Any]) -> str:
    budgets = [row["budget"] for row in caught["budgets"]]
    if caught["from"] is None:
        return (f"Training from scratch, given as much compute, had not caught up {_with(budgets[-1])}.")
    if caught["from"] == budgets[0]:
        return ("Training from scratch, given as much compute, was not measurably behind at any label count tried."
                if len(budgets) > 1 else
                f"Training from scratch, given as much compute, was not measurably behind {_with(budgets[0])}.")
    return f"Training from scratch, given as much compute, catches up from {caught['from']} labels on."


def _with(budget: int | str) -> str:
    """A label budget or a horizon at which something was compared."""
    if str(budget) == "all":
        return "with all labels"
    return f"with {budget} labels" if str(budget).isdigit() else f"at {budget}"
