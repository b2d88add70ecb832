from __future__ import annotations

import pytest
import torch

from osteon.compressors.structured_pruning import StructuredPruning, groups
from osteon.parts.compressor import Budget, params_of
from tests.contracts.compressor_kit import calibration, fit_on, network


def test_groups_of_a_vit_are_its_heads_and_hidden_units_and_of_a_resnet_its_inner_channels():
    assert sorted(count for count, _, _ in groups(network())) == [4] * 4 + [128] * 4
    assert sorted(count for count, _, _ in groups(network("maps"))) == [8, 8, 16, 16, 16, 16]


def test_silent_units_and_heads_go_first_and_cost_nothing():
    """Half of the hidden units and half of the heads put out zeros: removing half of everything changes no feature."""
    net = network()
    with torch.no_grad():
        for i, block in enumerate(net.blocks):
            dead = torch.arange(128) % 2 == i % 2
            block.mlp.fc1.weight[dead], block.mlp.fc1.bias[dead], block.mlp.fc2.weight[:, dead] = 0, 0, 0
            head = [(i + 1) % 4, (i + 3) % 4]
            columns = torch.tensor([h * 8 + j for h in head for j in range(8)])
            rows = torch.cat([columns + 32 * part for part in range(3)])
            block.attn.qkv.weight[rows], block.attn.qkv.bias[rows], block.attn.proj.weight[:, columns] = 0, 0, 0
    pruned = StructuredPruning().prune(net, 0.5, seed=0)
    assert pruned.blocks[0].attn.num_heads == 2 and pruned.blocks[0].mlp.fc1.out_features == 64
    x = next(calibration().batches())
    with torch.no_grad():
        assert torch.allclose(pruned(x).pooled, net(x).pooled, atol=1e-5)
        assert not torch.allclose(StructuredPruning(importance="random").prune(net, 0.5, 0)(x).pooled, net(x).pooled,
                                  atol=1e-2)


def test_silent_channels_of_a_resnet_go_first():
    net = network("maps")
    with torch.no_grad():
        block = net.layer2[1]
        block.conv1.weight[::2], block.bn1.weight[::2], block.conv2.weight[:, ::2] = 0, 0, 0
    count, score, remove = next(g for g in groups(net) if g[0] == 16 and (g[1] == 0).sum() == 8)
    x = next(calibration().batches())
    with torch.no_grad():
        wanted = net(x).pooled
        remove(list(range(0, 16, 2)))
        assert net.layer2[1].conv1.out_channels == 8 and net.layer2[1].bn1.channels == 8
        assert torch.allclose(net(x).pooled, wanted, atol=1e-5)


def test_the_importance_of_a_group_is_the_square_of_everything_that_goes():
    net = network()
    _, score, _ = next(g for g in groups(net) if g[0] == 128)
    expected = [b.mlp.fc1.weight.square().sum(1) + b.mlp.fc2.weight.square().sum(0) for b in net.blocks]
    assert any(torch.allclose(score, e.detach()) for e in expected)


def test_one_of_every_group_stays():
    pruned = StructuredPruning().prune(network(), 1.0, seed=0)
    assert all(b.attn.num_heads == 1 and b.mlp.fc1.out_features == 1 for b in pruned.blocks)


def test_random_choice_depends_on_the_seed_alone():
    a, b, c = (StructuredPruning(importance="random").prune(network(), 0.5, s) for s in (0, 0, 1))
    assert torch.equal(a.blocks[0].mlp.fc1.weight, b.blocks[0].mlp.fc1.weight)
    assert not torch.equal(a.blocks[0].mlp.fc1.weight, c.blocks[0].mlp.fc1.weight)
    assert params_of(a) == params_of(c)


def test_recovery_brings_the_features_back_towards_the_originals():
    net, data = network(), calibration()
    x = torch.cat(list(data.batches()))
    errors = []
    for recover in (False, True):
        small = StructuredPruning(recover=recover, augment="none")(net, Budget("params", 0.6), data,
                                                                   fit_on(data, 30, 3e-3))
        with torch.no_grad():
            errors.append(float((small(x).pooled - net(x).pooled).square().mean()))
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("name, options", [("timm:vit_tiny_patch16_224", {"patch_size": 8, "depth": 2}),
                                           ("timm:resnet10t", {})])
def test_models_of_timm_are_pruned_too(name, options):
    pytest.importorskip("timm")
    from osteon.backbones import build_backbone
    from osteon.parts.surgery import apply_edits, edits_of

    net = build_backbone(name, channels=3, size=16, **options).eval()
    small = StructuredPruning()(net, Budget("params", 0.7), calibration())
    again = apply_edits(build_backbone(name, channels=3, size=16, **options), edits_of(small)).eval()
    again.load_state_dict(small.state_dict())
    x = next(calibration().batches())
    with torch.no_grad():
        assert torch.equal(again(x).pooled, small(x).pooled)
