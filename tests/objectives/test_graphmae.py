"""GraphMAE: which nodes are masked, what the decoder may see, and what the loss is over."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.objectives.graphmae import GraphMAE, mask_nodes
from osteon.parts.graphs import adjacency_of, assemble, features_of, present_of, scaled_cosine_error
from osteon.parts.types import DataSpec, Draws, Step

STEP, N, WIDTH = Step(0, 10, seed=3), 12, 5
SPEC = DataSpec("graph", WIDTH + N, N, (0.0,) * (WIDTH + N), (1.0,) * (WIDTH + N), 1.0, shape=(N,),
                traits={"level": "graph", "features": WIDTH, "binary": False})


def graphs(*sizes: int) -> Tensor:
    """Rings with a chord, of these numbers of nodes, with random features."""
    made = []
    for i, size in enumerate(sizes):
        g = torch.Generator().manual_seed(i)
        edges = torch.zeros(N, N)
        for j in range(size):
            edges[j, (j + 1) % size] = edges[(j + 1) % size, j] = 1
        edges[0, size // 2] = edges[size // 2, 0] = 1
        there = torch.arange(N) < size
        made.append(assemble((torch.randn(N, WIDTH, generator=g) * there[:, None])[None], edges[None], there[None]))
    return torch.cat(made)


def batch(*sizes: int) -> dict[str, Tensor]:
    x = graphs(*sizes)
    return {"graph": x, "index": torch.arange(len(x))}


def make(backbone: str = "gcn_tiny", spec: DataSpec = SPEC, **options) -> GraphMAE:
    torch.manual_seed(0)
    objective = GraphMAE(build_backbone(backbone, channels=spec.channels, size=(N,), dim=16, heads=2), spec, **options)
    with torch.no_grad():
        for i, p in enumerate(objective.parameters()):
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
    return objective


def test_a_rounded_share_of_the_nodes_that_exist_is_masked_and_a_share_of_these_replaced():
    present = torch.arange(N)[None] < torch.tensor([12, 7, 2, 1])[:, None]
    draws = Draws(STEP, torch.arange(4), 4)
    masked, swapped, donor = mask_nodes(present, 0.5, 0.34, draws)
    assert masked.sum(1).tolist() == [6, 4, 1, 1]  # 6, 3.5 to the even 4, 1, at least one
    assert swapped.sum(1).tolist() == [2, 1, 0, 0]  # 2.04, 1.36, and nothing of one
    assert not (masked & ~present).any() and not (swapped & ~masked).any()
    assert present.gather(1, donor).all()
    holes = present & (torch.arange(N) % 3 > 0)
    masked_holes, _, lent = mask_nodes(holes[:2].repeat(50, 1), 0.5, 0.0, Draws(STEP, torch.arange(100), 100))
    assert holes[:2].repeat(50, 1).gather(1, lent).all() and not (masked_holes & ~holes[:2].repeat(50, 1)).any()
    none = mask_nodes(present, 0.5, 0.0, draws)
    assert torch.equal(none[0], masked) and not none[1].any()
    many = Draws(STEP, torch.arange(2000), 2000)
    often = mask_nodes(present[:1].expand(2000, -1), 0.5, 0.0, many)
    assert (often[0].float().mean(0) - 0.5).abs().max() < 0.05
    assert (torch.bincount(often[2].flatten(), minlength=N) / 2000 - 1).abs().max() < 0.15


def test_the_loss_is_the_scaled_cosine_error_of_masked_nodes_alone():
    objective, data = make(gamma=2.0), batch(12, 7, 9)
    draws = Draws.of(data, STEP)
    prediction, masked, _ = objective.predict(data["graph"], draws.fork("nodes"))
    encoded = objective.encode(data, Draws.of(data, STEP))
    features = features_of(data["graph"])
    for i in range(3):
        errors = []
        for j in masked[i].nonzero()[:, 0].tolist():
            a, b = prediction[i, j].double(), features[i, j].double()
            errors.append((1 - a @ b / (a.norm() * b.norm())) ** 2)
        torch.testing.assert_close(encoded["loss"][i].double(), torch.stack(errors).mean(), rtol=1e-5, atol=1e-6)
    assert torch.allclose(objective.score(encoded, STEP).total, encoded["loss"].mean())
    assert encoded["features"].shape == (3, 16) and not encoded["features"].requires_grad


def test_scaled_cosine_error_by_hand_and_its_laws():
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])  # cosine 24 / 25
    torch.testing.assert_close(scaled_cosine_error(a, b, 3.0), torch.tensor((1 / 25) ** 3), rtol=1e-3, atol=0)
    torch.testing.assert_close(scaled_cosine_error(a, -b, 1.0), torch.tensor(49 / 25))
    torch.testing.assert_close(scaled_cosine_error(5 * a, 0.1 * b, 3.0), scaled_cosine_error(a, b, 3.0))
    assert scaled_cosine_error(a, torch.zeros(2), 2.0) == 1


@pytest.mark.parametrize("backbone", ["gcn_tiny", "gin_tiny", "gat_tiny"])
def test_a_masked_node_cannot_be_seen(backbone):
    objective, data = make(backbone, replace=0.0), batch(12, 9)
    x = data["graph"]
    prediction, masked, _ = objective.predict(x, Draws.of(data, STEP))
    other = torch.where(masked[..., None], features_of(x) + 3, features_of(x))
    again, _, _ = objective.predict(assemble(other, adjacency_of(x), present_of(x)), Draws.of(data, STEP))
    torch.testing.assert_close(prediction, again)
    shown = torch.where(masked[..., None], features_of(x), features_of(x) + 3 * present_of(x)[..., None])
    moved, _, _ = objective.predict(assemble(shown, adjacency_of(x), present_of(x)), Draws.of(data, STEP))
    assert not torch.allclose(prediction[masked], moved[masked])


def test_codes_of_masked_nodes_are_zero_before_the_decoder():
    objective, data, seen = make(), batch(12, 9), []
    objective.decoder.register_forward_pre_hook(lambda _m, args: seen.append(args[0].detach()))
    _, masked, _ = objective.predict(data["graph"], Draws.of(data, STEP))
    assert (seen[0][masked] == 0).all() and (seen[0][~masked & present_of(data["graph"])] != 0).any(-1).all()


def test_the_mask_stands_where_it_should_and_a_share_gets_other_nodes_features():
    objective, data, seen = make(replace=0.5), batch(12), []
    inner = objective.backbone.encode
    objective.backbone.encode = lambda h, *rest: seen.append((h, *rest)) or inner(h, *rest)
    draws = Draws.of(data, STEP)
    objective.predict(data["graph"], draws)
    masked, swapped, donor = mask_nodes(present_of(data["graph"]), 0.5, 0.5, Draws.of(data, STEP))
    features, shown = features_of(data["graph"])[0], seen[0][0][0]
    assert swapped.sum() == 3
    for j in range(N):
        want = features[donor[0, j]] if swapped[0, j] else objective.mask_token if masked[0, j] else features[j]
        assert torch.equal(shown[j], want)


def test_hidden_edges_are_hidden_from_the_encoder_alone():
    objective, data, seen = make(drop_edge=0.5), batch(12, 12), []
    inner, mixing = objective.backbone.encode, objective.decoder.mixing
    objective.backbone.encode = lambda h, edges, there: seen.append(edges) or inner(h, edges, there)
    objective.decoder.mixing = lambda edges, there: seen.append(edges) or mixing(edges, there)
    objective.predict(data["graph"], Draws.of(data, STEP))
    whole = adjacency_of(data["graph"])
    assert torch.equal(seen[1], whole) and torch.equal(seen[0], seen[0].transpose(1, 2))
    assert 0 < (seen[0] != whole).sum() and ((seen[0] == whole) | (seen[0] == 0)).all()


def test_predictions_follow_the_nodes_when_these_are_renumbered():
    objective, x = make(), graphs(12)
    network, order = objective.backbone, torch.randperm(12, generator=torch.Generator().manual_seed(2))
    moved = assemble(features_of(x)[:, order], adjacency_of(x)[:, order][:, :, order], present_of(x)[:, order])
    torch.testing.assert_close(network(moved).tokens, network(x).tokens[:, order])


def test_the_decoder_is_of_the_backbones_kind_unless_asked_otherwise():
    assert type(make("gat_tiny").decoder).__name__ == "GATConv" and type(make().decoder).__name__ == "GCNConv"
    assert type(make(decoder="gin").decoder).__name__ == "GINConv"
    assert make().mask_token.shape == (WIDTH,)
    assert not GraphMAE(build_backbone("gcn_tiny", channels=SPEC.channels, size=(N,)), SPEC).mask_token.any()


def test_pictures_show_graphs_with_what_is_predicted():
    objective, data = make(), batch(12, 9)
    x, corrupted, output = objective.reconstruct(data, STEP)
    changed = (features_of(corrupted) != features_of(x)).any(-1)
    assert changed.sum(1).tolist() == [6, 4] and (features_of(corrupted)[changed] == 0).all()
    assert torch.equal(features_of(output)[~changed], features_of(x)[~changed])
    for part in (corrupted, output):
        assert torch.equal(part[:, WIDTH:], x[:, WIDTH:])


@pytest.mark.parametrize("options", [{"ratio": 0.0}, {"replace": 1.5}, {"gamma": 0.5}, {"drop_edge": 1.0},
                                     {"decoder": "mlp"}])
def test_impossible_options_are_refused(options):
    with pytest.raises(UsageError):
        make(**options)


def test_a_transformer_is_refused():
    network = build_backbone("vit_tiny", channels=SPEC.channels, size=(N,), stem="nodes",
                             stem_options={"features": WIDTH}, dim=16)
    with pytest.raises(UsageError, match="along edges"):
        GraphMAE(network, SPEC)
