"""Reading graphs: the nodes of one large graph with what surrounds them, or many small graphs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from osteon.core.errors import DataError, UsageError
from osteon.data._graph_files import KINDS, TABLES, Contents, has_edges, nodes_beside, read_file
from osteon.data.changes import stamp, watch
from osteon.data.codec import Codec, Plan
from osteon.data.folders import SPLIT_NAMES, show, walk
from osteon.data.listing import Listing, RawLabel, digest, unique_ids
from osteon.modalities import Payload, Unreadable
from osteon.modalities.graph import DEGREES, MOST, RULES, Graph, degree_features, encode, reach, whole
from osteon.parts.types import DataSpec

#: Options of ``--set``: nodes of a sample, steps from the node it is about, and how features are scaled.
OPTIONS: dict[str, Any] = {"nodes": 0, "hops": 2, "features": "raw"}
#: Classes of the generated source ``families``.
FAMILIES = ("random", "two groups", "ring", "hubs", "geometric")


class Cut(np.ndarray):
    """What a sample is cut from: the number of its node, (1,) int64, or -1 for the whole graph."""

    graph: Graph

    @classmethod
    def of(cls, graph: Graph, node: int = -1) -> Cut:
        """A cut of a graph."""
        made = np.array([node]).view(cls)
        made.graph = graph
        return made


@dataclass
class Header:
    """What is known of a sample before it is made: its nodes, and its graph's features.

    Args:
        graph: where it comes from.
        node: the node it is about, -1 for none.
    """

    graph: Graph
    node: int


@dataclass
class GraphPlan(Plan):
    """A plan with the mean and deviation of features, where these are standardised."""

    moments: tuple[np.ndarray, np.ndarray] | None = field(default=None)


def list_path(path: Path, source: str, *, asked: bool, options: Mapping[str, Any] | None = None,
              like: DataSpec | None = None) -> Listing | None:
    """The graphs at a path, or None when it holds none (an error when graphs were asked for).

    A file is recognised by an array ``edges`` (or ``edge_index``), or by a header ``source,target``; a folder, by its
    first such file being of that kind.
    """
    if path.is_dir():
        edges = next((path / f"edges{end}" for end in TABLES if (path / f"edges{end}").is_file()), None)
        if edges is not None and has_edges(edges):
            return _from_file(edges, source)
        found = _folder(path, source)
        if found is not None:
            return found
    elif has_edges(path):
        return _from_file(path, source)
    if asked:
        raise DataError("The source holds no graph.", where=source, fix=f"Graphs are {KINDS}.")
    return None


def _from_file(path: Path, source: str) -> Listing:
    beside = nodes_beside(path)
    files = [path, *([beside] if beside is not None else [])]
    watch(*files)
    return listing_of(read_file(path, source), source, stamp(files, "graph-1"))


def listing_of(held: Contents, source: str, mark: str, **more: Any) -> Listing:
    """Samples of what a file holds: its graphs, or the nodes of its one graph."""
    notes = list(held.notes)
    if held.many:
        cuts = [Cut.of(graph) for graph in held.graphs]
        ids = held.ids or [f"graph-{i:06d}" for i in range(len(cuts))]
    else:
        graph = held.graphs[0]
        cuts = [Cut.of(graph, i) for i in range(len(graph))]
        ids = held.ids or [f"node-{i:07d}" for i in range(len(cuts))]
        notes.append(f"graph: one of {len(graph):,} nodes and {len(graph.near) // 2:,} edges; a sample is a node with "
                     "what surrounds it, so the features of test nodes (never their labels) are seen in the samples "
                     "of others: the setting is transductive, and test scores are scores in this graph")
    return Listing(source, unique_ids(ids), lambda i: cuts[i], mark, labels=held.labels, class_names=held.class_names,
                   split=held.split, notes=notes, encoded=True, modality="graph",
                   traits={"level": "graph" if held.many else "node"}, **more)


def _folder(path: Path, source: str) -> Listing | None:
    """A file a graph; a subfolder a class, below folders that are called like parts of data, if there are any."""
    found = walk(path, frozenset((".npz", *TABLES)))
    if not found.files or not has_edges(path.joinpath(*found.files[0][0])):
        return None
    watch(*(path.joinpath(*parts) for parts, _, _ in found.files))
    graphs, labels, splits, ids = list[Graph](), list[RawLabel](), list[str](), list[str]()
    for parts, _, _ in found.files:
        held = read_file(path.joinpath(*parts), f"{source}: {show(parts)}")
        if held.many:
            raise DataError("A file of a folder holds many graphs.", where=f"{source}: {show(parts)}",
                            fix="Give that file as the source, or one graph a file.")
        folders = list(parts[:-1])
        splits.append(folders.pop(0) if folders and folders[0].lower() in SPLIT_NAMES else "")
        labels.append(folders[0] if folders else None)
        ids.append(show(parts))
        graphs.append(held.graphs[0])
    held = Contents(graphs, True, labels if any(labels) else None, None, splits if any(splits) else None, ids)
    made = listing_of(held, source, digest("graph-folder-1", path.absolute(), *found.files))
    made.skipped = list(found.skipped)
    return made


def save_graphs(path: str | Path, graphs: Any, *, class_names: Iterable[str] = ()) -> Path:
    """Write graphs as an archive that :func:`osteon.data.open_source` reads.

    Args:
        path: ends in ``.npz``.
        graphs: an object with ``edge_index`` (2, E) and by choice ``x``, ``y``, ``edge_weight`` and masks, as PyTorch
            Geometric's ``Data`` is, or a list of them (one label a graph). That library is not needed.
        class_names: of the labels.

    Returns:
        The path.
    """
    where, many = Path(path), isinstance(graphs, list | tuple)
    if where.suffix != ".npz":
        raise UsageError("Graphs are saved as .npz.", where=str(path), fix="Let the name end in .npz.")
    parts = [_arrays(one) for one in (graphs if many else [graphs])]
    if not parts:
        raise UsageError("There is no graph.", where=str(path))
    held = parts[0]
    if many:
        if len({frozenset(part) for part in parts}) > 1:
            raise UsageError("Some graphs have features, labels or weights that others lack.", where=str(path),
                             fix="Give all of them the same.")
        counts = np.array([int(part["nodes"]) for part in parts])
        shift = np.concatenate([[0], counts.cumsum()[:-1]])
        held = {"edges": np.concatenate([p["edges"] + s for p, s in zip(parts, shift, strict=True)], 1),
                "graph": np.repeat(np.arange(len(parts)), counts)}
        for key in ("features", "weights"):
            if key in parts[0]:
                held[key] = np.concatenate([part[key] for part in parts])
        if "labels" in parts[0]:
            held["labels"] = np.concatenate([part["labels"].reshape(-1)[:1] for part in parts])
    names = list(class_names)
    np.savez_compressed(where, allow_pickle=False, **held, **({"class_names": np.array(names)} if names else {}))
    return where


def _arrays(one: Any) -> dict[str, np.ndarray]:
    def plain(value: Any) -> np.ndarray:
        return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)

    edges = getattr(one, "edge_index", None)
    if edges is None:
        raise UsageError(f"A {type(one).__name__} has no edge_index.", where="save_graphs",
                         fix="Give objects such as torch_geometric.data.Data.")
    held = {"edges": plain(edges)}
    for name, key in (("x", "features"), ("y", "labels"), ("edge_weight", "weights"), ("train_mask", "train_mask"),
                      ("val_mask", "val_mask"), ("test_mask", "test_mask")):
        if getattr(one, name, None) is not None:
            held[key] = plain(getattr(one, name))
    count = getattr(one, "num_nodes", None)
    if count is None:
        count = len(held["features"]) if "features" in held else int(held["edges"].max(initial=-1)) + 1
    return {**held, "nodes": np.array(int(count))}


def list_families(split: str | None) -> Listing:
    """1,000 generated graphs of 8 to 24 nodes without features: five families with degrees of about four.

    Edges at random; two groups with most edges inside; a ring of near neighbours with some edges elsewhere; hubs that
    new nodes prefer; and points in the plane joined to near ones. No two become the same array. ``train`` (700)
    and ``test`` (300) are a fixed random split.
    """
    rng = np.random.default_rng(0)
    count = 1000
    labels, parts = np.arange(count) % len(FAMILIES), np.where(rng.permutation(count) < 700, "train", "test")
    graphs, known = list[Graph](), set[bytes]()
    for label, seed in zip(labels, rng.integers(2**31, size=count), strict=True):
        draw = np.random.default_rng(seed)
        while True:  # two graphs that become one array would be copies of each other
            graph = _family(int(label), draw)
            mark = graph.block(whole(graph, len(graph))).tobytes()
            if mark not in known:
                break
        known.add(mark)
        graphs.append(graph)
    held = Contents(graphs, True, [int(v) for v in labels], list(FAMILIES), [str(p) for p in parts])
    listing = listing_of(held, "families", "families-2", cached=False)
    return listing.only(split) if split else listing


def _family(kind: int, rng: np.random.Generator) -> Graph:
    """One graph; as many edges as two a node, chosen by the largest of noisy scores of pairs."""
    nodes = int(rng.integers(8, 25))
    score = rng.gumbel(size=(nodes, nodes))
    place = np.arange(nodes)
    if kind == 1:
        side = rng.random(nodes) < 0.5
        score += 2.5 * (side[:, None] == side[None])
    elif kind == 2:
        around = np.abs(place[:, None] - place[None])
        score += 4.0 * (np.minimum(around, nodes - around) <= 2)
    elif kind == 3:
        pull = 1.8 * rng.gumbel(size=nodes)
        score += pull[:, None] + pull[None]
    elif kind == 4:
        at = rng.random((nodes, 2))
        score -= 14.0 * np.sqrt(((at[:, None] - at[None]) ** 2).sum(-1))
    pairs = np.stack(np.triu_indices(nodes, 1))
    chosen = pairs[:, np.argsort(-score[pairs[0], pairs[1]])[:2 * nodes]]
    return Graph.of(rng.permutation(nodes)[chosen], nodes)


def _header(payload: Payload) -> Header:
    if not isinstance(payload, Cut):
        raise Unreadable("is no graph")
    if not len(payload.graph):
        raise Unreadable("has no node")
    return Header(payload.graph, int(payload[0]))


def _whole_number(options: Mapping[str, Any], name: str, least: int) -> int:
    value = int(options[name])
    if value < least:
        raise UsageError(f"{name}={value} is not possible.", where=name, fix=f"Give {least} or more.")
    return value


def _plan(headers: dict[int, Header], *, size: int | None, like: DataSpec | None, source: str,
          options: Mapping[str, Any]) -> GraphPlan:
    """Nodes of a sample, features and their scaling: as in the data the model was trained on, as asked, or by rule."""
    if size is not None:
        raise UsageError("Graphs have no size in pixels.", where="size", fix="Set nodes instead.")
    graphs = list({id(h.graph): h.graph for h in headers.values()}.values())
    level = "node" if next(iter(headers.values())).node >= 0 else "graph"
    widths = {g.width for g in graphs}
    if len(widths) > 1:
        raise DataError(f"Graphs have {min(widths)} to {max(widths)} features.", where=source,
                        fix="Give all nodes the same features.")
    if like is not None:
        return _plan_like(like, graphs, level, widths.pop(), source)
    hops, notes = _whole_number(options, "hops", 0), list[str]()
    count = _nodes(headers, options, hops, level, notes)
    width, degrees = widths.pop(), 0
    if not width:
        degrees = width = min(DEGREES, int(max(g.degrees.max(initial=0) for g in graphs)) + 1)
        notes.append(f"features: none, so the degree as {degrees} columns of 0 and 1 (rule: up to the largest, at most "
                     f"{DEGREES}, the last one for more)")
    binary = all(g.binary for g in graphs)
    scaling = str(options["features"])
    if scaling not in ("raw", "standardised"):
        raise UsageError(f"There is no scaling '{scaling}'.", where="features", fix="Set raw or standardised.")
    traits: dict[str, Any] = {"features": width, "degrees": degrees, "hops": hops, "scaling": scaling,
                              "binary": binary and scaling == "raw"}
    moments = None
    if scaling == "standardised" and not degrees:
        moments = _moments(graphs)
        traits |= {"mean": moments[0].tolist(), "sd": moments[1].tolist()}
        notes.append("features: standardised by the mean and deviation of all nodes of the source")
    elif not degrees:
        notes.append(f"features: {width:,}, {'0 or 1' if binary else 'numbers'}, as they are (features=standardised "
                     "changes that)")
    dtype = "uint8" if traits["binary"] and all(g.weights is None for g in graphs) else "float32"
    return GraphPlan((width + count, count), dtype, traits, notes=notes, moments=moments)


def _plan_like(like: DataSpec, graphs: list[Graph], level: str, width: int, source: str) -> GraphPlan:
    known = dict(like.traits)
    if level != known["level"]:
        word = {"node": "nodes of one graph", "graph": "whole graphs"}
        raise DataError(f"The model was trained on {word[known['level']]}, these are {word[level]}.", where=source,
                        fix="Give data of the same kind.")
    wanted = 0 if known["degrees"] else int(known["features"])
    if width != wanted:
        raise DataError(f"Nodes have {width or 'no'} features, the model was trained on {wanted or 'none'}.",
                        where=source, fix="Give the same features.")
    if known["binary"] and not all(g.binary for g in graphs):
        raise DataError("Features are numbers, the model was trained on 0 and 1.", where=source,
                        fix="Give the same features.")
    moments = (np.array(known["mean"], np.float32), np.array(known["sd"], np.float32)) if "mean" in known else None
    dtype = "uint8" if known["binary"] and all(g.weights is None for g in graphs) else "float32"
    return GraphPlan((like.channels, *like.extent), dtype, known, moments=moments,
                     notes=[f"graphs: {like.extent[0]} nodes, {known['features']} features (rule: as in the data the "
                            "model was trained on)"])


def _nodes(headers: dict[int, Header], options: Mapping[str, Any], hops: int, level: str, notes: list[str]) -> int:
    """Nodes of a sample: as asked, or what nine in ten neighbourhoods (19 in 20 graphs) need, at most 64."""
    asked = _whole_number(options, "nodes", 0)
    if level == "node":
        sizes = np.array([len(reach(h.graph, h.node, hops or 2, 4 * MOST)) for h in headers.values()])
        share, what = 90, f"neighbourhoods of {hops or 2} steps"
    else:
        sizes = np.array([len(h.graph) for h in headers.values()])
        share, what = 95, "graphs"
    rule = f"rule: {share} % of the {what} have no more, at most {MOST}"
    count = max(2, asked or min(MOST, int(np.percentile(sizes, share, method="higher"))))
    reached = "" if level == "graph" else f", up to {hops} steps away" if hops else ""
    notes.append(f"nodes: {count} a sample{reached} ({'as asked' if asked else rule}; {(sizes > count).mean():.0%} of "
                 f"the {what} are larger and cut)")
    return count


def _moments(graphs: list[Graph]) -> tuple[np.ndarray, np.ndarray]:
    total, square, count = 0.0, 0.0, 0
    for graph in graphs:
        for start in range(0, len(graph), 4096):
            rows = graph.rows(np.arange(start, min(start + 4096, len(graph)))).astype(np.float64)
            total, square, count = total + rows.sum(0), square + (rows**2).sum(0), count + len(rows)
    mean = np.asarray(total / count)
    sd = np.sqrt((square / count - mean**2).clip(0))
    return mean.astype(np.float32), np.where(sd < 1e-6, 1, sd).astype(np.float32)


def _convert(payload: Payload, plan: GraphPlan) -> np.ndarray:
    head, size, traits = _header(payload), plan.shape[1], plan.traits
    graph = head.graph
    nodes = whole(graph, size) if head.node < 0 else reach(graph, head.node, int(traits["hops"]), size)
    features = degree_features(graph, nodes, traits["degrees"]) if traits["degrees"] else graph.rows(nodes)
    if plan.moments is not None:
        features = (features - plan.moments[0]) / plan.moments[1]
    return encode(graph, nodes, features, size, plan.dtype)


def _measure(samples: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    """Nothing is left to be done: edges are no amounts, and features are scaled when they are read, if asked."""
    return (0.0,) * samples.shape[1], (1.0,) * samples.shape[1], 1.0


#: Generated sources by name: name -> ``list(split)``.
NAMED = {"families": list_families}
CODEC = Codec(_header, _plan, _convert, _measure, OPTIONS, RULES)
