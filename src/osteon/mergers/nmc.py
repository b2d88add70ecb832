"""NMC: remember one mean feature a class and answer with the nearest; nothing can be forgotten.

Janson et al. 2022, "A Simple Baseline that Questions the Use of Pretrained-Models in Continual Learning",
arXiv:2210.04428, section 2.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.continual import Continual, TaskData

CARD = Card(kind="merger", name="nmc",
            papers=("A Simple Baseline that Questions the Use of Pretrained-Models in Continual Learning",),
            modalities=("image",),
            differs="images are normalised with the run's statistics (the authors' script leaves them in [0, 1]); the "
                    "pooled feature of any backbone instead of a ViT's class token; the average accuracy over the "
                    "steps, which the paper reports, and the final accuracy are both given",
            rows=(18,), labels=True, cost="one forward pass a sample")


class NMC(Continual):
    """Nearest class mean of unit-length features, the backbone frozen.

    Args:
        metric: ``"euclidean"`` distance to the means as they are (the paper), or ``"cosine"``. They rank differently:
            the mean of a scattered class is shorter.
    """

    def __init__(self, *, metric: Literal["euclidean", "cosine"] = "euclidean") -> None:
        if metric not in ("euclidean", "cosine"):
            raise UsageError(f"There is no metric {metric!r}.", where="metric", fix="Use euclidean or cosine.")
        self.metric = metric
        #: class -> sum of unit-length features (D,) float64, and their number
        self.sums: dict[int, Tensor] = {}
        self.counts: dict[int, int] = {}

    @torch.no_grad()
    def fit(self, data: TaskData) -> None:
        """Add the samples to the sums of their classes; in any order or portions, the means come out alike."""
        for x, y in data.in_order():
            unit = F.normalize(self.backbone(x).pooled.double(), dim=1)
            for c in y.unique().tolist():
                mine = unit[y == c]
                self.sums[c] = self.sums.get(c, torch.zeros_like(unit[0])) + mine.sum(0)
                self.counts[c] = self.counts.get(c, 0) + len(mine)

    def means(self) -> Tensor:
        """(K, D) in the order of ``seen``."""
        return torch.stack([self.sums[c] / self.counts[c] for c in self.seen])

    def logits(self, x: Tensor) -> Tensor:
        """Minus the distance to each mean, or the cosine."""
        unit, means = F.normalize(self.backbone(x).pooled.double(), dim=1), self.means()
        return unit @ F.normalize(means, dim=1).T if self.metric == "cosine" else -torch.cdist(unit, means)
