"""What scores from early training share: several short trainings, their mean, and what to keep of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor, nn

from osteon.core.errors import UsageError
from osteon.parts.selection import Pool, Selection, by_score, need_number

#: (network, samples (B, C, *extent), labels (B,)) -> scores (B,)
Score = Callable[[nn.Module, Tensor, Tensor], Tensor]


class Early:
    """Score every sample in several classifiers early in their training and keep the highest mean scores.

    Args:
        runs: classifiers trained from different random weights.
        epochs: passes over the pool before scoring.
        keep: ``"hardest"`` keeps the highest scores, ``"easiest"`` the lowest.
        offset: share of all samples left out at that end first; wrong labels score highest.
    """

    needs: ClassVar[tuple[str, ...]] = ("learn",)

    def __init__(self, *, runs: int = 10, epochs: float = 20.0, keep: Literal["hardest", "easiest"] = "hardest",
                 offset: float = 0.0) -> None:
        if runs < 1:
            raise UsageError(f"At least one run is needed, not {runs}.", where="runs")
        if epochs < 0:
            raise UsageError(f"epochs must not be negative, not {epochs}.", where="epochs")
        if keep not in ("hardest", "easiest"):
            raise UsageError(f"There is no end called {keep!r}.", where="keep", fix="Use hardest or easiest.")
        if not 0 <= offset < 1:
            raise UsageError(f"The offset is a share in [0, 1), not {offset}.", where="offset")
        self.runs, self.epochs, self.keep, self.offset = runs, epochs, keep, offset

    def select(self, pool: Pool, budget: int | None, seed: int, score: Score, name: str) -> tuple[Selection, Any]:
        """The chosen rows with their mean score, and the scores of all samples (N,)."""
        count = need_number(budget, name)
        assert pool.learn is not None and pool.labels is not None
        total = np.zeros(pool.count)
        for run in range(self.runs):
            learner = pool.learn(seed * self.runs + run, self.epochs)
            total += np.concatenate([score(learner.network, x, y).double().cpu().numpy()
                                     for x, y in learner.batches()])
        mean = total / self.runs
        rows = by_score(mean, count, keep=self.keep, offset=self.offset)
        return Selection(rows, mean[rows], self._notes(pool, rows)), mean

    def _notes(self, pool: Pool, rows: np.ndarray) -> list[str]:
        labels = np.asarray(pool.labels)
        before = np.bincount(labels)
        after = np.bincount(labels[rows], minlength=len(before))
        share = after[before > 0] / before[before > 0]
        notes = [f"cost of scoring: {self.runs} trainings of {self.epochs:g} epochs each; count it in a comparison at "
                 "equal compute",
                 f"class balance: between {share.min():.0%} and {share.max():.0%} of a class is kept"]
        if self.keep == "hardest" and not self.offset:
            notes.append("the hardest samples include the mislabelled ones: if labels may be wrong, set offset to the "
                         "share that is, and compare with random")
        return notes
