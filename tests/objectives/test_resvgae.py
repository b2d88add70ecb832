"""ResVGAE: the loss against loops, the divergence by hand, held-out edges, and what is shared with the backbone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.objectives.test_graphmae import SPEC, WIDTH, N, batch, graphs

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.objectives.resvgae import ResVGAE, divergence, edge_weight
from osteon.parts.graphs import adjacency_of, assemble, features_of, present_of, symmetric_norm
from osteon.parts.links import auc_ap, hold_out, link_loss
from osteon.parts.types import Draws, Step

STEP = Step(0, 10, seed=3)


def make(*, depth: int = 3, residual: bool = True, **options) -> ResVGAE:
    torch.manual_seed(0)
    network = build_backbone("gcn_tiny", channels=SPEC.channels, size=(N,), dim=8, depth=depth, residual=residual)
    objective = ResVGAE(network, SPEC, latent=4, **options)
    with torch.no_grad():
        for i, p in enumerate(objective.parameters()):
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
    return objective


def test_divergence_is_that_of_normal_distributions():
    mean, log_std = torch.tensor([[[1.0, 0.0], [9.0, 9.0]]]), torch.tensor([[[0.0, math.log(2)], [1.0, 1.0]]])
    there = torch.tensor([[True, False]])
    p = torch.distributions.Normal(mean[0, 0], log_std[0, 0].exp())
    want = torch.distributions.kl_divergence(p, torch.distributions.Normal(0.0, 1.0)).sum()
    torch.testing.assert_close(divergence(mean, log_std, there), want[None])
    assert divergence(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), torch.ones(1, 2, dtype=torch.bool)) == 0


def test_the_weight_of_edges_by_hand():
    x = graphs(4)  # a ring of four and a chord: five edges, ten entries, 16 / (2 * 6)
    assert edge_weight(adjacency_of(x), present_of(x)).tolist() == pytest.approx([16 / 12])


def test_edges_stand_against_as_many_other_pairs():
    x = graphs(8, 5)
    edges, there = adjacency_of(x), present_of(x)
    g = torch.Generator().manual_seed(4)
    logits, noise = torch.randn(2, N, N, generator=g), torch.rand(2, N, N, generator=g)
    logits = logits + logits.transpose(1, 2)
    got = link_loss(logits, edges, there, noise)
    for b in range(2):
        pairs = [(i, j) for i in range(N) for j in range(i + 1, N) if there[b, i] and there[b, j]]
        hits = [(i, j) for i, j in pairs if edges[b, i, j]]
        free = sorted((p for p in pairs if not edges[b][p]), key=lambda p: float(noise[b][p]))[:len(hits)]
        want = -np.mean([math.log(torch.sigmoid(logits[b][p])) for p in hits]) \
            - np.mean([math.log(1 - torch.sigmoid(logits[b][p])) for p in free])
        assert float(got[b]) == pytest.approx(want, rel=1e-5)
    assert len(free) < len(hits)  # the small graph has too few pairs without an edge, and all of them count


def test_a_full_and_an_empty_graph_have_finite_losses():
    full = (torch.ones(1, N, N) - torch.eye(N)) * 1.0
    there = torch.ones(1, N, dtype=torch.bool)
    for edges in (full, torch.zeros(1, N, N)):
        loss = link_loss(torch.zeros(1, N, N), edges, there, torch.rand(1, N, N))
        assert float(loss) == pytest.approx(math.log(2))
        assert edge_weight(edges, there).isfinite().all()


def test_the_loss_is_weighted_links_and_divergence_over_nodes():
    objective, data = make(), batch(12, 7)
    encoded = objective.encode(data, Draws.of(data, STEP))
    x = data["graph"]
    edges, there = adjacency_of(x), present_of(x)
    mean, spread, tokens = objective.codes(features_of(x), edges, there)
    torch.testing.assert_close(tokens, objective.backbone(x).tokens)
    step = symmetric_norm(edges, there)
    for layer, code in ((objective.mean, mean), (objective.log_std, spread)):
        torch.testing.assert_close(code, step @ tokens @ layer.linear.weight.T + layer.bias)
    draws = Draws.of(data, STEP)
    z = mean + draws.fork("code").randn(N, 4) * spread.exp()
    links = link_loss(z @ z.transpose(1, 2), edges, there, draws.fork("pairs").rand(N, N))
    torch.testing.assert_close(encoded["links"], links * edge_weight(edges, there))
    torch.testing.assert_close(encoded["divergence"], divergence(mean, spread, there) / torch.tensor([12.0, 7.0]))
    torch.testing.assert_close(objective.score(encoded, STEP).total,
                               encoded["links"].mean() + encoded["divergence"].mean())
    torch.testing.assert_close(encoded["features"], objective.backbone(x).pooled.detach())


def test_without_its_variational_part_nothing_is_drawn():
    objective, data = make(variational=False), batch(12, 7)
    encoded = objective.encode(data, Draws.of(data, STEP))
    assert not encoded["divergence"].any() and objective.log_std is None
    x = data["graph"]
    mean, _, _ = objective.codes(features_of(x), adjacency_of(x), present_of(x))
    links = link_loss(mean @ mean.transpose(1, 2), adjacency_of(x), present_of(x),
                      Draws.of(data, STEP).fork("pairs").rand(N, N))
    torch.testing.assert_close(encoded["links"], links * edge_weight(adjacency_of(x), present_of(x)))


def test_hidden_edges_are_predicted_all_the_same():
    objective, data, seen = make(drop_edge=0.5), batch(12, 12), []
    inner = objective.codes
    objective.codes = lambda h, edges, there: seen.append(edges) or inner(h, edges, there)
    encoded = objective.encode(data, Draws.of(data, STEP))
    whole = adjacency_of(data["graph"])
    assert 0 < seen[0].sum() < whole.sum() and torch.equal(seen[0], seen[0].transpose(1, 2))
    mean, spread, _ = inner(features_of(data["graph"]), seen[0], present_of(data["graph"]))
    draws = Draws.of(data, STEP)
    z = mean + draws.fork("code").randn(N, 4) * spread.exp()
    links = link_loss(z @ z.transpose(1, 2), whole, present_of(data["graph"]), draws.fork("pairs").rand(N, N))
    torch.testing.assert_close(encoded["links"], links * edge_weight(whole, present_of(data["graph"])))


def test_no_residual_modules_are_a_plain_autoencoder():
    one, other = make(depth=1, residual=True), make(depth=1, residual=False)
    data = batch(12)
    assert torch.equal(one(data, STEP).total, other(data, STEP).total)
    assert any("no residual" in note for note in other.notes) and any("0 residual" in note for note in one.notes)


def test_codes_follow_the_nodes_when_these_are_renumbered():
    objective, x, order = make(), graphs(12), torch.randperm(12, generator=torch.Generator().manual_seed(1))
    parts = features_of(x), adjacency_of(x), present_of(x)
    moved = parts[0][:, order], parts[1][:, order][:, :, order], parts[2][:, order]
    torch.testing.assert_close(objective.codes(*moved)[0], objective.codes(*parts)[0][:, order])


def test_held_out_edges_are_gone_and_pairs_against_them_are_none():
    edges = adjacency_of(graphs(12))[0].numpy()  # 13 edges
    links = hold_out(edges, val=0.1, test=0.25, seed=3)
    assert (len(links.val), len(links.test), len(links.val_not), len(links.test_not)) == (1, 3, 1, 3)
    assert links.adjacency.sum() == 26 - 8 and (links.adjacency == links.adjacency.T).all()
    held = np.concatenate([links.val, links.test])
    against = np.concatenate([links.val_not, links.test_not])
    assert (edges[held[:, 0], held[:, 1]] == 1).all() and (links.adjacency[held[:, 0], held[:, 1]] == 0).all()
    assert (edges[against[:, 0], against[:, 1]] == 0).all() and len(np.unique(against, axis=0)) == 4
    assert edges.sum() == 26  # the input is left alone
    assert not np.array_equal(hold_out(edges, val=0.1, test=0.25, seed=4).test, links.test)
    for shares in ({"val": 0.0, "test": 0.0}, {"val": 0.5, "test": 0.6}):
        with pytest.raises(UsageError):
            hold_out(edges, **shares)


def test_auc_and_precision_by_hand():
    z = np.array([[1.0], [2.0], [3.0], [-1.0]])  # products: (0,1) 2, (0,2) 3, (1,2) 6, (0,3) -1
    assert auc_ap(z, np.array([[1, 2], [0, 1]]), np.array([[0, 2], [0, 3]])) == pytest.approx((0.75, 5 / 6))


def test_pictures_draw_as_many_edges_as_there_are():
    objective, data = make(), batch(12, 7)
    x, bare, drawn = objective.reconstruct(data, STEP)
    assert torch.equal(adjacency_of(drawn).sum((1, 2)), adjacency_of(x).sum((1, 2)))
    assert not adjacency_of(bare).any() and torch.equal(present_of(drawn), present_of(x))
    assert torch.equal(features_of(drawn), features_of(x))


def test_what_it_cannot_train_is_refused():
    network = build_backbone("vit_tiny", channels=SPEC.channels, size=(N,), stem="nodes",
                             stem_options={"features": WIDTH}, dim=16)
    with pytest.raises(UsageError, match="along edges"):
        ResVGAE(network, SPEC)
    for options in ({"latent": 0}, {"drop_edge": 1.0}):
        with pytest.raises(UsageError):
            ResVGAE(build_backbone("gcn_tiny", channels=SPEC.channels, size=(N,)), SPEC, **options)
    assert assemble(torch.zeros(1, 2, 1), torch.zeros(1, 2, 2), torch.ones(1, 2)).shape == (1, 3, 2)
