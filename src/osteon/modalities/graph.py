"""Graphs: the neighbourhood of a node, or a whole small graph, as one array, and what costs little to know of them.

A sample is (F + N, N): the F features of N nodes, a column each, over the symmetric adjacency, whose diagonal is 1 for
nodes that exist. Of one large graph every node is a sample, its neighbourhood, the node itself first.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from osteon.modalities._base import Control
from osteon.parts.types import DataSpec

#: What several samples are called.
SAMPLES = "graphs"
#: Most nodes of a sample, unless more are asked for.
MOST = 64
#: Most columns of degrees, where nodes have no features.
DEGREES = 32
#: How a graph becomes an array; printed.
RULES = ("edges are undirected, each once, without self-loops; the nodes of a sample come in breadth-first order from "
         "the node it is about (of whole graphs: the one with most edges). Of nodes equally far, those with more edges "
         "to nodes already there come first, then those with fewer edges, then the lower number; what does not fit is "
         "left out. Nodes without features get their degree as 0 and 1")
#: Rounds and labels of the Weisfeiler-Lehman histogram.
WL_ROUNDS, WL_LABELS = 3, 512
#: Features up to which controls are rotated.
WIDEST = 4096


@dataclass
class Graph:
    """An undirected graph by the neighbours of every node (compressed rows).

    Args:
        start: (n + 1,) where each node's neighbours begin.
        near: (2 E,) neighbours, ascending within a node.
        weights: (2 E,) float32 beside ``near``, or None: all 1.
        features: (n, F), a row a node; compressed rows (data, indices, start, F); or None.
    """

    start: np.ndarray
    near: np.ndarray
    weights: np.ndarray | None = None
    features: np.ndarray | tuple[np.ndarray, np.ndarray, np.ndarray, int] | None = None

    @classmethod
    def of(cls, edges: np.ndarray, nodes: int, weights: np.ndarray | None = None,
           features: np.ndarray | tuple[np.ndarray, np.ndarray, np.ndarray, int] | None = None) -> Graph:
        """From edges (2, E) in any direction, repeated or not; of a repeated edge the largest weight counts."""
        a, b = edges.astype(np.int64)
        proper = a != b
        a, b = np.minimum(a, b)[proper], np.maximum(a, b)[proper]
        held = np.ones(len(a), np.float32) if weights is None else weights.astype(np.float32)[proper]
        order = np.lexsort((-held, b, a))
        a, b, held = a[order], b[order], held[order]
        first = np.ones(len(a), bool)
        first[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1])
        a, b, held = a[first], b[first], held[first]
        tail, head, both = np.concatenate([a, b]), np.concatenate([b, a]), np.concatenate([held, held])
        order = np.lexsort((head, tail))
        start = np.concatenate([[0], np.bincount(tail, minlength=nodes).cumsum()]).astype(np.int64)
        return cls(start, head[order], None if weights is None else both[order], features)

    def __len__(self) -> int:
        return len(self.start) - 1

    @cached_property
    def degrees(self) -> np.ndarray:
        """Edges of every node, (n,)."""
        return np.diff(self.start)

    @property
    def width(self) -> int:
        """Features of a node, 0 where there are none."""
        if self.features is None:
            return 0
        return self.features[3] if isinstance(self.features, tuple) else self.features.shape[1]

    @cached_property
    def binary(self) -> bool:
        """Whether all features are 0 or 1."""
        values = self.features[0] if isinstance(self.features, tuple) else self.features
        return values is None or bool(np.isin(values, (0, 1)).all())

    def rows(self, nodes: np.ndarray) -> np.ndarray:
        """Features of some nodes, (k, F)."""
        if not isinstance(self.features, tuple):
            assert self.features is not None
            return self.features[nodes]
        data, indices, start, width = self.features
        out = np.zeros((len(nodes), width), data.dtype)
        for row, node in zip(out, nodes, strict=True):
            row[indices[start[node]:start[node + 1]]] = data[start[node]:start[node + 1]]
        return out

    def around(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All neighbours of some nodes one after the other, and their places in ``near``."""
        count = self.degrees[nodes]
        at = np.repeat(self.start[nodes] - np.concatenate([[0], count.cumsum()[:-1]]), count) + np.arange(count.sum())
        return self.near[at], at

    def block(self, nodes: np.ndarray) -> np.ndarray:
        """The adjacency among some nodes, in their order: (k, k) float32."""
        out = np.zeros((len(nodes), len(nodes)), np.float32)
        neighbours, at = self.around(nodes)
        rows = np.repeat(np.arange(len(nodes)), self.degrees[nodes])
        order = np.argsort(nodes)
        place = np.searchsorted(nodes[order], neighbours).clip(max=len(nodes) - 1)
        inside = nodes[order][place] == neighbours
        out[rows[inside], order[place[inside]]] = 1 if self.weights is None else self.weights[at[inside]]
        return out


