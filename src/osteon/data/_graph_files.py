"""Files of graphs: archives of arrays, and lists of edges with or without a table of nodes. Nothing runs code."""

from __future__ import annotations

import csv
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from osteon.core.errors import DataError
from osteon.data._archive import load, members
from osteon.data.arrays import _labels
from osteon.data.listing import RawLabel
from osteon.modalities.graph import Graph

#: Keys of an archive and the other names they may have.
KEYS: dict[str, tuple[str, ...]] = {
    "edges": ("edge_index",), "features": ("x",), "labels": ("label", "y"), "weights": ("edge_weight",),
    "graph": ("batch",), "class_names": (), "split": (), "ids": (), "nodes": ("num_nodes",),
    "data": ("x_data",), "indices": ("x_indices",), "indptr": ("x_indptr",), "width": (),
    "train_mask": ("train_idx",), "val_mask": ("val_idx",), "test_mask": ("test_idx",)}
#: Headers of a list of edges.
ENDS = ("source", "target")
#: Most nodes of the graphs of a file, and most features of a node.
MOST_NODES, MOST_WIDTH = 10**9, 10**7
TABLES = (".csv", ".tsv")
#: What graphs may be, for messages.
KINDS = (".npz with edges (2, E), features, labels and masks (and `graph`, the graph of each node, for many graphs); a "
         "csv with columns source,target[,weight], beside it nodes.csv with id, label and features; or a folder of "
         "these, one a graph, with a subfolder a class")


@dataclass
class Contents:
    """What a file holds.

    Args:
        graphs: one, or many.
        many: whether samples are graphs, not nodes.
        labels: one a sample, or None.
        class_names: names of integer labels.
        split: part of each sample, or None.
        ids: names of samples, or None.
        notes: what was decided.
    """

    graphs: list[Graph]
    many: bool = False
    labels: list[RawLabel] | None = None
    class_names: list[str] | None = None
    split: list[str] | None = None
    ids: list[str] | None = None
    notes: list[str] = field(default_factory=list)


def has_edges(path: Path) -> bool:
    """Whether a file is one of graphs, by its name and its keys or header alone."""
    try:
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as archive:
                names = {name.removesuffix(".npy") for name in archive.namelist()}
            return bool(names & {"edges", *KEYS["edges"]})
        if path.suffix.lower() in TABLES:
            with path.open(encoding="utf-8-sig") as file:
                head = [cell.strip().strip('"').lower() for cell in file.readline().replace("\t", ",").split(",")]
            return tuple(head[:2]) == ENDS and len(head) <= 3
    except Exception:  # a damaged archive raises about anything; whoever reads it says what is wrong
        return False
    return False


def read_file(path: Path, source: str) -> Contents:
    """The graphs of one file."""
    if path.suffix.lower() == ".npz":
        with path.open("rb") as file:
            parts = load(file, source)
            held = members(parts, getattr(parts, "files", ()), source)
        return from_arrays(held, source)
    return _edge_list(path, source)


