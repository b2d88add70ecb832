"""The page of bandits: regret of the network and of every rule, at the end and over the rounds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from osteon.report.page import Report
from osteon.report.svg import Series


def write_bandit_report(result: Mapping[str, Any], path: Path) -> Path:
    """Write the page of what :func:`osteon.bandit` returned.

    Args:
        result: its result.
        path: the ``.html`` file.
    """
    report = Report(f"Bandits of {result['rounds']} rounds")
    report.table("Cumulative regret", ["rule", "kind", "regret", "95 %"], [
        [arm["name"], arm["kind"], f"{arm['mean']:.2f}", f"[{arm['low']:.2f}, {arm['high']:.2f}]"]
        for arm in sorted(result["arms"], key=lambda a: a["mean"])],
        note="What was lost against always trying the best arm; less is better.")
    rounds = [float(t + 1) for t in range(result["rounds"])]
    report.curves("Regret over the rounds", [
        Series(name, rounds, values, control=not name.startswith("in context"))
        for name, values in result["curves"].items()], "round", "cumulative regret")
    report.text("What was done", list(result["notes"]))
    return report.save(path)
