"""What is known of graphs without training, by hand; the stem of nodes; pictures."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.modalities import find
from osteon.modalities import graph as mg
from osteon.parts.types import DataSpec

N, WIDTH = 5, 2
FULL = mg.Graph.of(np.array([[0, 0, 1, 2], [1, 2, 2, 3]]), 4)  # a triangle with a tail


def spec(level: str = "node", binary: bool = True) -> DataSpec:
    return DataSpec("graph", WIDTH + N, N, (0.0,) * (WIDTH + N), (1.0,) * (WIDTH + N), 1.0, shape=(N,),
                    traits={"level": level, "features": WIDTH, "binary": binary})


def samples() -> np.ndarray:
    """The triangle with its tail, and one node alone; (2, 7, 5) uint8."""
    x = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], np.uint8)
    return np.stack([mg.encode(FULL, np.arange(4), x, N, "uint8"), mg.encode(FULL, np.array([3]), x[:1], N, "uint8")])


def test_raw_features_are_the_roots_or_the_mean():
    assert mg.raw_features(samples(), spec()).tolist() == [[1, 0], [1, 0]]
    assert mg.raw_features(samples(), spec("graph")).tolist() == [[0.5, 0.5], [1, 0]]


def test_two_steps_of_propagation_against_matrices():
    a = FULL.block(np.arange(4)) + np.eye(4)
    step = a / np.sqrt(np.outer(a.sum(0), a.sum(0)))
    x = samples()[0, :WIDTH, :4].T
    want = step @ step @ x
    np.testing.assert_allclose(mg.propagated(samples(), spec())[0], want[0], rtol=1e-5)
    np.testing.assert_allclose(mg.propagated(samples(), spec("graph"))[0], want.mean(0), rtol=1e-5)
    np.testing.assert_allclose(mg.propagated(samples(), spec())[1], [1, 0], rtol=1e-5)


def test_controls_are_turned_so_that_probes_do_not_blow_up_rare_features():
    rng = np.random.default_rng(0)
    x = (rng.random((200, 50)) < np.geomspace(0.005, 0.5, 50)).astype(np.float32)
    turned = mg.rotated(x)
    np.testing.assert_allclose(turned @ turned.T, x @ x.T, atol=1e-3)
    assert turned.std(0).max() / turned.std(0).min() < 3 < x.std(0).max() / max(x.std(0).min(), 1e-3)
    first, second = mg.CONTROLS["A^2 X"](samples(), samples()[:1], spec())
    np.testing.assert_allclose(first[0] @ first[1], np.prod(mg.propagated(samples(), spec()), 0).sum(), rtol=1e-4)
    np.testing.assert_allclose(first[:1], second)


def test_structure_by_hand():
    got = mg.structure(samples(), spec())[0]
    degrees = np.array([2, 2, 3, 1])
    want = [4, 4, 2 / 3, 2, degrees.std(), 3, 1, (1 + 1 + 1 / 3) / 4]
    np.testing.assert_allclose(got[:8], want, rtol=1e-5)
    np.testing.assert_allclose(got[10:], [2, 1, 1, 2.5], rtol=1e-5)
    assert np.isfinite(mg.structure(samples(), spec())).all()


def test_weisfeiler_lehman_labels_tell_what_degrees_do_not():
    hexagon = mg.Graph.of(np.array([[i, (i + 1) % 6] for i in range(6)]).T, 6)
    paths = [mg.Graph.of(np.array(e).T, 6) for e in ([[0, 1], [1, 2], [2, 3], [3, 4], [1, 5]],
                                                     [[0, 1], [1, 2], [2, 3], [3, 4], [2, 5]])]
    x = np.zeros((6, WIDTH), np.uint8)
    wide = DataSpec("graph", WIDTH + 6, 6, (0.0,), (1.0,), 1.0, shape=(6,), traits=dict(spec("graph").traits))
    made = np.stack([mg.encode(g, np.arange(6), x, 6, "uint8") for g in (hexagon, *paths)])
    turned = np.stack([mg.encode(g, np.array([3, 1, 5, 0, 2, 4]), x, 6, "uint8") for g in (hexagon, *paths)])
    first, second = mg.wl_histogram(made, turned, wide)
    np.testing.assert_allclose(first, second)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), 1, rtol=1e-6)
    assert Counter(paths[0].degrees.tolist()) == Counter(paths[1].degrees.tolist())
    assert not np.allclose(first[1], first[2])


def test_a_backbone_is_told_what_a_sample_is_about():
    assert find("graph").backbone_options(spec()) == {
        "stem": "nodes", "pool": "first", "stem_options": {"features": 2, "root": True, "binary": True}}
    assert find("graph").backbone_options(spec("graph"))["pool"] == "mean"


def make(level: str = "node", binary: bool = True):
    torch.manual_seed(0)
    return build_backbone("vit_tiny", channels=WIDTH + N, size=(N,), dim=16, depth=2,
                          **find("graph").backbone_options(spec(level, binary))).eval()


def test_a_token_holds_its_own_node_and_its_place_the_structure():
    x, network = torch.from_numpy(samples()).float(), make()
    moved = x.clone()
    moved[:, :WIDTH, 1] += 1
    changed = (network.stem(moved) != network.stem(x)).any(-1)
    assert changed.tolist() == [[False, True, False, False, False]] * 2
    assert torch.equal(network.places(moved), network.places(x)) and network.place_width == 9
    assert make("graph").place_width == 8
    assert network.present(x).tolist() == [[True] * 4 + [False], [True] + [False] * 4]
    torch.testing.assert_close(network.places(x)[0, :, -1], torch.tensor([1, 1 / 2, 1 / 2, 1 / 3, 0]))


def test_padding_is_not_looked_at_and_nodes_may_be_renumbered():
    x, network = torch.from_numpy(samples()).float(), make("graph")
    order = torch.tensor([2, 0, 3, 1, 4])
    moved = torch.cat([x[:, :WIDTH, order], x[:, WIDTH:][:, order][:, :, order]], 1)
    torch.testing.assert_close(network(moved).pooled, network(x).pooled)
    noisy = x.clone()
    noisy[0, :WIDTH, 4] = 7
    torch.testing.assert_close(network(noisy).pooled, network(x).pooled)
    root = make()
    torch.testing.assert_close(root(x).pooled, root(x).tokens[:, 0])


def test_a_sample_of_which_only_padding_is_visible_has_ordinary_gradients():
    x, network = torch.from_numpy(samples()).float(), make("graph").train()
    network(x[1:], keep=torch.tensor([[2, 4]])).tokens[..., 0].sum().backward()
    assert max(float(p.grad.abs().max()) for p in network.parameters() if p.grad is not None) < 1e3


def test_errors_are_squares_of_numbers_and_cosines_of_bits():
    shown, prediction = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[4.0, 3.0]]])
    assert float(make(binary=False).shown_error(prediction, shown)) == pytest.approx(1.0)
    assert float(make().shown_error(prediction, shown)) == pytest.approx((1 / 25) ** 2, rel=1e-4)
    x = torch.from_numpy(samples()).float()
    network = make()
    assert torch.equal(network.assemble(network.shown(x), x), x)
    assert network.shown_values(torch.tensor([[[-1.0, 2.0]]])).tolist() == [[[0, 1]]]


def test_samples_of_other_graphs_are_refused():
    with pytest.raises(UsageError, match="2 features"):
        make().shown(torch.zeros(1, 4 + N, N))
    with pytest.raises(UsageError):
        build_backbone("vit_tiny", channels=N, size=(N,), stem="nodes")


def test_pictures_colour_by_features_and_mark_the_root():
    x = samples().astype(np.float32)
    pages = mg.picture(x, spec())
    assert pages.shape == (2, 160, 160, 3) and np.array_equal(pages, mg.picture(x, spec()))
    hidden = x.copy()
    hidden[:, :WIDTH] = 0
    assert not np.array_equal(mg.picture(hidden, spec()), pages)
    assert (pages == 0).all(-1).any() and not (mg.picture(x, spec("graph")) == 0).all(-1).any()
    assert mg.picture(np.zeros_like(x), spec()).min() == 255
