"""The guard of continued pre-training: scores the features before the first step and stops a run that destroys them.

Continuing from good weights can make them worse. Before the first step, and every so often, each validation sample is
predicted from the features of the others; when fewer are right than at step 0, by more than chance explains, the run
stops and its best checkpoint is what it leaves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from osteon.core.errors import MonitorStop
from osteon.core.options import Option
from osteon.parts.intervals import bootstrap_interval, compare_paired
from osteon.parts.objective import Objective

#: what ``--set`` may change about continuing, with annotation and default
OPTIONS = (
    Option("guard", "bool", True, "watch the features while continuing, and stop when they get worse"),
    Option("guard_every", "int", 0, "steps between looks; 0: a tenth of the run"),
    Option("low_rank", "int", 0, "rank of the trained change beside frozen weights; 0: all weights train"),
)
#: chance that a harmless run is ever stopped, over all looks together
ALARM = 0.05
_RESAMPLES = 1000


@dataclass(frozen=True)
class Measured:
    """What the guard's measure says about a network.

    Args:
        score: one number, higher is better.
        right: (M,) 0 or 1 for every validation sample; None where there are no labels.
    """

    score: float
    right: np.ndarray | None = None


class GuardStop(MonitorStop):
    """Continued pre-training made the features worse than they were at step 0.

    Attributes:
        step: at which it was seen.
        best: step of the checkpoint the run goes back to.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "", step: int = 0, best: int = 0) -> None:
        super().__init__(what, where=where, fix=fix)
        self.step, self.best = step, best


class Guard:
    """Watches one number of the network a run would leave.

    Without labels the number is only recorded: no label-free number is known to fall whenever features get worse.

    Args:
        measure: gives the score of an objective's exported network; must not change the network or any random state.
        name: of the score in the metrics, e.g. ``knn``.
        every: steps between looks.
        steps: of the whole run.

    Source: the paired bootstrap over validation samples of :func:`osteon.parts.intervals.compare_paired`, at a level
    divided by the number of looks (Bonferroni).
    """

    def __init__(self, measure: Callable[[Objective], Measured], *, name: str, every: int, steps: int) -> None:
        self.measure, self.name, self.every, self.steps = measure, name, max(1, every), steps
        #: seconds and looks so far in this process
        self.seconds, self.looks = 0.0, 0
        self.first: Measured | None = None
        self.best, self.best_step = -np.inf, 0
        self.fallen = ""

    @property
    def level(self) -> float:
        """Level of the interval of one look, so that all looks together raise a false alarm at most ``ALARM``."""
        return 1.0 - 2 * ALARM / max(1, -(-self.steps // self.every))

    def due(self, done: int) -> bool:
        """Whether there is a look after so many steps: before the first, every ``every``, and at the end."""
        return done % self.every == 0 or done == self.steps

    def look(self, objective: Objective, done: int) -> dict[str, float]:
        """Measure after ``done`` steps; the first look sets what later ones are compared with.

        Returns:
            What to log: the score, at the first look with its 95 % interval.
        """
        begun = time.perf_counter()
        now = self.measure(objective)
        self.seconds, self.looks = self.seconds + time.perf_counter() - begun, self.looks + 1
        shown = {f"guard/{self.name}": now.score}
        if self.first is None:
            self.first = now
            if now.right is not None:
                span = bootstrap_interval(now.right)
                shown |= {f"guard/{self.name}_low": span.low, f"guard/{self.name}_high": span.high}
        elif now.right is not None and self.first.right is not None:
            self._compare(now.right, self.first.right, done)
        if now.score > self.best and not self.fallen:
            self.best, self.best_step = now.score, done
        return shown

    def _compare(self, now: np.ndarray, first: np.ndarray, done: int) -> None:
        if now.mean() >= first.mean():
            return  # no fall, whatever its interval
        change = compare_paired(now[None], first[None], resamples=_RESAMPLES, level=self.level)
        if change.high < 0:
            self.fallen = (f"The validation {self.name} score fell from {first.mean():.3f} at step 0 to "
                           f"{now.mean():.3f} at step {done}: by {-change.mean:.3f}, at level {self.level:.3g} by at "
                           f"least {-change.high:.3f}.")

    def is_best(self, done: int) -> bool:
        """Whether the look after ``done`` steps was the best so far."""
        return self.best_step == done and self.looks > 0

    def stop(self, done: int, where: str) -> GuardStop:
        """The error to raise when :attr:`fallen`; names what is kept."""
        return GuardStop(
            self.fallen, where=f"step {done} of {where}", step=done, best=self.best_step,
            fix=f"The run was rolled back to its best checkpoint, step {self.best_step} (score {self.best:.3f}); the "
                "last one is kept beside it. Continue more gently into another --out: a lower --set lr=..., a frozen "
                "backbone with --set low_rank=8, or --objective self_distilled. --set guard=false goes on regardless.")

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        first = self.first
        right = None if first is None or first.right is None else torch.from_numpy(first.right.astype(np.uint8))
        return {"score": None if first is None else float(first.score), "right": right,
                "best": float(self.best), "best_step": int(self.best_step), "fallen": self.fallen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        right = state["right"]
        if state["score"] is not None:
            self.first = Measured(float(state["score"]),
                                  right.numpy().astype(np.float64) if isinstance(right, Tensor) else None)
        self.best, self.best_step, self.fallen = float(state["best"]), int(state["best_step"]), str(state["fallen"])
