"""W2PGNN: graphons, distances and mixtures against what is known of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from osteon.core.errors import UsageError
from osteon.evaluators import w2pgnn as w


def drawn(kind: str, count: int, seed: int) -> list[np.ndarray]:
    """Graphs of 20 to 28 nodes from a graphon: dense, sparse, or a core with a rim."""
    rng, out = np.random.default_rng(seed), []
    for _ in range(count):
        n = int(rng.integers(20, 29))
        place = np.arange(n) / n
        chance = {"dense": np.full((n, n), 0.7), "sparse": np.full((n, n), 0.1),
                  "core": np.where((place[:, None] < 0.4) & (place[None] < 0.4), 0.9, 0.15)}[kind]
        edges = np.triu(rng.random((n, n)) < chance, 1).astype(float)
        out.append(edges + edges.T)
    return out


def test_a_graphon_by_hand():
    assert w.graphon([np.ones((6, 6)) - np.eye(6)], 4).max() <= 1
    star = np.zeros((4, 4))
    star[2, [0, 1, 3]] = star[[0, 1, 3], 2] = 1
    assert w.order(star)[0] == 2
    # blocks of log2(4) + 1 = 3 nodes, the hub first: 4 of 9 entries, 1 of 3, 1 of 3, 0
    got = w.graphon([star], 2).numpy()
    np.testing.assert_allclose(got, [[4 / 9, 1 / 3], [1 / 3, 0]])
    twice = w.graphon([star, np.zeros((2, 2))], 2).numpy()
    np.testing.assert_allclose(twice, got / 2)


def test_the_cost_of_a_coupling_against_loops():
    rng = np.random.default_rng(0)
    a, b, plan = (torch.from_numpy(rng.random(s)) for s in ((3, 3), (4, 4), (3, 4)))
    a, b, plan = a + a.T, b + b.T, plan / plan.sum()
    want = sum((a[i, k] - b[j, m]) ** 2 * plan[i, j] * plan[k, m]
               for i in range(3) for j in range(4) for k in range(3) for m in range(4))
    torch.testing.assert_close(w.coupling_cost(a, b, plan), want)


def test_distances_do_not_know_the_order_of_nodes():
    rng = np.random.default_rng(1)
    a = torch.from_numpy(rng.random((12, 12)))
    a = a + a.T
    assert w.distance(a, a) == pytest.approx(0, abs=1e-6)
    constant = torch.zeros(12, 12, dtype=torch.float64)
    assert w.distance(constant, constant + 0.5) == pytest.approx(0.5)
    swap = torch.tensor([1, 0, *range(2, 12)])
    other = a[swap][:, swap]
    as_they_lie = float(w.coupling_cost(a, other, torch.eye(12, dtype=a.dtype) / 12)) ** 0.5
    assert w.distance(a, other) < 0.01 < as_they_lie


def test_plans_have_the_weights_asked_for():
    rng = np.random.default_rng(2)
    a, b = (torch.from_numpy(rng.random((n, n))) for n in (5, 8))
    plan = w.entropic_plan(a + a.T, b + b.T, inner=200)
    torch.testing.assert_close(plan.sum(0), torch.full((8,), 1 / 8, dtype=torch.float64), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plan.sum(1), torch.full((5,), 1 / 5, dtype=torch.float64), rtol=1e-2, atol=1e-3)


def test_a_target_from_the_sources_scores_better_than_a_stranger():
    source = drawn("dense", 12, 0) + drawn("sparse", 12, 1)
    belongs = np.repeat([0, 1], 12)
    near = w.feasibility(source, drawn("dense", 12, 2), groups=belongs, resolution=16)
    far = w.feasibility(source[12:], drawn("dense", 12, 2), groups=belongs[:12], resolution=16)
    assert near.score > far.score + 0.3 and near.score >= near.plain
    assert near.weights[0] > 0.8 and sum(near.weights) == pytest.approx(1) and min(near.weights) >= 0
    assert near.sizes == [12, 12] and far.weights == [1.0]
    both = w.feasibility(source, drawn("dense", 6, 3) + drawn("sparse", 6, 4), groups=belongs, resolution=16)
    assert 0.2 < both.weights[0] < 0.8


def test_scores_do_not_depend_on_the_numbers_of_nodes():
    rng = np.random.default_rng(5)
    source, target = drawn("core", 8, 6), drawn("sparse", 8, 7)
    turned = [g[p][:, p] for g in source for p in [rng.permutation(len(g))]]
    one, two = (w.feasibility(s, target, groups=np.zeros(8), resolution=16) for s in (source, turned))
    assert one.score == pytest.approx(two.score, abs=1e-6)


def test_groups_follow_topology():
    source = drawn("dense", 10, 0) + drawn("sparse", 10, 1)
    belongs = w.group(source, 2)
    assert len(set(belongs[:10])) == len(set(belongs[10:])) == 1 and belongs[0] != belongs[-1]
    assert set(w.group([np.zeros((3, 3))] * 4)) == {0}


def test_nothing_to_compare_is_refused():
    with pytest.raises(UsageError):
        w.feasibility([], drawn("dense", 1, 0))
    with pytest.raises(UsageError):
        w.graphon([], 4)
