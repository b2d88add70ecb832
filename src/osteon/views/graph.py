"""Views of graphs: edges and nodes taken away, columns of features hidden, and connected parts.

Edges and columns: Zhu et al. 2020 (GRACE, arXiv:2006.04131, section 3.2), which Thakoor et al. 2021 (BGRL,
arXiv:2102.06514) share; nodes and connected parts: You et al. 2020 (GraphCL, arXiv:2010.13902, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from osteon.core.errors import UsageError
from osteon.parts.graphs import adjacency_of, assemble, features_of, present_of
from osteon.parts.types import DataSpec, Draws, Geometry, View
from osteon.views.crop import full_boxes


@dataclass(frozen=True)
class GraphPlan:
    """What one view consists of, in the order in which it is done.

    Args:
        part: share of the nodes that a connected part keeps; it grows at random from the node a sample is about, or
            from any node of a whole graph.
        nodes: share of the nodes that are taken away, never the node a sample is about.
        edges: probability with which an edge is taken away.
        columns: probability with which a feature is 0 at every node of a sample.
    """

    part: float = 1.0
    nodes: float = 0.0
    edges: float = 0.0
    columns: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.part <= 1 and all(0 <= share < 1 for share in (self.nodes, self.edges, self.columns))):
            raise UsageError(f"Shares of {self.part:g} kept and {self.nodes:g}, {self.edges:g}, {self.columns:g} taken "
                             "away are impossible.", where="views of graph",
                             fix="min_scale and global_scale lie in (0, 1]; strength times what they leave in [0, 1).")

    def view(self, x: Tensor, spec: DataSpec, draws: Draws) -> View:
        """Draw and compute the view of graphs (B, F + N, N); ``params`` holds which nodes and columns are left."""
        flip = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        whole = Geometry(full_boxes(len(x), x.device), flip)
        if self == GraphPlan():
            return View(x, whole)
        features, adjacency, present = features_of(x), adjacency_of(x), present_of(x)
        params, root = dict[str, Tensor](), spec.traits.get("level") == "node"
        left = present
        if self.part < 1:
            left = left & grown(adjacency, left, self.part, draws.fork("part"), root=root)
        if self.nodes:
            left = left & ~dropped(left, self.nodes, draws.fork("nodes"), root=root)
        if self.edges:
            noise = draws.fork("edges").rand(x.shape[2], x.shape[2]).to(x.device).triu(1)
            adjacency = adjacency * (noise + noise.transpose(1, 2) >= self.edges)
        if self.columns:
            params["columns"] = draws.fork("columns").rand(features.shape[2]).to(x.device) >= self.columns
            features = features * params["columns"][:, None]
        if left is not present:
            params["nodes"] = left
            features = features * left[..., None]
            adjacency = adjacency * (left[..., None] & left[:, None])
        return View(assemble(features, adjacency, left), whole, params)


def dropped(present: Tensor, share: float, draws: Draws, *, root: bool) -> Tensor:
    """(B, N) bool, True for the rounded share of the nodes that go; one always stays, with ``root`` the first."""
    noise = draws.rand(present.shape[1]).to(present.device)
    if root:
        noise = torch.cat([torch.ones_like(noise[:, :1]), noise[:, 1:]], 1)  # the largest there is
    count = present.sum(1)
    go = torch.minimum((share * count).round().long(), (count - 1).clamp(min=0))
    rank = noise.masked_fill(~present, torch.inf).argsort(1).argsort(1)
    return present & (rank < go[:, None])


def grown(adjacency: Tensor, present: Tensor, share: float, draws: Draws, *, root: bool) -> Tensor:
    """(B, N) bool, True for a connected part of the rounded share of the nodes, at least one.

    Every node takes a random time (exponential) to be entered once a neighbour is reached; those reached first are
    kept. Where a graph falls apart, the part that holds the start comes first, then nodes at random.
    """
    nodes = present.shape[1]
    wait = -torch.log(draws.rand(nodes).to(adjacency).clamp(min=1e-9))
    begin = draws.rand(nodes).to(adjacency).masked_fill(~present, 2.0).argmin(1)
    if root:
        begin = torch.zeros_like(begin)
    time = torch.full_like(wait, torch.inf).scatter(1, begin[:, None], 0.0)
    joined = adjacency != 0
    for _ in range(nodes):
        before = time
        first = time[:, None].expand(-1, nodes, -1).masked_fill(~joined, torch.inf).amin(2)
        time = torch.minimum(time, first + wait)
        if torch.equal(before, time):
            break
    late = torch.where(time.isinf(), 1e6 + wait, time).masked_fill(~present, torch.inf)
    keep = (share * present.sum(1)).round().long().clamp(min=1)
    return present & (late.argsort(1).argsort(1) < keep[:, None])


def none(spec: DataSpec) -> list[GraphPlan]:
    """No augmentation."""
    return [GraphPlan()]


def crop_flip(spec: DataSpec, *, min_scale: float = 1.0, n_views: int = 1) -> list[GraphPlan]:
    """Nothing, or with ``min_scale`` below 1 a connected part of that share of the nodes (GraphCL)."""
    return [GraphPlan(part=min_scale)] * n_views


def simclr(spec: DataSpec, *, min_scale: float = 0.7, strength: float = 1.0, n_views: int = 2) -> list[GraphPlan]:
    """Views drawn alike. Around a node: edges and columns go (GRACE). Of whole graphs: nodes and edges go (GraphCL).

    Args:
        spec: the data.
        min_scale: share of the edges and columns that stay (of whole graphs as many edges, and of nodes two thirds
            as many go: 20 % by default, as in GraphCL).
        strength: multiplies the share of those that go.
        n_views: number of views.
    """
    return [_corrupt(spec, strength * (1 - min_scale))] * n_views


def _corrupt(spec: DataSpec, go: float) -> GraphPlan:
    if spec.traits.get("level") == "node":
        return GraphPlan(edges=go, columns=go)
    return GraphPlan(nodes=go * 2 / 3, edges=go)


def byol(spec: DataSpec, *, min_scale: float = 0.7, strength: float = 1.0) -> list[GraphPlan]:
    """A pair of which the first loses two thirds as much, the second four thirds (BGRL draws its two views unequally).

    Args:
        spec: the data.
        min_scale: share that stays on average, see :func:`simclr`.
        strength: multiplies the share of what goes.
    """
    go = strength * (1 - min_scale)
    return [_corrupt(spec, go * 2 / 3), _corrupt(spec, go * 4 / 3)]


def multicrop(spec: DataSpec, *, style: str = "swav", n_local: int = 4, stride: int = 1, global_scale: float = 0.7,
              strength: float = 1.0) -> list[GraphPlan]:
    """Two views of all nodes, then ``n_local`` of a connected half (GraphCL's subgraphs).

    Args:
        spec: the data.
        style: accepted for the sake of images, without effect.
        n_local: number of views of half of the nodes.
        stride: accepted for the sake of images, without effect.
        global_scale: share that stays in a whole view, see :func:`simclr`.
        strength: multiplies the share of what goes.
    """
    go = strength * (1 - global_scale)
    part = _corrupt(spec, go / 2)
    return [_corrupt(spec, go)] * 2 + [GraphPlan(0.5, 0.0, part.edges, part.columns)] * n_local


def supervised(spec: DataSpec, *, min_scale: float = 0.9, strength: float = 1.0) -> list[GraphPlan]:
    """A tenth of edges and columns go (of whole graphs: of the edges, and fewer nodes), for training with labels."""
    return [_corrupt(spec, strength * (1 - min_scale))]


#: Recipe name -> function of the data and keyword options that plans its views.
RECIPES: dict[str, Callable[..., list[GraphPlan]]] = {
    "none": none, "crop_flip": crop_flip, "simclr": simclr, "byol": byol, "multicrop": multicrop,
    "supervised": supervised,
}
