"""SimCore: from a large open pool, choose what resembles a small target set.

Kim, Bae & Yun 2023, "Coreset Sampling from Open-Set for Fine-Grained Self-Supervised Learning", arXiv:2303.11101,
algorithm 1.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.coreset import spherical_kmeans, unit_rows
from osteon.parts.neighbours import nearest
from osteon.parts.selection import Pool, Selection

CARD = Card(kind="selector", name="simcore",
            papers=("Coreset Sampling from Open-Set for Fine-Grained Self-Supervised Learning",),
            modalities=("image", "sound", "series", "text", "table", "graph", "points", "volume", "video", "several"),
            differs="with a budget in numbers the rounds go on until it is reached and the last round gives its most "
                    "similar samples (budget auto is the paper's rule, whose reference is the round `patience`, as in "
                    "the authors' code); an optional floor on the similarity, since that rule alone takes `patience` "
                    "rounds from a pool that has nothing close; the order of choice is kept",
            rows=(120,), cost="features of target and pool; k x N x D multiplications")


class SimCore:
    """Rounds of nearest neighbours of the target's cluster centres among the pool, until the rounds get too far.

    Args:
        k: clusters of the target; all its samples where it has no more.
        tau: share of the reference similarity below which a round ends the choice (``--budget auto``).
        patience: the round whose mean similarity is the reference; so many are always taken.
        cap: most samples chosen, as a multiple of the target's size.
        floor: a round also ends the choice when its mean similarity is below this quantile of the target's own
            similarity to its centres; 0 = off.
    """

    needs: ClassVar[tuple[str, ...]] = ("features", "target")

    def __init__(self, *, k: int = 100, tau: float = 0.95, patience: int = 20, cap: float = 50.0,
                 floor: float = 0.0) -> None:
        if k < 1 or patience < 1 or cap <= 0:
            raise UsageError("k and patience are at least 1 and cap is positive.", where="simcore")
        if not 0 <= tau <= 1 or not 0 <= floor < 1:
            raise UsageError("tau and floor are shares in [0, 1].", where="simcore")
        self.k, self.tau, self.patience, self.cap, self.floor = k, tau, patience, cap, floor
        #: mean similarity of each round of the last call
        self.rounds: list[float] = []

    def __call__(self, pool: Pool, budget: int | None, *, seed: int = 0) -> Selection:
        """Rows by round and within a round by similarity; the score is the similarity to the centre that chose it."""
        assert pool.features is not None and pool.target is not None
        target, x = unit_rows(pool.target), unit_rows(pool.features)
        centres = spherical_kmeans(target, self.k, seed)
        cap = min(pool.count, int(self.cap * len(target)))
        least = float(np.quantile((target @ centres.T).max(1), self.floor)) if self.floor else -np.inf
        rows, scores, why = self._rounds(centres, x, budget, budget or max(1, cap), least)
        notes = [f"simcore: {len(self.rounds)} rounds of {len(centres)} centres; mean similarity {self.rounds[0]:.3f} "
                 f"in the first and {self.rounds[-1]:.3f} in the last; stopped: {why}"]
        if self.rounds[0] < float(np.quantile((target @ centres.T).max(1), 0.05)):
            notes.append("WARNING: even the closest samples of the pool are farther from the target's centres than "
                         "95 % of the target: the pool may hold nothing of use")
        return Selection(rows, scores, notes)

    def _rounds(self, centres: np.ndarray, x: np.ndarray, budget: int | None, most: int,
                least: float) -> tuple[np.ndarray, np.ndarray, str]:
        # A centre passes over at most as many samples as are chosen already, so `most` + k candidates are enough.
        similarity, ranked = (t.numpy() for t in nearest(torch.from_numpy(centres), torch.from_numpy(x),
                                                         min(len(x), most + len(centres))))
        place = np.zeros(len(centres), np.int64)
        taken = np.zeros(len(x), bool)
        rows: list[int] = []
        scores: list[float] = []
        self.rounds, reference = [], -np.inf
        while True:
            for c in range(len(centres)):
                while place[c] < ranked.shape[1] and taken[ranked[c, place[c]]]:
                    place[c] += 1
            ready = np.flatnonzero(place < ranked.shape[1])
            if not len(ready):
                return np.array(rows, np.int64), np.array(scores), "the pool is used up"
            found = similarity[ready, place[ready]]
            mean = float(found.mean())
            if budget is None and rows and (mean < self.tau * reference or mean < least):
                return np.array(rows, np.int64), np.array(scores), "a round was too far from the target"
            self.rounds.append(mean)
            if len(self.rounds) == self.patience:
                reference = mean
            for i in np.argsort(-found, kind="stable"):  # two centres may want one sample: it is taken once
                row = int(ranked[ready[i], place[ready[i]]])
                if not taken[row] and len(rows) < most:
                    taken[row] = True
                    rows.append(row)
                    scores.append(float(found[i]))
            if len(rows) >= most:
                why = "the budget is reached" if budget is not None else f"{self.cap:g} times the target's size"
                return np.array(rows, np.int64), np.array(scores), why
