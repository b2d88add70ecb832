"""The answer to "did pre-training pay?", from paired intervals; it may be no, or that it cannot be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from osteon.parts.intervals import compare_paired
from osteon.verbs._arms import Arm

#: A difference smaller than this (in quality, 0 to 1) is of no practical use: one point.
MARGIN = 0.01


@dataclass(frozen=True)
class AtBudget:
    """Best pre-trained arm against best control at one label budget; differences in quality, 0 to 1."""

    budget: int | str
    pretrained: str
    control: str
    mean: float
    low: float
    high: float
    answer: str

    def sentence(self, unit: str) -> str:
        """One line a manager can read."""
        return (f"with {self.budget} labels, {self.pretrained} against {self.control}: "
                f"{100 * self.mean:+.1f} points of {unit} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]")


def judge(arms: Sequence[Arm], unit: str) -> dict[str, Any]:
    """Compare the best pre-trained arm with the best control at every budget, both chosen on held-out samples.

    The held-out samples are part of --train, train nothing, and serve pre-trained arms and controls alike; the test
    samples are looked at once. Intervals are simultaneous over the budgets (each at level 1 - 0.05/number of budgets,
    Bonferroni), from a paired bootstrap over seeds and test samples. One sample that only the pre-trained arm gets
    right and one that only the control does are added first (as Agresti and Min 2005 add to paired proportions):
    resampling cannot show what was never seen, and three test samples that agree would seem to prove everything.

    Rule: *pays* when the interval lies above 0; *does not pay* when its upper end is below one point; otherwise *cannot
    tell*. Over several budgets: pays if it pays at any; does not pay if at none; else cannot tell.

    Args:
        arms: every arm at every budget.
        unit: what quality is, e.g. ``"accuracy"``.

    Returns:
        ``{"answer", "sentence", "numbers"}``.
    """
    budgets = list(dict.fromkeys(a.budget for a in arms))
    level = 1 - 0.05 / len(budgets)
    rows = [_at(arms, b, level) for b in budgets]
    pays = [r for r in rows if r.answer == "pays"]
    if pays:
        answer = "pays"
        best = max(pays, key=lambda r: r.mean)
        sentence = f"Pre-training paid: {best.sentence(unit)}."
        losing = [r for r in rows if r.answer == "does not pay"]
        if losing:
            sentence += " It did not " + "; ".join(r.sentence(unit) for r in losing) + "."
    elif all(r.answer == "does not pay" for r in rows):
        answer = "does not pay"
        best = max(rows, key=lambda r: r.mean)
        sentence = f"Pre-training did not pay. At its best, {best.sentence(unit)}."
    else:
        answer = "cannot tell"
        open_ = [r for r in rows if r.answer == "cannot tell"]
        sentence = ("Whether pre-training paid cannot be told from these data: "
                    + "; ".join(r.sentence(unit) for r in open_) + ". More test samples or seeds would narrow it.")
    return {"answer": answer, "sentence": sentence,
            "numbers": {"unit": unit, "level": level, "margin": MARGIN, "budgets": [r.__dict__ for r in rows]}}


def _at(arms: Sequence[Arm], budget: int | str, level: float) -> AtBudget:
    here = [a for a in arms if a.budget == budget]
    ours, control = (max((a for a in here if a.kind == kind), key=lambda a: a.validation)
                     for kind in ("pretrained", "control"))
    d = compare_paired(_with(ours.quality, 1, 0), _with(control.quality, 0, 1), resamples=4000, level=level)
    answer = "pays" if d.low > 0 else "does not pay" if d.high < MARGIN else "cannot tell"
    mean = float((ours.quality - control.quality).mean())
    return AtBudget(budget, ours.name, control.name, mean, float(min(d.low, mean)), float(max(d.high, mean)), answer)


def _with(quality: np.ndarray, *more: float) -> np.ndarray:
    """Quality (S, M) with samples added: (S, M + the number added)."""
    return np.hstack([quality, np.tile(np.asarray(more, dtype=np.float64), (len(quality), 1))])

