from __future__ import annotations

import numpy as np

from osteon.parts.selection import Pool
from osteon.selectors.random import Random


def test_a_smaller_budget_is_a_prefix_and_seeds_differ() -> None:
    large, small = (Random()(Pool(50), n, seed=1).rows.tolist() for n in (30, 10))
    assert large[:10] == small
    assert large != Random()(Pool(50), 30, seed=2).rows.tolist()


def test_every_sample_is_equally_likely() -> None:
    counts = np.zeros(10)
    for seed in range(2000):
        counts[Random()(Pool(10), 3, seed=seed).rows] += 1
    assert np.abs(counts / 2000 - 0.3).max() < 0.05
