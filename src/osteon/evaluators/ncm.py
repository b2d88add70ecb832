"""Nearest class mean: a test sample belongs to the class whose average feature is closest. No options to tune.

Janson et al. 2022, "A Simple Baseline that Questions the Use of Pretrained-Models in Continual Learning",
arXiv:2210.04428, section 3.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.evaluators._inputs import Array, features, labelled, labels, one_hot

CARD = Card(kind="evaluator", name="ncm",
            papers=("A Simple Baseline that Questions the Use of Pretrained-Models in Continual Learning",),
            modalities=("any",),
            differs="returns softmax(-d^2) over the classes seen, whose order is that of the distances; any pooled "
                    "features instead of the class token of one ViT; with several labels a sample, each label "
                    "compares the mean of samples with it and without it; the paper's headline number is the average "
                    "accuracy over ten incremental steps, this is the accuracy at the end",
            rows=(18,), labels=True, cost="one pass over the features")


class NCM:
    """Score test samples by their distance to the mean of each class.

    Each sample is scaled to length 1, the means are plain averages and are not scaled again, and the distance is
    Euclidean: a class whose samples spread has a shorter mean, and that counts.

    Args:
        normalise: scale every sample to length 1 first (the paper's setting).
    """

    needs = "labels"

    def __init__(self, *, normalise: bool = True) -> None:
        self.normalise = normalise
        self._sums: Tensor | None = None  # (K, D) float64
        self._counts: Tensor | None = None  # (K,)
        self._all: Tensor | None = None  # (D,) sum over every sample, for multi-label
        self._seen = 0
        self._multi = False

    def __call__(self, train_x: Array, train_y: Array, test_x: Array, *, classes: int, seed: int = 0) -> np.ndarray:
        """Probabilities (M, K) for test features (M, D); ``seed`` changes nothing, there is no randomness."""
        x, y, test = labelled(train_x, train_y, test_x, classes)
        return NCM(normalise=self.normalise).partial_fit(x, y, classes=classes).scores(test)

    def partial_fit(self, x: Array, y: Array, *, classes: int) -> NCM:
        """Add a batch: x (B, D), y (B,) or (B, K). Any order and any batches give the same means; returns itself.

        ``classes`` may grow from one call to the next: new classes are appended, old means stay.
        """
        rows = features(x, "x")
        target = labels(y, len(rows), classes)
        if self._sums is None:
            self._multi = target.ndim == 2
            self._sums = torch.zeros(classes, rows.shape[1], dtype=torch.float64, device=rows.device)
            self._counts = torch.zeros(classes, dtype=torch.float64, device=rows.device)
            self._all = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
        assert self._counts is not None and self._all is not None
        if rows.shape[1] != self._sums.shape[1] or classes < len(self._sums) or self._multi != (target.ndim == 2):
            raise UsageError("A batch does not continue the earlier ones: its width, its kind of labels or its number "
                             "of classes differs.", where="partial_fit")
        grown = classes - len(self._sums)
        self._sums, self._counts = F.pad(self._sums, (0, 0, 0, grown)), F.pad(self._counts, (0, grown))
        z, hot = self._prepare(rows), one_hot(target, classes).to(rows.device, torch.float64)
        self._sums = self._sums + hot.T @ z
        self._counts = self._counts + hot.sum(0)
        self._all = self._all + z.sum(0)
        self._seen += len(rows)
        return self

    def scores(self, x: Array) -> np.ndarray:
        """Probabilities (M, K) for features (M, D); 0 for a class not seen yet."""
        if self._sums is None or self._counts is None or self._all is None:
            raise UsageError("There are no class means yet.", where="scores", fix="Call partial_fit first.")
        z = self._prepare(features(x, "x"))
        means = self._sums / self._counts.clamp(min=1)[:, None]
        seen = self._counts > 0
        if not self._multi:
            out = torch.softmax((-_squared(z, means)).masked_fill(~seen, -torch.inf), dim=1)
        else:
            others = (self._seen - self._counts)
            rest = (self._all - self._sums) / others.clamp(min=1)[:, None]
            out = torch.sigmoid(_squared(z, rest) - _squared(z, means))
            out[:, ~seen], out[:, others == 0] = 0.0, 1.0
        return out.float().cpu().numpy()

    def _prepare(self, x: Tensor) -> Tensor:
        x = x.double()
        return F.normalize(x, dim=1, eps=1e-12) if self.normalise else x


def _squared(z: Tensor, means: Tensor) -> Tensor:
    """Squared Euclidean distances, (M, D) and (K, D) -> (M, K)."""
    return (z.square().sum(1)[:, None] + means.square().sum(1) - 2 * z @ means.T).clamp(min=0)
