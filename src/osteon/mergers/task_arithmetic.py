"""Task arithmetic: add what each fine-tuning changed to the common start.

Ilharco et al. 2023, "Editing Models with Task Arithmetic", arXiv:2212.04089, section 2.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from osteon.core.card import Card
from osteon.parts.merging import Merger, Models, accuracy
from osteon.parts.state_algebra import weighted

CARD = Card(kind="merger", name="task_arithmetic",
            papers=("Editing Models with Task Arithmetic",), modalities=("any",),
            differs="without a scale and without --val, the scale is 1 / number of models, at which it is the uniform "
                    "soup (the paper always chooses it on held-out samples)",
            cost="one pass over the files; with --val, 20 evaluations")

#: scales tried on --val, as in the paper's code
GRID = tuple(i / 20 for i in range(1, 21))


class TaskArithmetic(Merger):
    """``base + scale * sum of (model - base)``.

    Args:
        scale: lambda; None chooses it from 0.05, 0.1, ... 1 on ``--val``, or takes 1 / number of models without.
            Negative values subtract what was learned.
    """

    needs: ClassVar[tuple[str, ...]] = ("base",)

    def __init__(self, *, scale: float | None = None) -> None:
        self.scale = scale
        self._used = 0.0

    def prepare(self, models: Models) -> list[str]:
        """Choose the scale; of equal ones the smallest."""
        if self.scale is not None:
            self._used = self.scale
            return []
        if models.judge is None:
            self._used = 1 / len(models.members)
            return [f"scale: {self._used:.3g}, 1 / number of models (rule: neither a scale nor --val was given), so "
                    "this is the uniform soup"]
        scores = {}
        for scale in GRID:
            self._used = scale
            scores[scale] = accuracy(models.judge, lambda name: self.tensor(name, models))
        self._used = max(GRID, key=lambda s: (scores[s], -s))
        return [f"scale: {self._used:g}, the best of {len(GRID)} on --val ({scores[self._used]:.2%})"]

    def combine(self, name: str, models: Models) -> Tensor:
        """Written as a weighted sum of the models themselves, which loses nothing where the base's weight is 0."""
        assert models.base is not None
        count = len(models.members)
        rest = 0.0 if self._used == 1 / count else 1 - self._used * count
        return weighted([(rest, models.base[name]), *((self._used, m[name]) for m in models.members)])
