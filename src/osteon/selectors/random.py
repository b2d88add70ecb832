"""Random choice: the control every selection has to beat."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from osteon.core.card import Card
from osteon.parts.selection import Pool, Selection, need_number

CARD = Card(kind="selector", name="random", papers=(), modalities=("any",),
            differs="nothing known: every subset of the size asked for is equally likely",
            cost="none")


class Random:
    """Choose samples with equal probability."""

    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, pool: Pool, budget: int | None, *, seed: int = 0) -> Selection:
        """Rows drawn without repeats by the seed; with one seed a smaller budget is a prefix of a larger one."""
        count = need_number(budget, "random")
        return Selection(np.random.default_rng(seed).permutation(pool.count)[:count].astype(np.int64))
