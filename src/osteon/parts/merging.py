"""What passes through the door of merging: models on disk, and somebody who can score or differentiate weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from osteon.core.errors import UsageError
from osteon.parts.state_algebra import StateFile, Weights, is_statistic, mean


class Judge(Protocol):
    """Scores weights on held-out labelled samples (``--val``)."""

    def quality(self, weights: Weights, *, merged: bool = True) -> np.ndarray:
        """Right (1) or wrong (0) on every held-out sample, (M,); of models as they are with ``merged`` False."""


class Teacher(Protocol):
    """Differentiates a loss on few labelled samples (``--train``) with respect to the weights."""

    count: int

    def slopes(self, weights: Weights, rows: np.ndarray) -> tuple[float, Mapping[str, Tensor]]:
        """Loss of the samples ``rows`` and its gradient for every trained tensor, by name."""


@dataclass(frozen=True)
class Models:
    """What a merger may look at.

    Args:
        members: the models, which fit each other.
        base: what they were fine-tuned from, or None.
        judge: scores weights, or None.
        teacher: differentiates, or None.
        seed: of everything random.
    """

    members: Sequence[StateFile]
    base: StateFile | None = None
    judge: Judge | None = None
    teacher: Teacher | None = None
    seed: int = 0

    @property
    def trained(self) -> list[str]:
        """Names of the tensors to combine, sorted: floating-point ones that are no statistics and that the base has."""
        first = self.members[0]
        return [n for n in first if first.dtypes[n].is_floating_point and not is_statistic(n)
                and (self.base is None or n in self.base.shapes)]

    def task_vector(self, member: int, name: str) -> Tensor:
        """A member less the base, in float64."""
        assert self.base is not None
        return self.members[member][name].double() - self.base[name].double()


class Merger(ABC):
    """One model from several, tensor by tensor.

    Attributes:
        needs: of ``"base"``, ``"val"`` and ``"train"``, what must be given.
        exactly: number of models it takes; 0 = any.
        statistics: what becomes of batch norm's running statistics, for the user.
        rule: ``"weights"``; rules that learn tasks one after another are ``"continual"``.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    exactly: ClassVar[int] = 0
    statistics: ClassVar[str] = "combined from the models'"
    rule: ClassVar[str] = "weights"

    def prepare(self, models: Models) -> list[str]:
        """Look at the models before the first tensor is combined; returns what to tell the user."""
        return []

    @abstractmethod
    def combine(self, name: str, models: Models) -> Tensor:
        """The merged tensor of a name, in the members' type."""

    def statistic(self, name: str, models: Models) -> Tensor:
        """The merged running statistic of batch normalisation: the members' mean."""
        return mean([m[name] for m in models.members])

    def tensor(self, name: str, models: Models) -> Tensor:
        """The merged tensor of any name; of whole numbers (counts of batches) the largest, elementwise."""
        first = models.members[0]
        if not first.dtypes[name].is_floating_point:
            value = first[name]
            for member in models.members[1:]:
                value = value | member[name] if value.dtype == torch.bool else torch.maximum(value, member[name])
            return value
        if models.base is not None and name not in models.base.shapes:  # a classifier the base does not have
            return mean([m[name] for m in models.members])
        return self.statistic(name, models) if is_statistic(name) else self.combine(name, models)


def accuracy(judge: Judge, weights: Weights, *, merged: bool = True) -> float:
    """Share of held-out samples that are right."""
    return float(np.mean(judge.quality(weights, merged=merged)))


def share(value: float, name: str) -> float:
    """A number in [0, 1], or a UsageError naming the setting."""
    if not 0 <= value <= 1:
        raise UsageError(f"{name} lies between 0 and 1, not at {value}.", where=f"--set {name}")
    return value
