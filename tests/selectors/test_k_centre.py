from __future__ import annotations

import numpy as np
import pytest

from osteon.core.errors import UsageError
from osteon.parts.selection import Pool
from osteon.selectors.k_centre import KCentre

X = np.array([[1, 0], [10, 0.1], [0, 1], [-1, 0.0]], np.float32)


def test_cosine_looks_at_directions_and_euclidean_at_places() -> None:
    start = int(np.random.default_rng(0).integers(4))
    cosine, euclidean = (KCentre(metric=m)(Pool(4, features=X), 3).rows.tolist() for m in ("cosine", "euclidean"))
    assert cosine[0] == euclidean[0] == start
    assert not {0, 1} <= set(cosine)  # nearly one direction: never both among three
    assert 1 in euclidean[:2] or start == 1  # the far one is taken at once


def test_one_of_every_cluster_comes_before_a_second_of_any() -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(6) * 5
    x = np.repeat(centres, 10, 0) + rng.normal(0, 0.05, (60, 6))
    for seed in range(5):
        rows = KCentre()(Pool(60, features=x), 6, seed=seed).rows
        assert sorted(rows // 10) == list(range(6))


def test_scores_fall_and_the_note_gives_the_last() -> None:
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    chosen = KCentre()(Pool(40, features=x), 12)
    assert (np.diff(chosen.scores) <= 1e-6).all() and chosen.scores[0] == chosen.scores[1]
    assert f"{chosen.scores[-1]:.4g}" in chosen.notes[0]
    assert KCentre()(Pool(40, features=x), 1).scores.tolist() == [0]


def test_seeds_begin_elsewhere() -> None:
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    assert len({int(KCentre()(Pool(40, features=x), 1, seed=s).rows[0]) for s in range(10)}) > 4


def test_unknown_metric() -> None:
    with pytest.raises(UsageError, match="no metric 'l1'"):
        KCentre(metric="l1")
