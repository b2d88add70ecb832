"""What an arm may spend, and how many optimiser steps that buys: one currency for every arm of a tournament."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from osteon.core.errors import UsageError
from osteon.report.numbers import number, seconds

#: unit -> words for it, and how many of the unit's base one of each is
_UNITS: dict[str, dict[str, float]] = {
    "seconds": {"s": 1, "sec": 1, "seconds": 1, "m": 60, "min": 60, "minutes": 60, "h": 3600, "hours": 3600},
    "flop": {"flop": 1, "flops": 1},
    "steps": {"step": 1, "steps": 1},
}
_FORM = re.compile(r"\s*([0-9]+(?:[._][0-9]+)*(?:[eE][+-]?[0-9]+)?|\.[0-9]+)\s*([A-Za-z]+)\s*")
#: fewest optimiser steps that are still worth comparing
FEWEST = 10
#: arms may differ by this share of the budget
TOLERANCE = 0.05


@dataclass(frozen=True)
class Budget:
    """What one arm may spend on one seed: pre-training and adaptation together.

    Args:
        amount: how much.
        unit: ``"seconds"`` (of wall clock), ``"flop"`` or ``"steps"`` (of an optimiser).
    """

    amount: float
    unit: str

    def __str__(self) -> str:
        return self.say(self.amount)

    def say(self, amount: float) -> str:
        """An amount of this budget's unit, in words."""
        if self.unit == "seconds":
            return seconds(amount)
        return f"{amount:.3g} FLOP" if self.unit == "flop" else f"{number(amount)} steps"


@dataclass(frozen=True)
class Price:
    """What something costs in every unit; times are of one process with one thread, measured before the tournament.

    Args:
        flop: floating-point operations.
        seconds: wall clock.
        steps: optimiser steps.
    """

    flop: float
    seconds: float
    steps: float = 0.0

    def of(self, unit: str) -> float:
        """The price in one unit."""
        return float(getattr(self, unit))

    def __add__(self, other: Price) -> Price:
        return Price(self.flop + other.flop, self.seconds + other.seconds, self.steps + other.steps)

    def times(self, count: float) -> Price:
        """The price of ``count`` of it."""
        return Price(self.flop * count, self.seconds * count, self.steps * count)


def parse_budget(text: str | Budget) -> Budget:
    """Read ``10m``, ``90s``, ``1h``, ``5e15flop`` or ``2000steps``.

    Raises UsageError for anything else, and for amounts that buy nothing.
    """
    if isinstance(text, Budget):
        return text
    found = _FORM.fullmatch(str(text))
    word = found.group(2).lower() if found else ""
    unit = next((u for u, words in _UNITS.items() if word in words), None)
    if found is None or unit is None:
        raise UsageError(f"'{text}' is no budget.", where="--budget",
                         fix="Write a time (90s, 10m, 2h), operations (5e15flop) or steps (2000steps).")
    try:
        amount = float(found.group(1).replace("_", "")) * _UNITS[unit][word]
    except ValueError:
        amount = math.nan
    if not (math.isfinite(amount) and amount > 0):
        raise UsageError(f"A budget of {text} buys nothing.", where="--budget")
    if unit == "steps" and amount != int(amount):
        raise UsageError(f"Steps are whole, not {text}.", where="--budget")
    return Budget(amount, unit)


def steps_within(budget: Budget, amount: float, a_step: Price, *, what: str) -> int:
    """How many steps ``amount`` of the budget buys, to the nearest whole one.

    Raises UsageError when too few to be worth it, saying how much it would take.
    """
    price = a_step.of(budget.unit)
    count = round(amount / price) if price > 0 else 0
    if count < FEWEST:
        short = FEWEST * price + (budget.amount - amount)
        raise UsageError(f"A budget of {budget} buys {max(0, count)} steps of {what}.", where="--budget",
                         fix=f"Give at least {budget.say(math.ceil(short * 1.2) if short > 10 else short * 1.2)}.")
    return count


def off_by(budget: Budget, spent: float) -> float:
    """By which share of the budget an arm departs from it, e.g. 0.02 for 2 % too much."""
    return spent / budget.amount - 1.0
