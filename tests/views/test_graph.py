"""Views of graphs: what is taken away and how much of it, that the root stays, and that a row's view is its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from osteon.core.errors import UsageError
from osteon.parts.graphs import adjacency_of, assemble, features_of, present_of
from osteon.parts.types import DataSpec, Draws, Step
from osteon.views import graph as gv
from osteon.views import make_views

N, WIDTH = 12, 4


def spec(level: str = "node") -> DataSpec:
    return DataSpec("graph", WIDTH + N, N, (0.0,) * (WIDTH + N), (1.0,) * (WIDTH + N), 1.0, shape=(N,),
                    traits={"level": level, "features": WIDTH, "binary": False})


def graphs(n: int = 30) -> Tensor:
    """Rings of 12 or 9 nodes with chords, all features different from 0."""
    x = []
    for i in range(n):
        size = 12 if i % 3 else 9
        edges = torch.zeros(N, N)
        for j in range(size):
            for k in (1, 3):
                edges[j, (j + k) % size] = edges[(j + k) % size, j] = 1
        there = torch.arange(N) < size
        x.append(assemble((1 + i + torch.rand(1, N, WIDTH)) * there[:, None], edges[None], there[None]))
    return torch.cat(x)


def draws(n: int = 30, held: list[int] | None = None, step: int = 0) -> Draws:
    return Draws(Step(step, 9, 1), torch.arange(n) if held is None else torch.tensor(held), n)


@pytest.mark.parametrize("level", ["node", "graph"])
@pytest.mark.parametrize(("recipe", "count"), [("none", 1), ("crop_flip", 1), ("simclr", 2), ("byol", 2),
                                               ("multicrop", 6), ("supervised", 1)])
def test_a_rows_view_is_its_own_and_a_graph_again(recipe, count, level):
    x = graphs()
    before, views = x.clone(), make_views(recipe, spec(level))
    whole = views(x, draws())
    assert len(whole) == count and torch.equal(x, before)
    for held in ([5], [7, 2, 11], list(range(20, 30))):
        for part, all_ in zip(views(x[held], draws(held=held)), whole, strict=True):
            assert torch.equal(part.x, all_.x[held])
    for view in whole:
        edges, there = adjacency_of(view.x), present_of(view.x)
        assert torch.equal(edges, edges.transpose(1, 2)) and ((edges == 0) | (edges == adjacency_of(x))).all()
        assert there.any(1).all() and not (there & ~present_of(x)).any()
        assert not edges[~there].any() and not features_of(view.x)[~there].any()
        if level == "node":
            assert there[:, 0].all()
    changed = not torch.equal(views(x, draws(step=1))[0].x, whole[0].x)
    assert changed == (recipe not in ("none", "crop_flip"))
    if not changed:
        assert torch.equal(whole[0].x, x)


def test_edges_and_columns_go_with_their_probability():
    x = graphs(200)
    view = gv.GraphPlan(edges=0.3, columns=0.25).view(x, spec(), draws(200))
    left = adjacency_of(view.x).sum() / adjacency_of(x).sum()
    assert abs(float(left) - 0.7) < 0.03 and torch.equal(present_of(view.x), present_of(x))
    columns = view.params["columns"]
    assert abs(float(columns.float().mean()) - 0.75) < 0.05
    assert torch.equal(features_of(view.x), features_of(x) * columns[:, None])


def test_a_rounded_share_of_the_nodes_goes_and_never_the_root():
    there = torch.arange(N)[None] < torch.tensor([12, 9, 2, 1])[:, None]
    gone = gv.dropped(there, 0.25, draws(4), root=False)
    assert gone.sum(1).tolist() == [3, 2, 0, 0] and not (gone & ~there).any()
    assert gv.dropped(there, 0.9, draws(4), root=False).sum(1).tolist() == [11, 8, 1, 0]
    many = there[:1].expand(500, -1)
    assert not gv.dropped(many, 0.9, draws(500), root=True)[:, 0].any()
    for level, stays in (("node", True), ("graph", False)):
        view = gv.GraphPlan(nodes=0.5).view(graphs(60), spec(level), draws(60))
        assert bool(present_of(view.x)[:, 0].all()) == stays
    often = gv.dropped(many, 0.25, draws(500), root=False).float().mean(0)
    assert (often - 0.25).abs().max() < 0.08


def test_a_part_is_connected_and_of_the_share_asked_for():
    x = graphs(60)
    edges, there = adjacency_of(x), present_of(x)
    for root in (True, False):
        kept = gv.grown(edges, there, 0.5, draws(60), root=root)
        assert kept.sum(1).tolist() == [4 if i % 3 == 0 else 6 for i in range(60)] and not (kept & ~there).any()
        if root:
            assert kept[:, 0].all()
        for i in range(60):
            block = edges[i][kept[i]][:, kept[i]] + torch.eye(int(kept[i].sum()))
            assert (torch.linalg.matrix_power(block, 12) > 0).all()
        assert len({tuple(row) for row in kept[1::3].tolist()}) > 3
    apart, holes = torch.zeros(200, N, N), (torch.arange(N) % 2 == 0).expand(200, -1)
    left = gv.grown(apart, holes, 0.5, draws(200), root=True)  # nothing is reached: three of six nodes at random
    assert (left.sum(1) == 3).all() and not (left & ~holes).any() and left[:, 0].all()
    assert left[:, 2::2].float().mean(0).sub(0.4).abs().max() < 0.12


def test_the_second_of_a_pair_loses_twice_as_much():
    first, second = gv.byol(spec())
    assert (first.edges, second.edges) == pytest.approx((0.2, 0.4)) and first.nodes == 0
    assert gv.byol(spec("graph"))[0].nodes == pytest.approx(0.4 / 3) and gv.byol(spec("graph"))[0].columns == 0
    alike = gv.simclr(spec("graph"))[0]
    assert (alike.nodes, alike.edges, alike.columns) == pytest.approx((0.2, 0.3, 0.0))
    assert [p.part for p in gv.multicrop(spec(), n_local=2)] == [1.0, 1.0, 0.5, 0.5]


@pytest.mark.parametrize("options", [{"min_scale": 0.0}, {"strength": 4.0}])
def test_impossible_shares_are_refused(options):
    with pytest.raises(UsageError):
        make_views("simclr", spec(), **options)
