"""Values that change over training, as pure functions of the step: nothing to save, nothing to step.

They serve the learning rate, weight decay and a teacher's momentum alike. Step ``t`` counts from 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from osteon.core.errors import UsageError, nearest

SCHEDULES = ("cosine", "linear", "constant", "multistep")


def value_at(step: int, *, total: int, schedule: str = "cosine", start: float = 1.0, end: float = 0.0, warmup: int = 0,
             milestones: Sequence[float] = (), gamma: float = 0.1) -> float:
    """The value at one step: a linear warm-up to ``start``, then the schedule towards ``end``.

    Warm-up step t of W has ``start * (t + 1) / (W + 1)``: no step is wasted at zero and step W is the first at
    ``start``. After it, with p = (t - W) / (total - W): cosine ``end + (start - end) (1 + cos(pi p)) / 2`` (Loshchilov
    and Hutter 2017, eq. 5), linear ``start + (end - start) p``. ``end`` is reached at ``total``.

    Args:
        step: step from 0; beyond ``total`` the last value holds.
        total: number of steps.
        schedule: one of :data:`SCHEDULES`.
        start: value after the warm-up.
        end: value at ``total``; not used by constant and multistep.
        warmup: number of warm-up steps W.
        milestones: multistep: shares of ``total`` in [0, 1] at which the value is multiplied by ``gamma``.
        gamma: see ``milestones``.

    Raises:
        UsageError: unknown schedule, or numbers that make none.
    """
    if schedule not in SCHEDULES:
        raise UsageError(f"Unknown schedule '{schedule}'.{nearest(schedule, SCHEDULES)}",
                         fix=f"Choose one of {', '.join(SCHEDULES)}.")
    if total < 1 or not 0 <= warmup <= total or step < 0:
        raise UsageError(f"A schedule needs 0 <= warmup <= total and step >= 0, not warmup={warmup}, total={total}, "
                         f"step={step}.")
    if step < warmup:
        return start * (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    if schedule == "cosine":
        return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
    if schedule == "linear":
        return start + (end - start) * progress
    if schedule == "multistep":
        if any(not 0 <= m <= 1 for m in milestones):
            raise UsageError(f"Milestones are shares of training between 0 and 1, not {list(milestones)}.")
        return start * gamma ** sum(step >= m * total for m in milestones)
    return start


@dataclass(frozen=True)
class Schedule:
    """A schedule with its numbers filled in: ``lr_at = Schedule("cosine", 0.1, total=1000, warmup=50); lr_at(step)``.

    Args: as for :func:`value_at`.
    """

    schedule: str
    start: float
    total: int
    end: float = 0.0
    warmup: int = 0
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1

    def __post_init__(self) -> None:
        self(0)  # wrong numbers are found before training starts

    def __call__(self, step: int) -> float:
        """The value at ``step``."""
        return value_at(step, total=self.total, schedule=self.schedule, start=self.start, end=self.end,
                        warmup=self.warmup, milestones=self.milestones, gamma=self.gamma)

    def describe(self) -> str:
        """One line for the user."""
        text = f"{self.schedule} from {self.start:g}"
        if self.schedule in ("cosine", "linear"):
            text += f" to {self.end:g}"
        if self.schedule == "multistep":
            text += f", times {self.gamma:g} at {', '.join(f'{m:.0%}' for m in self.milestones)}"
        return text + f" over {self.total} steps" + (f" after {self.warmup} of warm-up" if self.warmup else "")
