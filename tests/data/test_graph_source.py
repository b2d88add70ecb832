"""Reading graphs: neighbourhoods by hand, every kind of source, what is refused, and reading like other data."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from osteon.core.errors import DataError, UsageError
from osteon.data import open_source
from osteon.data.graph import save_graphs
from osteon.data.leaks import transductive
from osteon.modalities.graph import Graph, reach, whole

#: 0 - 1, 0 - 2, 0 - 3, 1 - 2, 1 - 4, 3 - 5, 5 - 6, and 7 alone
EDGES = np.array([[0, 1], [0, 2], [0, 3], [1, 2], [1, 4], [3, 5], [5, 6]]).T
X = np.eye(8, 3, dtype=np.uint8)


def write(folder: Path, name: str = "g.npz", **arrays) -> Path:
    path = folder / name
    np.savez(path, **{"edges": EDGES, "features": X, "labels": np.arange(8) % 2, **arrays})
    return path


def test_edges_are_undirected_once_and_without_loops():
    graph = Graph.of(np.array([[0, 1, 1, 2, 2], [1, 0, 1, 1, 1]]), 4, np.array([1.0, 3.0, 9.0, 2.0, 1.0]))
    assert graph.degrees.tolist() == [1, 2, 1, 0]
    assert graph.block(np.array([2, 1, 0])).tolist() == [[0, 2, 0], [2, 0, 3], [0, 3, 0]]
    assert graph.block(np.array([3, 0])).tolist() == [[0, 0], [0, 0]]


def test_nodes_come_in_breadth_first_order_by_the_stated_rule():
    graph = Graph.of(EDGES, 8)
    assert reach(graph, 0, 0, 99).tolist() == [0, 2, 3, 1, 4, 5, 6]  # 2, 3 and 1 with 2, 2 and 3 edges
    assert reach(graph, 0, 1, 99).tolist() == [0, 2, 3, 1] and reach(graph, 0, 2, 5).tolist() == [0, 2, 3, 1, 4]
    assert reach(graph, 7, 2, 9).tolist() == [7]
    assert reach(graph, 4, 2, 99).tolist() == [4, 1, 2, 0]
    square = Graph.of(np.array([[0, 0, 0, 1, 2, 3], [1, 2, 3, 4, 4, 5]]), 6)
    assert reach(square, 0, 2, 5).tolist() == [0, 1, 2, 3, 4]  # 4 has two edges to what is there, 5 one
    assert whole(graph, 99).tolist() == [0, 2, 3, 1, 4, 5, 6, 7] and whole(graph, 3).tolist() == [0, 2, 3]


def test_a_sample_is_a_node_with_what_surrounds_it(tmp_path):
    data = open_source(write(tmp_path, train_mask=np.arange(8) < 3, test_mask=np.arange(8) > 5), cache=False)
    assert data.modality == "graph" and data.images.dtype == np.uint8 and len(data) == 8
    size = data.spec.extent[0]
    assert size == 6 and data.spec.channels == 3 + size and data.spec.scale == 1.0
    sample = data.images[4]
    order = [4, 1, 2, 0]
    assert sample[:3, :4].T.tolist() == X[order].tolist() and not sample[:, 4:].any()
    want = np.eye(4) + Graph.of(EDGES, 8).block(np.array(order))
    assert sample[3:7, :4].tolist() == want.tolist() and not sample[7:].any()
    assert data.split == ["train"] * 3 + ["other"] * 3 + ["test"] * 2 and data.labels.tolist() == [0, 1] * 4
    assert set(data.spec.mean) == {0.0} and set(data.spec.std) == {1.0} and transductive(data.spec)
    assert any("transductive" in note for note in data.notes)
    assert len(open_source(f"{tmp_path / 'g.npz'}:test", cache=False)) == 2


def test_nodes_and_hops_can_be_asked_for(tmp_path):
    path = write(tmp_path)
    assert open_source(path, cache=False, nodes=3).spec.extent == (3,)
    wide = open_source(path, cache=False, nodes=8, hops=0)
    assert np.einsum("bnn->bn", wide.images[:, 3:]).sum(1).tolist() == [7] * 7 + [1]
    for wrong in ({"nodes": -1}, {"hops": -1}, {"features": "scaled"}):
        with pytest.raises(UsageError):
            open_source(path, cache=False, **wrong)


def test_compressed_rows_weights_and_standardised_features(tmp_path):
    dense = write(tmp_path)
    rows = {"data": np.ones(3, np.uint8), "indices": np.arange(3), "indptr": np.array([0, 1, 2, *[3] * 6]),
            "width": np.array(3)}
    np.savez(tmp_path / "rows.npz", edges=EDGES.T, **rows)
    one, two = (open_source(p, cache=False) for p in (dense, tmp_path / "rows.npz"))
    assert np.array_equal(one.images, two.images)
    weighted = open_source(write(tmp_path, "w.npz", weights=np.arange(7) + 0.5), cache=False)
    assert weighted.images.dtype == np.float32 and 6.5 in weighted.images[6]
    x = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32) * 5 + 2
    path = write(tmp_path, "f.npz", features=x)
    raw, scaled = open_source(path, cache=False), open_source(path, cache=False, features="standardised")
    assert not raw.spec.traits["binary"] and np.allclose(raw.images[0][:3, 0], x[0])
    assert np.allclose(scaled.images[0][:3, 0], (x[0] - x.mean(0)) / x.std(0), atol=1e-5)
    again = open_source(write(tmp_path, "h.npz", features=x + 1), cache=False, like=scaled.spec)
    assert np.allclose(again.images[0][:3, 0], (x[0] + 1 - x.mean(0)) / x.std(0), atol=1e-5)


def test_many_graphs_in_one_file(tmp_path):
    graph = np.array([0, 0, 0, 0, 0, 0, 0, 1])
    data = open_source(write(tmp_path, graph=graph, labels=np.array([1, 0]), split=np.array(["train", "test"])),
                       cache=False)
    assert len(data) == 2 and data.spec.traits["level"] == "graph" and not transductive(data.spec)
    assert data.labels.tolist() == [1, 0] and data.split == ["train", "test"]
    assert np.einsum("bnn->bn", data.images[:, 3:]).sum(1).tolist() == [7, 1]
    with pytest.raises(DataError, match="two graphs"):
        open_source(write(tmp_path, graph=np.array([0, 0, 0, 0, 0, 0, 1, 1]), labels=np.arange(2)), cache=False)


def test_lists_of_edges_with_and_without_nodes(tmp_path):
    (tmp_path / "edges.csv").write_text("source,target,weight\na,b,1\nb,c,2\n")
    bare = open_source(tmp_path / "edges.csv", cache=False)
    assert bare.ids == ["a", "b", "c"] and bare.spec.traits["degrees"] == 3
    assert bare.images[1][:3].T.tolist() == [[0, 0, 1], [0, 1, 0], [0, 1, 0]]
    (tmp_path / "nodes.csv").write_text("id,size,label,split\nc,1,u,train\nb,2,v,train\na,4,u,test\nd,8,v,test\n")
    full = open_source(tmp_path, cache=False)
    assert full.ids == ["c", "b", "a", "d"] and full.labels.tolist() == [0, 1, 0, 1]
    assert full.split == ["train", "train", "test", "test"]
    assert full.images[0][:, 0].tolist() == [1, 1, 2, 0] and full.images[3].tolist()[0] == [8, 0, 0]
    (tmp_path / "nodes.csv").write_text("id,size\nc,1\nb,2\n")
    with pytest.raises(DataError, match="'a'"):
        open_source(tmp_path, cache=False)


def test_a_folder_of_graphs_with_a_subfolder_a_class(tmp_path):
    for i, (part, name) in enumerate([("train", "ring"), ("train", "star"), ("test", "ring"), ("test", "star")]):
        (tmp_path / part / name).mkdir(parents=True)
        (tmp_path / part / name / f"{i}.csv").write_text("source,target\n" + "\n".join(
            f"{j},{(j + 1) % 5 if name == 'ring' else 5}" for j in range(5)))
    data = open_source(tmp_path, cache=False)
    assert data.class_names == ["ring", "star"] and data.labels.tolist() == [0, 1, 0, 1]
    assert data.split == ["test", "test", "train", "train"] and data.spec.traits["level"] == "graph"
    assert len(open_source(f"{tmp_path}:train", cache=False)) == 2


def test_objects_of_pytorch_geometric_are_written_as_archives(tmp_path):
    one = SimpleNamespace(edge_index=torch.from_numpy(EDGES), x=torch.from_numpy(X), y=torch.arange(8) % 2,
                          train_mask=torch.arange(8) < 4, num_nodes=8)
    node = open_source(save_graphs(tmp_path / "one.npz", one), cache=False)
    assert np.array_equal(node.images, open_source(write(tmp_path), cache=False).images)
    assert node.split == ["train"] * 4 + ["other"] * 4
    many = [SimpleNamespace(edge_index=torch.tensor([[0], [1]]), y=torch.tensor([k]), num_nodes=2 + k) for k in (0, 1)]
    data = open_source(save_graphs(tmp_path / "many.npz", many, class_names=("a", "b")), cache=False)
    assert data.class_names == ["a", "b"] and np.einsum("bnn->bn", data.images[:, 2:]).sum(1).tolist() == [2, 3]
    with pytest.raises(UsageError, match="edge_index"):
        save_graphs(tmp_path / "x.npz", object())


def test_other_sources_are_read_like_the_training_data(tmp_path):
    known = open_source(write(tmp_path), cache=False).spec
    more = open_source(write(tmp_path, "more.npz", edges=EDGES[:, :3]), cache=False, like=known)
    assert more.spec.extent == known.extent and more.spec.channels == known.channels
    for change, words in (({"features": np.eye(8, 4)}, "4 features"), ({"features": 0.5 * X}, "0 and 1"),
                          ({"graph": np.zeros(8, int), "labels": np.zeros(1, int)}, "whole graphs")):
        with pytest.raises(DataError, match=words):
            open_source(write(tmp_path, "other.npz", **change), cache=False, like=known)


@pytest.mark.parametrize(("change", "words"), [
    ({"edges": EDGES + 5}, "node 11"), ({"edges": EDGES * 0.5}, "float64"), ({"labels": np.arange(5)}, "differ"),
    ({"weights": np.ones(3)}, "7 edges"), ({"weights": np.zeros(7)}, "positive"),
    ({"features": np.full((8, 2), np.nan)}, "Node 0"), ({"train_mask": np.ones(3, bool)}, "mask"),
    ({"train_mask": np.ones(8, bool), "val_mask": np.ones(8, bool)}, "in 'train' and in 'val'"),
    ({"graph": np.array([0, 0, 0, 0, 0, 0, 0, 2]), "labels": np.arange(3)}, "Graph 1"),
    ({"features": np.array([["a"]] * 8, object)}, "Python objects"),
])
def test_what_does_not_fit_is_named(tmp_path, change, words):
    with pytest.raises(DataError, match=words):
        open_source(write(tmp_path, **change), cache=False)


def test_what_holds_no_graph_is_left_to_others(tmp_path):
    np.savez(tmp_path / "i.npz", image=np.zeros((3, 8, 8), np.uint8))
    assert open_source(tmp_path / "i.npz", cache=False).modality == "image"
    with pytest.raises(DataError, match="no graph"):
        open_source(tmp_path / "i.npz", cache=False, modality="graph")
    with pytest.raises(UsageError, match="size in pixels"):
        open_source(write(tmp_path), cache=False, size=8)


def test_families_are_the_same_every_time():
    one, two = open_source("families:test", cache=False), open_source("families:test", cache=False)
    assert one.fingerprint == two.fingerprint and len(one) == 300 and len(open_source("families:train")) == 700
    there = np.einsum("bnn->bn", one.images[:, one.spec.traits["features"]:]).sum(1)
    assert there.min() >= 8 and there.max() <= 24 and len(one.class_names) == 5
    assert len(np.unique(open_source("families", cache=False).images, axis=0)) == 1000
