from __future__ import annotations

import numpy as np
import pytest

from osteon.core.errors import UsageError
from osteon.parts.coreset import spherical_kmeans, unit_rows
from osteon.parts.selection import Pool
from osteon.selectors.simcore import SimCore


def planted(alike: int = 60, foreign: int = 240, seed: int = 0) -> Pool:
    """A target in one corner of the sphere; the pool's first samples are like it."""
    rng = np.random.default_rng(seed)
    near = lambda n: np.array([4, 0, 0, 0, 0, 0.0]) + rng.normal(0, 0.7, (n, 6))  # noqa: E731
    x = np.concatenate([near(alike), rng.normal(0, 1, (foreign, 6)) - [3, 0, 0, 0, 0, 0]])
    return Pool(alike + foreign, features=x.astype(np.float32), target=near(30).astype(np.float32))


def plain(pool: Pool, k: int, budget: int, seed: int = 0) -> list[int]:
    """The rounds, written out: every centre takes its most similar free sample."""
    centres, x = spherical_kmeans(pool.target, k, seed), unit_rows(pool.features)
    chosen: list[int] = []
    while len(chosen) < budget:
        similarity = centres @ x.T
        similarity[:, chosen] = -np.inf
        best = similarity.argmax(1)
        for c in np.argsort(-similarity.max(1), kind="stable"):
            if int(best[c]) not in chosen:
                chosen.append(int(best[c]))
    return chosen[:budget]


@pytest.mark.parametrize("budget", [1, 5, 17, 100, 300])
def test_rounds_are_the_plain_ones(budget: int) -> None:
    pool = planted()
    assert SimCore(k=8)(pool, budget).rows.tolist() == plain(pool, 8, budget)


def test_what_is_like_the_target_comes_first() -> None:
    pool = planted()
    method = SimCore(k=10)
    chosen = method(pool, 50)
    assert (chosen.rows < 60).all()
    assert (np.diff(method.rounds) <= 1e-6).all()
    x = unit_rows(pool.features)[chosen.rows]
    assert np.allclose(chosen.scores, (x @ spherical_kmeans(pool.target, 10, 0).T).max(1), atol=0.2)
    assert not any("WARNING" in n for n in chosen.notes)


def test_auto_stops_where_similarity_falls_under_tau_times_round_patience() -> None:
    method = SimCore(k=5, patience=3)
    chosen = method(planted(), None)
    rounds = method.rounds
    assert 3 <= len(rounds) and min(rounds[3:]) >= 0.95 * rounds[2]
    assert "a round was too far" in chosen.notes[0] and 40 <= len(chosen.rows) <= 75
    longer = SimCore(k=5, patience=3)
    longer(planted(), len(chosen.rows) + 30)
    assert longer.rounds[len(rounds)] < 0.95 * rounds[2]  # the next round would have been the first too low
    loose = SimCore(k=5, patience=3, tau=0.5)
    assert len(loose(planted(), None).rows) > len(chosen.rows)


def test_the_reference_is_round_patience_and_so_many_are_always_taken() -> None:
    method = SimCore(k=2, patience=20, tau=1.0)
    chosen = method(planted(), None)
    assert len(method.rounds) >= 20 and len(chosen.rows) >= 20


def test_cap_floor_and_a_used_up_pool() -> None:
    assert len(SimCore(k=5, cap=0.5)(planted(), None).rows) == 15
    assert "0.5 times the target's size" in SimCore(k=5, cap=0.5)(planted(), None).notes[0]
    small = Pool(3, features=planted().features[:3], target=planted().target)
    used = SimCore(k=5, tau=0.0)(small, None)
    assert sorted(used.rows.tolist()) == [0, 1, 2]
    foreign = Pool(240, features=planted().features[60:], target=planted().target)
    open_end, floored = SimCore(k=5)(foreign, None), SimCore(k=5, floor=0.05)(foreign, None)
    assert len(open_end.rows) > 50 and len(floored.rows) <= 5  # the published rule takes 20 rounds of anything
    assert any("nothing of use" in n for n in open_end.notes)


def test_lengths_do_not_matter() -> None:
    pool = planted()
    stretched = Pool(pool.count, features=pool.features * np.linspace(0.1, 9, 300)[:, None].astype(np.float32),
                     target=pool.target * 3)
    assert SimCore(k=8)(pool, 40).rows.tolist() == SimCore(k=8)(stretched, 40).rows.tolist()


@pytest.mark.parametrize("bad", [{"k": 0}, {"patience": 0}, {"cap": 0.0}, {"tau": 1.5}, {"floor": 1.0}])
def test_wrong_options(bad: dict) -> None:
    with pytest.raises(UsageError):
        SimCore(**bad)