def reach(graph: Graph, root: int, hops: int, most: int) -> np.ndarray:
    """Nodes within ``hops`` (0: any distance) of a root, nearest first, at most ``most``; see :data:`RULES`."""
    out, count, layer, hop = [np.array([root])], 1, np.array([root]), 0
    seen = {int(root)}
    while count < most and (not hops or hop < hops):
        found, often = np.unique(graph.around(layer)[0], return_counts=True)
        new = np.array([int(v) not in seen for v in found], bool)
        found, often = found[new], often[new]
        if not len(found):
            break
        layer = found[np.lexsort((found, graph.degrees[found], -often))][:most - count]
        out.append(layer)
        seen.update(layer.tolist())
        count, hop = count + len(layer), hop + 1
    return np.concatenate(out)


def whole(graph: Graph, most: int) -> np.ndarray:
    """All nodes of a graph in breadth-first order, each part from its node with most edges, at most ``most``."""
    left, out, count = np.ones(len(graph), bool), [], 0
    while count < most and left.any():
        inside = np.flatnonzero(left)
        part = reach(graph, int(inside[graph.degrees[inside].argmax()]), 0, most - count)
        left[part] = False
        out.append(part)
        count += len(part)
    return np.concatenate(out)


def encode(graph: Graph, nodes: np.ndarray, features: np.ndarray, size: int, dtype: str) -> np.ndarray:
    """A sample (F + N, N) from chosen nodes and their features (k, F), filled up to N = ``size``."""
    count, width = len(nodes), features.shape[1]
    out = np.zeros((width + size, size), dtype)
    out[:width, :count] = features.T
    out[width:width + count, :count] = graph.block(nodes)
    out[width + np.arange(count), np.arange(count)] = 1
    return out


def degree_features(graph: Graph, nodes: np.ndarray, columns: int) -> np.ndarray:
    """Which degree a node has, the last column standing for more: (k, columns) of 0 and 1."""
    return (np.minimum(graph.degrees[nodes], columns - 1)[:, None] == np.arange(columns)).astype(np.uint8)


def _chunks(samples: np.ndarray, spec: DataSpec) -> Any:
    """Features (B, F, N), adjacency (B, N, N) without diagonal and existing nodes (B, N), some samples at a time."""
    width = int(spec.traits["features"])
    for start in range(0, len(samples), 64):
        part = samples[start:start + 64].astype(np.float32)
        adjacency = part[:, width:].copy()
        present = np.einsum("bnn->bn", adjacency) > 0
        np.einsum("bnn->bn", adjacency)[:] = 0
        yield part[:, :width], adjacency, present


def raw_features(samples: np.ndarray, spec: DataSpec) -> np.ndarray:
    """Features of the node a sample is about, or their mean over the nodes of a graph: (N, F)."""
    out = [x[..., 0] if spec.traits["level"] == "node" else x.sum(-1) / present.sum(-1, keepdims=True).clip(1)
           for x, _, present in _chunks(samples, spec)]
    return np.concatenate(out) if out else np.zeros((0, int(spec.traits["features"])), np.float32)


def propagated(samples: np.ndarray, spec: DataSpec) -> np.ndarray:
    """``S^2 X`` with ``S = D^-1/2 (A + I) D^-1/2``, of the node a sample is about or the mean over nodes: (N, F).

    Wu et al. 2019 (Simplifying graph convolutional networks, arXiv:1902.07153, section 2), with degrees in the sample.
    """
    out = []
    for x, adjacency, present in _chunks(samples, spec):
        looped = adjacency + np.eye(adjacency.shape[1], dtype=np.float32) * present[:, None]
        scale = present / np.sqrt(looped.sum(-1).clip(1e-12))
        step = scale[..., None] * looped * scale[:, None]
        if spec.traits["level"] == "node":
            weight = np.einsum("bn,bnm->bm", step[:, 0], step)
        else:
            weight = step.sum(1) / present.sum(-1, keepdims=True).clip(1)
            weight = np.einsum("bn,bnm->bm", weight, step)
        out.append(np.einsum("bfn,bn->bf", x, weight))
    return np.concatenate(out) if out else np.zeros((0, int(spec.traits["features"])), np.float32)


