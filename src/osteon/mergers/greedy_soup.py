"""Greedy soup: average only those models that do not make the average worse on held-out samples.

Wortsman et al. 2022, "Model soups", arXiv:2203.05482, recipe 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from osteon.core.card import Card
from osteon.parts.merging import Merger, Models, accuracy
from osteon.parts.state_algebra import StateFile, mean

CARD = Card(kind="merger", name="greedy_soup",
            papers=("Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing "
                    "inference time",), modalities=("any",),
            differs="a member that leaves the held-out score equal is taken, as in the paper's recipe; the released "
                    "code asks for more (strict=true); means are always taken over the members themselves, in float64",
            rows=(119,), labels=True, cost="twice as many evaluations on --val as there are models")


class GreedySoup(Merger):
    """Begin with the best model and add the next best while the average does not get worse on ``--val``.

    Args:
        strict: take a member only if the score rises.
    """

    needs: ClassVar[tuple[str, ...]] = ("val",)

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict
        #: numbers of the members taken, in order
        self.taken: list[int] = []

    def prepare(self, models: Models) -> list[str]:
        """Choose the members. Equal models are tried in the order given."""
        assert models.judge is not None
        judge, members = models.judge, models.members
        alone = [accuracy(judge, m.__getitem__, merged=False) for m in members]
        order = sorted(range(len(members)), key=lambda i: -alone[i])
        self.taken, best = order[:1], alone[order[0]]
        lines = [f"greedy soup: starts with {members[order[0]].label} ({best:.2%} on --val)"]
        for i in order[1:]:
            trial = [*self.taken, i]
            score = accuracy(judge, lambda name, trial=trial: _mean_of(members, trial, name))  # type: ignore[misc]
            good = score > best or (score == best and not self.strict)
            lines.append(f"greedy soup: with {members[i].label} {score:.2%}, {'taken' if good else 'left out'}")
            if good:
                self.taken, best = trial, score
        return [*lines, f"greedy soup: {len(self.taken)} of {len(members)} models; they were chosen on --val, so "
                        "report the accuracy on other samples"]

    def combine(self, name: str, models: Models) -> Tensor:
        """Mean over the members taken."""
        return _mean_of(models.members, self.taken, name)

    def statistic(self, name: str, models: Models) -> Tensor:
        """Mean over the members taken."""
        return _mean_of(models.members, self.taken, name)


def _mean_of(members: Sequence[StateFile], rows: Sequence[int], name: str) -> Tensor:
    first = members[rows[0]]
    if not first.dtypes[name].is_floating_point:
        return first[name]
    return mean([members[i][name] for i in rows])