def from_arrays(held: Mapping[str, np.ndarray], source: str) -> Contents:
    """Graphs from arrays by the names of :data:`KEYS`; see :data:`KINDS`."""
    given = {key: next((held[name] for name in (key, *others) if name in held), None) for key, others in KEYS.items()}
    edges, notes = given["edges"], list[str]()
    if edges is None:
        raise DataError(f"The archive has no array 'edges'; it has: {', '.join(held) or 'nothing'}.", where=source,
                        fix="Save it with np.savez(path, edges=..., features=..., labels=...).")
    if edges.ndim != 2 or 2 not in edges.shape or edges.dtype.kind not in "iu":
        raise DataError(f"The edges are {edges.dtype} {edges.shape}.", where=source,
                        fix="Give (2, E) or (E, 2) whole numbers of nodes.")
    edges = _whole(edges if edges.shape[0] == 2 else edges.T, "edges", source)
    for name in ("weights", "graph", "nodes", "width", "indices", "indptr", "data"):
        held_one = given[name]
        if held_one is not None and (held_one.dtype.kind not in "iuf" or (
                name in ("nodes", "width") and held_one.size != 1)):
            raise DataError(f"'{name}' is {held_one.dtype} {held_one.shape}.", where=source, fix="Give numbers.")
    features = _features(given, source)
    belongs = given["graph"]
    masks = {k.removesuffix("_mask"): given[k] for k in ("train_mask", "val_mask", "test_mask") if given[k] is not None}
    nodes = _count(given, features, source)
    if not 0 <= nodes <= MOST_NODES:
        raise DataError(f"There are to be {nodes:,} nodes; a graph has 0 to {MOST_NODES:,}.", where=source,
                        fix="Number nodes from 0 without large gaps.")
    if edges.size and (edges.min() < 0 or edges.max() >= nodes):
        raise DataError(f"An edge names node {int(edges.max()) if edges.max() >= nodes else int(edges.min())}, there "
                        f"are {nodes}.", where=source, fix="Number nodes from 0, as the rows of the features.")
    if given["weights"] is not None and given["weights"].shape != (edges.shape[1],):
        raise DataError(f"There are {edges.shape[1]} edges but weights of shape {given['weights'].shape}.",
                        where=source, fix="Give one weight an edge.")
    if given["weights"] is not None and not (np.isfinite(given["weights"]).all() and (given["weights"] > 0).all()):
        raise DataError("Weights of edges must be positive numbers.", where=source, fix="Leave out edges of weight 0.")
    loops = int((edges[0] == edges[1]).sum())
    if loops:
        notes.append(f"edges: {loops:,} from a node to itself are ignored")
    made = Graph.of(edges, nodes, given["weights"], features)
    graphs = [made] if belongs is None else cut_graphs(made, belongs, source)
    samples = nodes if belongs is None else len(graphs)
    names = None if given["class_names"] is None else [str(n) for n in given["class_names"]]
    labels = None
    if given["labels"] is not None:
        labels, names = _labels(given["labels"].reshape(-1) if given["labels"].ndim == 2 and 1 in given["labels"].shape
                                else given["labels"], names, source)
        _fits(labels, samples, "labels", source)
    split = None if given["split"] is None else [str(s) for s in given["split"]]
    if split is None and masks:
        split = _split(masks, samples, source)
    ids = None if given["ids"] is None else [str(s) for s in given["ids"]]
    for name, values in (("split", split), ("ids", ids)):
        _fits(values, samples, name, source)
    return Contents(graphs, belongs is not None, labels, names, split, ids, notes)


def _fits(values: Sequence[Any] | None, samples: int, name: str, source: str) -> None:
    if values is not None and len(values) != samples:
        raise DataError(f"There are {samples:,} samples but {len(values):,} entries in '{name}'.", where=source,
                        fix="Give one a node, or one a graph where there are many graphs.")


def _features(given: Mapping[str, np.ndarray | None], source: str) -> Any:
    """Dense features, compressed rows, or None."""
    dense, data, indices, start = (given[k] for k in ("features", "data", "indices", "indptr"))
    if dense is not None:
        if dense.ndim != 2 or dense.dtype.kind not in "iufb" or not dense.shape[1]:
            raise DataError(f"The features are {dense.dtype} {dense.shape}.", where=source,
                            fix="Give numbers (nodes, features).")
        wrong = None if np.isfinite(dense).all() else int(np.flatnonzero(~np.isfinite(dense).all(1))[0])
        if wrong is not None:
            raise DataError(f"Node {wrong} has a feature that is no number.", where=source,
                            fix="Fill missing features in.")
        return dense
    if data is None or indices is None or start is None:
        return None
    rows = start.ndim == data.ndim == indices.ndim == 1 and len(start) and {start.dtype.kind, indices.dtype.kind} <= {
        *"iu"}
    if not rows or start[0] != 0 or (np.diff(start) < 0).any() or not start[-1] == len(data) == len(indices) or (
            len(indices) and indices.min() < 0) or not np.isfinite(data).all():
        raise DataError("The compressed rows of the features do not fit together.", where=source,
                        fix="Give data and indices as long as the last entry of indptr.")
    width = int(given["width"]) if given["width"] is not None else int(indices.max(initial=-1)) + 1
    if not 0 <= width <= MOST_WIDTH:
        raise DataError(f"There are to be {width:,} features of a node; {MOST_WIDTH:,} is the limit.", where=source,
                        fix="Correct width, or number features without large gaps.")
    if len(indices) and indices.max() >= width:
        raise DataError(f"A feature has number {int(indices.max())}, there are {width}.", where=source,
                        fix="Correct width.")
    return data, indices, start, width