def structure(samples: np.ndarray, spec: DataSpec) -> np.ndarray:
    """Sizes, degrees, triangles and clustering of each sample, and of its first node: (N, 14) float32.

    Nodes, edges, density; mean, deviation and maximum of the degrees; triangles and mean clustering; mean degree of
    neighbours; share of walks of 2 steps that return; and of the first node degree, triangles, clustering, neighbours'
    degree.
    """
    out = []
    for _, adjacency, present in _chunks(samples, spec):
        edge = (adjacency != 0).astype(np.float32)
        count, degree = present.sum(-1).clip(1), edge.sum(-1)
        triangles = np.einsum("bij,bji->bi", edge @ edge, edge) / 2
        clustering = triangles / (degree * (degree - 1) / 2).clip(1)
        beside = (edge @ degree[..., None])[..., 0] / degree.clip(1)
        mean = degree.sum(-1) / count
        spread = np.sqrt(((degree - mean[:, None]) ** 2 * present).sum(-1) / count)
        back = np.einsum("bij,bj->bi", edge, 1 / degree.clip(1)) / degree.clip(1)
        out.append(np.stack([
            count, degree.sum(-1) / 2, mean / (count - 1).clip(1), mean, spread, degree.max(-1),
            triangles.sum(-1) / 3, clustering.sum(-1) / count, beside.sum(-1) / count, back.sum(-1) / count,
            degree[:, 0], triangles[:, 0], clustering[:, 0], beside[:, 0]], 1))
    return np.concatenate(out).astype(np.float32) if out else np.zeros((0, 14), np.float32)


def _labels(samples: np.ndarray, spec: DataSpec) -> list[Counter[tuple[int, ...]]]:
    """Histogram of Weisfeiler-Lehman labels of each sample; a label is (round, hash of what a node sees)."""
    out = []
    for _, adjacency, present in _chunks(samples, spec):
        for one, there in zip(adjacency != 0, present, strict=True):
            label, found = one.sum(-1).astype(np.int64), Counter[tuple[int, ...]]()
            for turn in range(WL_ROUNDS + 1):
                if turn:  # ints and tuples of ints hash alike in every process
                    label = np.array([hash((int(label[i]), *sorted(label[one[i]].tolist()))) for i in range(len(one))])
                found.update((turn, int(v)) for v in label[there])
            out.append(found)
    return out


def wl_histogram(train: np.ndarray, test: np.ndarray, spec: DataSpec) -> tuple[np.ndarray, np.ndarray]:
    """How often the commonest labels of Weisfeiler and Lehman occur, as rows of length 1: (N, K), (M, K).

    Shervashidze et al. 2011 (Weisfeiler-Lehman graph kernels, JMLR 12), section 3; labels start from degrees.
    """
    first, second = _labels(train, spec), _labels(test, spec)
    total = Counter[tuple[int, ...]]()
    for one in first:
        total.update(one.keys())
    place = {label: i for i, (label, _) in enumerate(sorted(total.items(), key=lambda kv: (-kv[1], kv[0]))[:WL_LABELS])}
    parts = []
    for found in (first, second):
        table = np.zeros((len(found), len(place)), np.float32)
        for row, one in zip(table, found, strict=True):
            for label, often in one.items():
                if label in place:
                    row[place[label]] = often
        parts.append(table / np.linalg.norm(table, axis=1, keepdims=True).clip(1e-12))
    return parts[0], parts[1]


def rotated(x: np.ndarray) -> np.ndarray:
    """Features (N, F) turned by a fixed random rotation, which keeps all distances: (N, F).

    Probes divide every feature by its deviation, which makes the rarest words of a bag of words the loudest. After a
    rotation all deviations are alike. (On Cora it takes a linear probe of ``A^2 X`` from 68 to 82 %.)
    """
    return x @ _rotation(x.shape[1]) if x.shape[1] <= WIDEST else x


@lru_cache(maxsize=2)
def _rotation(width: int) -> np.ndarray:
    normal = np.random.default_rng(0).standard_normal((width, width))
    return np.linalg.qr(normal)[0].astype(np.float32)


def _raw(train: np.ndarray, test: np.ndarray, spec: DataSpec) -> tuple[np.ndarray, np.ndarray]:
    return rotated(raw_features(train, spec)), rotated(raw_features(test, spec))


