"""k-centre: cover the pool, so that every sample left out has a chosen one near it.

Sener & Savarese 2018, "Active Learning for Convolutional Neural Networks: A Core-Set Approach", arXiv:1708.00489,
algorithm 1; the greedy rule is Gonzalez's of 1985.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.coreset import farthest_first, unit_rows
from osteon.parts.selection import Pool, Selection, need_number

CARD = Card(kind="selector", name="k_centre",
            papers=("Active Learning for Convolutional Neural Networks: A Core-Set Approach",
                    "Clustering to Minimize the Maximum Intercluster Distance"),
            modalities=("image", "sound", "series", "text", "table", "graph", "points", "volume", "video", "several"),
            differs="the greedy 2-approximation alone, without the paper's mixed-integer refinement and outlier bound; "
                    "there is no labelled start, so the first centre is drawn by the seed; rows of unit length by "
                    "default; features are those of a run, or of what costs no training (small pictures; a control of "
                    "another modality)",
            cost="N x budget x D multiplications")


class KCentre:
    """Choose each sample as far as possible from all chosen before.

    Args:
        metric: ``"cosine"`` compares features of unit length, ``"euclidean"`` as they are.
    """

    needs: ClassVar[tuple[str, ...]] = ("features",)

    def __init__(self, *, metric: Literal["cosine", "euclidean"] = "cosine") -> None:
        if metric not in ("cosine", "euclidean"):
            raise UsageError(f"There is no metric {metric!r}.", where="metric", fix="Use cosine or euclidean.")
        self.metric = metric

    def __call__(self, pool: Pool, budget: int | None, *, seed: int = 0) -> Selection:
        """Rows in the order of choice; the score is the distance to the nearest one chosen before."""
        assert pool.features is not None
        count = need_number(budget, "k_centre")
        x = unit_rows(pool.features) if self.metric == "cosine" else np.asarray(pool.features, np.float32)
        rows, distances = farthest_first(x, count, int(np.random.default_rng(seed).integers(pool.count)))
        note = f"every chosen sample lies at least {distances[-1]:.4g} from those chosen before it"
        # The first has no predecessor; its score is the largest there is, so that the column stays finite and falls.
        distances[0] = distances[1] if len(distances) > 1 else 0.0
        return Selection(rows, distances, [note] if count > 1 else [])
