"""What the analyses of ``osteon analyse`` look at, and what they say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from osteon.core.run import RunFolder
from osteon.data import Dataset
from osteon.verbs._model import Trained, extract, fit_samples

#: samples a forward pass
BATCH = 256


@dataclass(frozen=True)
class Finding:
    """One number beside the threshold that makes it healthy.

    ``healthy`` is None where no threshold is known: the number is for comparison only.
    """

    what: str
    value: float
    healthy: bool | None
    threshold: str
    source: str


@dataclass
class Section:
    """What one analysis found: findings, a table, a curve, and remarks; ``skipped`` says why it could not run."""

    name: str
    title: str
    findings: list[Finding] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)
    curve: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    skipped: str = ""


@dataclass
class Context:
    """What the analyses look at: a run, samples, and by choice another run and another source."""

    model: Trained
    data: Dataset
    folder: RunFolder
    against: Trained | None = None
    outside: Dataset | None = None
    seed: int = 0
    directions: tuple[int, ...] = (10, 20, 40, 80, 160, 320)
    fit_epochs: int = 20

    @property
    def labels(self) -> np.ndarray | None:
        """(N,) class numbers where every sample has one and there are at least two."""
        y = self.data.labels
        return None if y is None or y.ndim != 1 or len(np.unique(y)) < 2 else y

    def features(self) -> np.ndarray:
        """(N, D) pooled features, computed once."""
        if not hasattr(self, "_features"):
            self._features = extract(self.model.backbone, self.data, self.model.spec)
        return self._features

    def batches(self) -> Iterator[Tensor]:
        """All samples, normalised."""
        for start in range(0, len(self.data), BATCH):
            yield self.images(np.arange(start, min(start + BATCH, len(self.data))))

    def images(self, rows: np.ndarray) -> Tensor:
        """Normalised samples (B, C, *extent)."""
        return fit_samples(self.data, self.model.spec, rows)