def _propagated(train: np.ndarray, test: np.ndarray, spec: DataSpec) -> tuple[np.ndarray, np.ndarray]:
    return rotated(propagated(train, spec)), rotated(propagated(test, spec))


def _structure(train: np.ndarray, test: np.ndarray, spec: DataSpec) -> tuple[np.ndarray, np.ndarray]:
    first, second = structure(train, spec), structure(test, spec)
    mean, std = first.mean(0), first.std(0)
    std = np.where(std < 1e-6, 1, std)
    return (first - mean) / std, (second - mean) / std


#: Features that cost no training, shown beside every result.
CONTROLS: dict[str, Control] = {"raw features": _raw, "A^2 X": _propagated, "structure statistics": _structure,
                                "Weisfeiler-Lehman labels": wl_histogram}


def backbone_options(spec: DataSpec) -> dict[str, Any]:
    """A node a token; what a sample is summed up by is its first node, of whole graphs the mean of all."""
    node = spec.traits["level"] == "node"
    return {"stem": "nodes", "pool": "first" if node else "mean",
            "stem_options": {"features": int(spec.traits["features"]), "root": node,
                             "binary": bool(spec.traits["binary"])}}


def layout(edges: np.ndarray, rounds: int = 80) -> np.ndarray:
    """Places (n, 2) in [0, 1] by springs: edges pull, all nodes push (Fruchterman & Reingold 1991); from a circle."""
    count = len(edges)
    angle = 2 * np.pi * np.arange(count) * 0.381966  # the golden angle keeps breadth-first neighbours apart
    at = np.stack([np.cos(angle), np.sin(angle)], 1) * np.sqrt((np.arange(count) + 0.5) / max(1, count))[:, None]
    ideal = 1.6 / max(1.0, count**0.5)
    for turn in range(rounds):
        apart = at[:, None] - at[None]
        far = np.sqrt((apart**2).sum(-1)).clip(1e-3)
        force = (apart / far[..., None] * (ideal**2 / far - edges * far**2 / ideal)[..., None]).sum(1) - 0.9 * at
        length = np.sqrt((force**2).sum(-1, keepdims=True)).clip(1e-9)
        at = at + force / length * np.minimum(length, 0.15 * (1 - turn / rounds))
    low, high = at.min(0), at.max(0)
    return (at - low) / (high - low).max().clip(1e-9) + (1 - (high - low) / (high - low).max().clip(1e-9)) / 2


def picture(values: np.ndarray, spec: DataSpec, like: np.ndarray | None = None) -> np.ndarray:
    """Graphs drawn by springs: (B, F + N, N) -> (B, 160, 160, 3) uint8.

    Nodes with the same features have the same colour, nodes without any (hidden ones) are grey, and the node a sample
    is about has a black rim.
    """
    width, side, edge = int(spec.traits["features"]), 160, 10
    tint = np.random.default_rng(0).standard_normal((width, 3)) / max(1, width) ** 0.5
    pages = []
    for features, adjacency, present in _chunks(np.nan_to_num(values), spec):
        length = np.sqrt((features**2).sum(1, keepdims=True))
        phase = np.einsum("bfn,fc->bnc", features / length.clip(1e-6), tint) * width**0.5 * 1.5
        colour = np.where(length.transpose(0, 2, 1) > 1e-6, 140 + 100 * np.tanh(phase), 170).astype(np.uint8)
        for lines, there, paint in zip(adjacency, present, colour, strict=True):
            pages.append(_page(lines[there][:, there], paint[there], side, edge, spec.traits["level"] == "node"))
    return np.stack(pages)


def _page(lines: np.ndarray, paint: np.ndarray, side: int, edge: int, root: bool) -> np.ndarray:
    from PIL import Image, ImageDraw

    page = Image.new("RGB", (side, side), "white")
    if not len(lines):
        return np.asarray(page)
    draw, at = ImageDraw.Draw(page), edge + (side - 2 * edge) * layout((lines != 0).astype(np.float64))
    for i, j in zip(*np.nonzero(np.triu(lines)), strict=True):
        draw.line([tuple(at[i]), tuple(at[j])], fill=(190, 190, 190))
    for i in range(len(at) - 1, -1, -1):
        size = 6 if root and i == 0 else 4
        x, y = at[i]
        draw.ellipse((x - size, y - size, x + size, y + size), fill=tuple(int(c) for c in paint[i]),
                     outline=(0, 0, 0) if root and i == 0 else (110, 110, 110), width=2 if root and i == 0 else 1)
    return np.asarray(page)
