"""TIES: drop the small changes, agree on a sign for each weight, average those that have it.

Yadav et al. 2023, "TIES-Merging: Resolving Interference When Merging Models", arXiv:2306.01708, algorithm 1.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.merging import Merger, Models, share

CARD = Card(kind="merger", name="ties",
            papers=("TIES-Merging: Resolving Interference When Merging Models",), modalities=("any",),
            differs="the sizes that decide what is kept are compared in float32, exactly, by counting their bits in "
                    "two passes over the files instead of sorting one long vector; batch-norm statistics are averaged",
            cost="four passes over the files")


class Ties(Merger):
    """Trim, elect signs, and average disjointly; then add ``scale`` times the result to the base.

    Args:
        keep: share of each model's changes that are kept, the largest ones over all tensors.
        scale: lambda.
    """

    needs: ClassVar[tuple[str, ...]] = ("base",)

    def __init__(self, *, keep: float = 0.2, scale: float = 1.0) -> None:
        self.keep, self.scale = share(keep, "keep"), scale
        if not keep:
            raise UsageError("Keeping nothing leaves the base.", where="--set keep", fix="Use e.g. 0.2.")
        self._least: list[int] = []
        self._majority = 0.0

    def prepare(self, models: Models) -> list[str]:
        """Find each model's threshold and the sign most changes have, which decides where they cancel exactly."""
        self._least = [_threshold(models, i, self.keep) for i in range(len(models.members))]
        balance = sum(float(self._trimmed(name, models).sum(0).sign().sum()) for name in models.trained)
        self._majority = 1.0 if balance > 0 else -1.0 if balance < 0 else 0.0
        return []

    def combine(self, name: str, models: Models) -> Tensor:
        """Base plus the mean, at each weight, of the kept changes that have the elected sign."""
        assert models.base is not None
        base = models.base[name]
        changes = self._trimmed(name, models)
        sign = changes.sum(0).sign()
        sign = torch.where(sign == 0, torch.full_like(sign, self._majority), sign)
        agrees = (changes.sign() == sign) & (changes != 0)
        average = (changes * agrees).sum(0) / agrees.sum(0).clamp(min=1)
        return (base.double() + self.scale * average).to(base.dtype)

    def _trimmed(self, name: str, models: Models) -> Tensor:
        """Changes of every model, (T, ...) float64, the small ones 0."""
        rows = []
        for i, least in enumerate(self._least):
            change = models.task_vector(i, name)
            rows.append(torch.where(_bits(change) >= least, change, torch.zeros_like(change)))
        return torch.stack(rows)


def _bits(change: Tensor) -> Tensor:
    """Sizes as whole numbers in the same order: the bits of a float32 that is not negative."""
    return change.abs().to(torch.float32).contiguous().view(torch.int32)


def _threshold(models: Models, member: int, keep: float) -> int:
    """Bits of the size down to which the ``keep`` largest changes of a model reach, equal ones included."""
    high = torch.zeros(1 << 16, dtype=torch.int64)
    for name in models.trained:
        high += torch.bincount((_bits(models.task_vector(member, name)) >> 16).reshape(-1), minlength=1 << 16)
    wanted = max(1, round(keep * int(high.sum())))
    upper, above = _reach(high, wanted)
    low = torch.zeros(1 << 16, dtype=torch.int64)
    for name in models.trained:
        bits = _bits(models.task_vector(member, name)).reshape(-1)
        low += torch.bincount(bits[bits >> 16 == upper] & 0xFFFF, minlength=1 << 16)
    return (upper << 16) | _reach(low, wanted - above)[0]


def _reach(counts: Tensor, wanted: int) -> tuple[int, int]:
    """The highest bin down to which there are ``wanted`` values, and how many lie above it."""
    from_top = counts.flip(0).cumsum(0)
    place = int((from_top >= wanted).nonzero()[0])
    return len(counts) - 1 - place, int(from_top[place] - counts[len(counts) - 1 - place])