def _count(given: Mapping[str, np.ndarray | None], features: Any, source: str) -> int:
    """How many nodes there are: by features, by graph, by nodes, or by the largest number."""
    known = {"features": None if features is None else len(features[2]) - 1 if isinstance(features, tuple) else
             len(features), "graph": None if given["graph"] is None else len(given["graph"]),
             "nodes": None if given["nodes"] is None else int(given["nodes"]),
             "labels": None if given["labels"] is None or given["graph"] is not None else len(given["labels"])}
    told = {k: v for k, v in known.items() if v is not None}
    if len(set(told.values())) > 1:
        raise DataError("Numbers of nodes differ: " + ", ".join(f"{v} by {k}" for k, v in told.items()) + ".",
                        where=source, fix="Give an entry for every node.")
    edges = given["edges"]
    assert edges is not None
    return next(iter(told.values())) if told else int(edges.max(initial=-1)) + 1


def _whole(values: np.ndarray, name: str, source: str) -> np.ndarray:
    """Whole numbers as int64. Raises DataError where they do not fit."""
    if values.size and values.dtype.kind == "u" and int(values.max()) >= 2**63:
        raise DataError(f"'{name}' holds {int(values.max())}, which is beyond 64 bits.", where=source,
                        fix="Number from 0.")
    return values.astype(np.int64)


def _split(masks: Mapping[str, Any], samples: int, source: str) -> list[str]:
    """Names of parts from masks (bool, one a sample) or lists of numbers; what is in none is ``other``."""
    out = np.full(samples, "other", object)
    for part, mask in masks.items():
        usable = mask.ndim == 1 and mask.dtype.kind in "biu"
        rows = np.flatnonzero(mask) if mask.dtype == bool or not usable else _whole(mask, part, source)
        if not usable or (mask.dtype == bool and len(mask) != samples) or (
                len(rows) and (rows.min() < 0 or rows.max() >= samples)):
            raise DataError(f"The mask of '{part}' is {mask.dtype} {mask.shape}, there are {samples} samples.",
                            where=source, fix="Give one bool a sample, or numbers of samples.")
        twice = out[rows] != "other"
        if twice.any():
            raise DataError(f"Sample {int(rows[twice][0])} is in '{out[rows[twice][0]]}' and in '{part}'.",
                            where=source, fix="Let the masks not overlap.")
        out[rows] = part
    return [str(s) for s in out]


def cut_graphs(made: Graph, belongs: np.ndarray, source: str) -> list[Graph]:
    """The graphs of a union whose nodes say where they belong, (n,) numbers from 0."""
    if belongs.ndim != 1 or belongs.dtype.kind not in "iu" or (
            len(belongs) and not 0 <= belongs.min() <= belongs.max() < len(belongs)):
        raise DataError(f"'graph' is {belongs.dtype} {belongs.shape}.", where=source,
                        fix="Give every node the number of its graph, from 0 without gaps.")
    ends = np.repeat(np.arange(len(made)), made.degrees)
    if (belongs[ends] != belongs[made.near]).any():
        raise DataError("An edge joins nodes of two graphs.", where=source, fix="Correct 'graph'.")
    order = np.argsort(belongs, kind="stable")
    place = np.empty(len(order), np.int64)
    counts = np.bincount(belongs)
    if (counts == 0).any():
        raise DataError(f"Graph {int(np.flatnonzero(counts == 0)[0])} has no node.", where=source,
                        fix="Number graphs from 0 without gaps.")
    out = []
    for mine in np.split(order, counts.cumsum()[:-1]):
        place[mine] = np.arange(len(mine))
        near, at = made.around(mine)
        start = np.concatenate([[0], made.degrees[mine].cumsum()])
        held = made.rows(mine) if made.features is not None else None
        out.append(Graph(start, place[near], None if made.weights is None else made.weights[at], held))
    return out


