"""The answer to "did pre-training pay?", from paired intervals; it may be no, or that it cannot be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from osteon.parts.forecast import MSE
from osteon.parts.intervals import Difference, compare_paired, holm
from osteon.parts.regression import R2
from osteon.verbs._arms import Arm

#: A difference smaller than this (in quality, of which 1 is perfect) is of no practical use: one point.
MARGIN = 0.01
#: With fewer independent stretches of test time than this nothing is claimed of forecasts.
FEWEST_BLOCKS = 6


@dataclass(frozen=True)
class AtBudget:
    """Best pre-trained arm against best control at one label budget; differences in quality, of which 1 is perfect."""

    budget: int | str
    pretrained: str
    control: str
    mean: float
    low: float
    high: float
    p: float
    answer: str

    def sentence(self, unit: str) -> str:
        """One line a manager can read."""
        gain = (f"{self.mean:+.3f} of R2 [{self.low:+.3f}, {self.high:+.3f}]" if unit == R2 else
                f"{100 * self.mean:+.1f} points of {unit} [{100 * self.low:+.1f}, {100 * self.high:+.1f}]")
        return f"with {self.budget} labels, {self.pretrained} against {self.control}: {gain}"


def judge(arms: Sequence[Arm], unit: str) -> dict[str, Any]:
    """Compare the best pre-trained arm with the best control at every budget, both chosen on held-out samples.

    The held-out samples are part of --train, train nothing, and serve pre-trained arms and controls alike; the test
    samples are looked at once. Intervals are 95 %, paired, over seeds and test samples. One sample that only the
    pre-trained arm gets right and one that only the control does are added first (as Agresti and Min 2005 add to paired
    proportions): resampling cannot show what was never seen, and three test samples that agree would prove everything.
    Of numbers, these two are samples at one deviation from the mean, which the one arm predicts and the other takes for
    the mean.

    Rule at one budget: *pays* when the difference is positive with p < 0.05 after Holm's correction over the budgets;
    *does not pay* when the upper end of its interval is below one point; otherwise *cannot tell*. Over all budgets:
    pays if it pays at any (hence the correction); does not pay if at none (every budget must show it, so that no
    correction is needed); else cannot tell.

    Args:
        arms: every arm at every budget.
        unit: what quality is, e.g. ``"accuracy"``, or R2, of which more is better too. Of forecasts (MSE) see
            :func:`judge_errors`.

    Returns:
        ``{"answer", "sentence", "numbers"}``.
    """
    if unit == MSE:
        ours, control = _pair(arms, arms[0].budget)
        return judge_errors(ours.name, control.name, -ours.quality, -control.quality,
                            (float(np.mean(ours.scores["mse"])), float(np.mean(control.scores["mse"]))))
    budgets = list(dict.fromkeys(a.budget for a in arms))
    pairs = [_pair(arms, b) for b in budgets]
    differences = [difference(a, c) for a, c in pairs]
    adjusted = holm([d.p for d in differences])
    rows = [AtBudget(b, a.name, c.name, float(d.mean), float(d.low), float(d.high), float(p), _answer(d, float(p)))
            for b, (a, c), d, p in zip(budgets, pairs, differences, adjusted, strict=True)]
    pays = [r for r in rows if r.answer == "pays"]
    if pays:
        answer = "pays"
        best = max(pays, key=lambda r: r.mean)
        sentence = f"Pre-training paid: {best.sentence(unit)}."
        sentence += _losing(rows, unit)
    elif all(r.answer == "does not pay" for r in rows):
        answer = "does not pay"
        best = max(rows, key=lambda r: r.mean)
        sentence = f"Pre-training did not pay. At its best, {best.sentence(unit)}."
    else:
        answer = "cannot tell"
        open_ = [r for r in rows if r.answer == "cannot tell"]
        sentence = ("Whether pre-training paid cannot be told from these data: "
                    + "; ".join(r.sentence(unit) for r in open_) + ". More test samples or seeds would narrow it."
                    + _losing(rows, unit))
    return {"answer": answer, "sentence": sentence,
            "numbers": {"unit": unit, "level": 0.95, "margin": MARGIN, "budgets": [r.__dict__ for r in rows]}}


def _losing(rows: Sequence[AtBudget], unit: str) -> str:
    """The budgets at which it did not pay, as a sentence of its own, or nothing."""
    losing = [r.sentence(unit) for r in rows if r.answer == "does not pay"]
    return f" It did not pay {'; '.join(losing)}." if losing else ""


def _pair(arms: Sequence[Arm], budget: int | str) -> tuple[Arm, Arm]:
    """The pre-trained arm and the control that are best on held-out samples."""
    here = [a for a in arms if a.budget == budget]
    ours, control = (max((a for a in here if a.kind == kind), key=lambda a: a.validation)
                     for kind in ("pretrained", "control"))
    return ours, control


def judge_errors(ours: str, control: str, mine: np.ndarray, theirs: np.ndarray,
                 errors: tuple[float, float]) -> dict[str, Any]:
    """The verdict on two forecasts: the difference of their squared errors, paired by stretch of time and by seed.

    Its 95 % interval is a bootstrap over stretches. *Pays*: the interval lies above 0. *Does not pay*: its upper end is
    below 1 % of the control's error. Otherwise, or with fewer than 6 stretches, it cannot be told.

    Args:
        ours: name of the pre-trained arm.
        control: name of the control.
        mine: (S, B) mean squared error of each stretch of test time, a row a seed.
        theirs: the same of the control.
        errors: mean squared errors over all test windows, ours and the control's.

    Returns:
        ``{"answer", "sentence", "numbers"}``.
    """
    found = compare_paired(theirs, mine, resamples=4000)
    error, base = errors
    gain, blocks = (base - error) / base, mine.shape[1]
    low, high = min(found.low / base, gain), max(found.high / base, gain)
    said = (f"{ours} has a mean squared error of {error:.3f} against {base:.3f} of {control}: "
            f"{100 * gain:+.1f} % of that error saved [{100 * low:+.1f}, {100 * high:+.1f}]")
    if blocks < FEWEST_BLOCKS:
        answer, sentence = "cannot tell", (f"Whether pre-training paid cannot be told from {blocks} independent "
                                           f"stretches of test time: {said}.")
    elif low > 0:
        answer, sentence = "pays", f"Pre-training paid for forecasting: {said}."
    elif high < MARGIN:
        answer, sentence = "does not pay", f"Pre-training did not pay for forecasting: {said}."
    else:
        answer, sentence = "cannot tell", f"Whether pre-training paid cannot be told from these data: {said}."
    return {"answer": answer, "sentence": sentence,
            "numbers": {"unit": "share of the control's mean squared error", "level": 0.95, "margin": MARGIN,
                        "pretrained": ours, "control": control, "mean": gain, "low": low, "high": high, "p": found.p,
                        "blocks": blocks}}


def difference(ours: Arm, control: Arm) -> Difference:
    """By how much one arm is better than another on the same test samples; see :func:`judge`.

    Of forecasts in mean squared error; too few stretches of time tell nothing.
    """
    if not ours.errors:
        return _difference(ours.quality, control.quality, ours.targets)
    found = compare_paired(ours.quality, control.quality, resamples=4000)
    few = ours.quality.shape[1] < FEWEST_BLOCKS
    return replace(found, low=min(found.low, found.mean), high=max(found.high, found.mean), p=1.0 if few else found.p)


def _difference(ours: np.ndarray, control: np.ndarray, targets: np.ndarray | None = None) -> Difference:
    """The paired difference of (S, M) qualities with an interval that allows for what M samples cannot show."""
    seeds = len(ours)
    if targets is not None:  # at one deviation on either side: neither mean nor variance changes
        targets = np.concatenate([targets, targets.mean() + targets.std() * np.array([1.0, -1.0])])
    found = compare_paired(np.hstack([ours, np.tile([1.0, 0.0], (seeds, 1))]),
                           np.hstack([control, np.tile([0.0, 1.0], (seeds, 1))]), resamples=4000, targets=targets)
    mean = float((ours - control).mean())
    return replace(found, mean=mean, low=min(found.low, mean), high=max(found.high, mean))


def _answer(difference: Difference, p: float) -> str:
    if difference.mean > 0 and p < 0.05:
        return "pays"
    return "does not pay" if difference.high < MARGIN else "cannot tell"
