"""Graph networks: layers against loops, padding, renumbering, what masks replace, and large graphs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from osteon.backbones import backbone_names, build_backbone
from osteon.core.errors import UsageError
from osteon.parts import graphs
from osteon.parts.graph_layers import make_conv
from osteon.parts.graphs import adjacency_of, assemble, features_of, present_of, symmetric_norm, walk_diagonals

WIDTH, N = 3, 6


def sample(count: int = 5, seed: int = 0, weighted: bool = False) -> Tensor:
    """A path with a triangle at its end, ``count`` of ``N`` nodes: (1, F + N, N)."""
    g = torch.Generator().manual_seed(seed)
    edges = torch.zeros(N, N)
    for i, j in [*((k, k + 1) for k in range(count - 1)), (count - 3, count - 1)]:
        edges[i, j] = edges[j, i] = 1 + weighted * float(torch.rand((), generator=g))
    there = torch.arange(N) < count
    return assemble(torch.randn(1, N, WIDTH, generator=g) * there[:, None], edges[None], there[None])


def make(name: str = "gcn_tiny", **options):
    torch.manual_seed(0)
    network = build_backbone(name, channels=WIDTH + N, size=(N,), **{"dim": 8, "heads": 2, **options}).eval()
    with torch.no_grad():
        for i, p in enumerate(network.parameters()):
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
    return network


def test_a_sample_is_features_over_the_adjacency_with_its_diagonal():
    x = sample(4)
    assert present_of(x).tolist() == [[True] * 4 + [False] * 2]
    assert adjacency_of(x)[0].diagonal().sum() == 0 and x[0, WIDTH:].diagonal().tolist() == [1, 1, 1, 1, 0, 0]
    assert torch.equal(assemble(features_of(x), adjacency_of(x), present_of(x)), x)


def test_symmetric_norm_by_hand():
    edges, there = torch.tensor([[[0.0, 1, 0], [1, 0, 0], [0, 0, 0]]]), torch.tensor([[True, True, False]])
    want = torch.tensor([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 0]])
    torch.testing.assert_close(symmetric_norm(edges, there)[0], want)


def test_walks_return_as_powers_of_the_walk_say():
    edges = adjacency_of(sample(6))
    walk = edges[0].double() / edges[0].double().sum(1, keepdim=True)
    want = torch.stack([torch.linalg.matrix_power(walk, k).diagonal() for k in range(2, 10)], 1)
    torch.testing.assert_close(walk_diagonals(edges, 8)[0].double(), want, rtol=1e-5, atol=1e-6)
    assert graphs.closeness(edges)[0].tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 5])
    assert graphs.closeness(adjacency_of(sample(4)))[0, 4:].tolist() == [0, 0]


@pytest.mark.parametrize("kind", ["gcn", "gin", "gat"])
def test_layers_against_loops(kind):
    x = sample(5, weighted=True)
    h, edges, there = features_of(x).double(), adjacency_of(x).double(), present_of(x)
    torch.manual_seed(1)
    layer = make_conv(kind, WIDTH, 4, 2).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.3 * torch.randn(p.shape))
    got = layer(h, layer.mixing(edges, there))[0]
    a, h = edges[0], h[0]
    for i in range(5):
        near = [j for j in range(5) if a[i, j] or j == i]
        if kind == "gcn":
            degree = [float(a[j].sum()) + 1 for j in range(5)]
            want = sum((float(a[i, j]) if j != i else 1) / math.sqrt(degree[i] * degree[j]) * layer.linear(h[j])
                       for j in near) + layer.bias
        elif kind == "gin":
            seen = (1 + layer.eps) * h[i] + sum(a[i, j] * h[j] for j in near)
            want = layer.second(torch.relu(layer.norm(layer.first(seen))))
        else:
            parts = []
            for k in range(2):
                v = [layer.linear(h[j])[2 * k:2 * k + 2] for j in range(5)]
                score = torch.stack([F.leaky_relu(layer.asks[k] @ v[i] + layer.tells[k] @ v[j], 0.2).exp()
                                     * (a[i, j] if j != i else 1) for j in near])
                parts.append(sum(s * v[j] for s, j in zip(score / score.sum(), near, strict=True)))
            want = torch.cat(parts) + layer.bias
        torch.testing.assert_close(got[i], want)


@pytest.mark.parametrize("name", ["gcn_tiny", "gin_tiny", "gat_tiny"])
def test_padding_changes_nothing_and_nodes_may_be_renumbered(name):
    network, x = make(name), sample(5)
    small = assemble(features_of(x)[:, :5], adjacency_of(x)[:, :5, :5], present_of(x)[:, :5])
    whole, part = network(x), network(small)
    torch.testing.assert_close(whole.tokens[:, :5], part.tokens)
    assert not whole.tokens[:, 5:].any()
    torch.testing.assert_close(whole.pooled, part.pooled)
    torch.testing.assert_close(whole.pooled, part.tokens.mean(1))
    order = torch.tensor([3, 0, 4, 1, 2])
    moved = assemble(features_of(small)[:, order], adjacency_of(small)[:, order][:, :, order],
                     present_of(small)[:, order])
    torch.testing.assert_close(network(moved).tokens, part.tokens[:, order])
    first = make(name, pool="first")
    torch.testing.assert_close(first(x).pooled, first(x).tokens[:, 0])


@pytest.mark.parametrize("name", ["gcn_tiny", "gin_tiny", "gat_tiny"])
def test_a_node_sees_as_many_steps_as_there_are_layers(name):
    network, x = make(name, depth=2), sample(6)
    moved = x.clone()
    moved[:, :WIDTH, 0] += 1
    changed = (network(x).tokens != network(moved).tokens).any(-1)[0].tolist()
    assert changed == [True, True, True, False, False, False]


def test_masks_replace_features_and_leave_edges():
    network, x = make(), sample(5)
    mask, token = torch.tensor([[False, True, False, False, True, True]]), torch.tensor([1.0, -2.0, 3.0])
    want = x.clone()
    want[0, :WIDTH, [1, 4]] = token[:, None]
    torch.testing.assert_close(network(x, mask=mask, mask_token=token).tokens, network(want).tokens)
    want[0, :WIDTH, [1, 4]] = 0
    torch.testing.assert_close(network(x, mask=mask).tokens, network(want).tokens)
    for wrong in ({"keep": torch.tensor([[0, 1]])}, {"mask": mask, "mask_token": torch.zeros(8)},
                  {"mask": mask[:, :3]}):
        with pytest.raises(UsageError):
            network(x, **wrong)


def test_one_large_graph_is_multiplied_sparse_with_the_same_result(monkeypatch):
    for name in ("gcn_tiny", "gin_tiny", "gat_tiny"):
        network, x = make(name), sample(5)
        with monkeypatch.context() as patch:
            patch.setattr(graphs, "LARGE", 4)
            patch.setattr(graphs, "FEW", 1.0)
            assert symmetric_norm(adjacency_of(x), present_of(x)).is_sparse
            large = network(x)
            large.tokens.sum().backward()
            got = [p.grad.clone() for p in network.parameters() if p.grad is not None]
        network.zero_grad()
        small = network(x)
        small.tokens.sum().backward()
        torch.testing.assert_close(large.tokens, small.tokens)
        for one, two in zip(got, [p.grad for p in network.parameters() if p.grad is not None], strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_residual_modules_add_what_came_in_and_tied_ones_share_weights():
    x = sample(5)
    plain, residual = make(depth=3), make(depth=3, residual=True)
    residual.load_state_dict(plain.state_dict())
    edges, there, h = adjacency_of(x), present_of(x), features_of(x)
    mixing = symmetric_norm(edges, there)
    for i in range(3):
        out = residual.activations[i](residual.layers[i](h, mixing))
        h = out * there[..., None] if i == 0 else (out + h) * there[..., None]
    torch.testing.assert_close(residual(x).tokens, h)
    assert not torch.allclose(residual(x).tokens, plain(x).tokens)
    tied = make(depth=5, residual=True, tied=True)
    assert len(tied.layers) == 2
    assert sum(p.numel() for p in tied.parameters()) == sum(p.numel() for p in make(depth=2).parameters())
    assert torch.equal(make(depth=1)(x).tokens, make(depth=1, residual=True)(x).tokens)


def test_any_number_of_nodes_fits_and_other_data_do_not():
    network = make()
    x = torch.zeros(2, WIDTH + 9, 9)
    assert network(x).tokens.shape == (2, 9, 8) and network(x).pooled.isfinite().all()
    assert network.describe()["flops"] > 0 and network.grid(9) == (9,)
    with pytest.raises(UsageError, match="3 features"):
        network(torch.zeros(2, WIDTH + 1 + 9, 9))
    for channels, size in ((3, 32), (N, (N,)), (1, (20,))):
        with pytest.raises(UsageError, match="takes graphs"):
            build_backbone("gcn_tiny", channels=channels, size=size)
    for options in ({"pool": "cls"}, {"dropout": 1.0}, {"depth": 0}, {"activation": "tanh"}):
        with pytest.raises(UsageError):
            make(**options)
    with pytest.raises(UsageError, match="divide"):
        make("gat_tiny", heads=3)
    assert {"gcn_tiny", "gin_mini", "gat_small"} <= set(backbone_names())


def test_options_build_the_same_network_again():
    network = make("gat_tiny", pool="first", stem="nodes", stem_options={"features": WIDTH, "root": True})
    again = build_backbone(network.name, channels=network.channels, size=network.size, **network.options)
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.eval()(sample()).pooled, network(sample()).pooled)