def _table(path: Path, source: str) -> tuple[list[str], list[list[str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",") if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"The table cannot be read: {error}", where=str(path), fix="Save it as UTF-8 csv.") from error
    if not rows:
        raise DataError("The table is empty.", where=str(path), fix="Give a header and a row for every edge or node.")
    head = [cell.strip() for cell in rows[0]]
    twice = [name for name, count in Counter(name.lower() for name in head).items() if count > 1]
    if twice:
        raise DataError(f"The column '{twice[0]}' occurs twice.", where=str(path), fix="Rename or remove one of them.")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(head):
            raise DataError(f"Row {number} has {len(row)} cells, the header has {len(head)}.", where=str(path),
                            fix="Give every row the cells of the header.")
    return head, [[cell.strip() for cell in row] for row in rows[1:]]


def nodes_beside(path: Path) -> Path | None:
    """The table of nodes that belongs to a list of edges: ``nodes.csv`` beside ``edges.csv``."""
    if path.stem.lower() != "edges":
        return None
    return next((path.with_name(f"nodes{end}") for end in TABLES if path.with_name(f"nodes{end}").is_file()), None)


def _edge_list(path: Path, source: str) -> Contents:
    """A csv of edges, and nodes.csv beside it where there is one; nodes are numbered in order of that table."""
    head, rows = _table(path, source)
    if tuple(h.lower() for h in head[:2]) != ENDS or len(head) > 3:
        raise DataError(f"The columns are {', '.join(head)}.", where=source,
                        fix="A list of edges has the columns source, target and by choice weight.")
    beside, known = nodes_beside(path), dict[str, int]()
    table: dict[str, list[str]] = {}
    if beside is not None:
        names, cells = _table(beside, source)
        table = {n.lower(): list(column) for n, column in zip(names, zip(*cells, strict=True), strict=False)}
        if "id" not in table:
            raise DataError("The table of nodes has no column 'id'.", where=str(beside), fix="Name nodes as edges do.")
        known = {name: i for i, name in enumerate(table["id"])}
        if len(known) < len(cells):
            raise DataError("A node occurs twice.", where=str(beside), fix="Give every node one row.")
    for number, row in enumerate(rows, 2):
        for name in row[:2]:
            if not name:
                raise DataError(f"Row {number} names no node.", where=source, fix="Fill it in or remove the row.")
            if name not in known:
                if beside is not None:
                    raise DataError(f"Row {number} names the node '{name}', which {beside.name} does not have.",
                                    where=source, fix="Add it there.")
                known[name] = len(known)
    held: dict[str, np.ndarray] = {
        "edges": np.array([[known[a], known[b]] for a, b, *_ in rows], np.int64).reshape(-1, 2).T,
        "nodes": np.array(len(known)), "ids": np.array(list(known))}
    if len(head) == 3:
        held["weights"] = _numbers([row[2] for row in rows], head[2], source)
    labels = table.pop("label", None)
    if "split" in table:
        held["split"] = np.array(table.pop("split"))
    table.pop("id", None)
    if table:
        held["features"] = np.stack([_numbers(c, n, str(beside)) for n, c in table.items()], 1)
    made = from_arrays(held, source)
    made.labels = None if labels is None else [cell or None for cell in labels]
    return made


def _numbers(cells: Sequence[str], name: str, where: str) -> np.ndarray:
    try:
        return np.array([float(cell) for cell in cells], np.float32)
    except ValueError as error:
        raise DataError(f"Column '{name}' holds something that is no number: {error}.", where=where,
                        fix="Features of nodes and weights of edges are numbers.") from error
