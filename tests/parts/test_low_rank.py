from __future__ import annotations

import pytest
import torch
from torch import nn

from osteon.backbones import build_backbone
from osteon.core.errors import UsageError
from osteon.parts.low_rank import LowRank, train_low_rank
from osteon.parts.reparam import Reparam, merged


def moved(network: nn.Module) -> nn.Module:
    """As after some training: every number that trains is another."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in network.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return network


def test_the_change_is_the_product_and_starts_at_zero():
    change = LowRank(nn.Linear(3, 2), 1)
    assert torch.equal(change.weight_delta(), torch.zeros(2, 3)) and change.down.abs().sum() > 0
    with torch.no_grad():
        change.up.copy_(torch.tensor([[1.0], [2.0]]))
        change.down.copy_(torch.tensor([[1.0, 0.0, -1.0]]))
    assert torch.equal(change.weight_delta(), torch.tensor([[1.0, 0, -1], [2, 0, -2]]))


@pytest.mark.parametrize(("layer", "shape"), [
    (nn.Linear(5, 4), (2, 7, 5)), (nn.Conv2d(3, 4, 3, stride=2, padding=1), (2, 3, 8, 8)),
    (nn.Conv2d(4, 6, 3, dilation=2, bias=False), (2, 4, 9, 9)), (nn.Conv2d(3, 4, 1), (2, 3, 5, 5))])
def test_the_thin_way_and_the_merged_layer_agree(layer, shape):
    layer = moved(Reparam(layer, LowRank(layer, 2)))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x), layer.merge()(x), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(layer(x), layer.base(x))


def test_a_rank_beyond_the_layers_own_is_cut():
    assert LowRank(nn.Linear(3, 2), 50).down.shape == (2, 3)
    assert LowRank(nn.Conv2d(1, 8, 3), 50).down.shape == (8, 9)


@pytest.mark.parametrize("name", ["vit_tiny", "resnet_tiny"])
def test_a_network_computes_the_same_at_first_and_merged(name):
    network = build_backbone(name, channels=3, size=16).eval()
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    before, names = network(x).pooled, set(network.state_dict())
    layers, count = train_low_rank(network, 2)
    assert torch.equal(network(x).pooled, before)
    trains = {n: p.numel() for n, p in network.named_parameters() if p.requires_grad}
    assert layers * 2 == len(trains) and count == sum(trains.values()) and all(".change." in n for n in trains)
    plain = merged(moved(network))
    torch.testing.assert_close(plain(x).pooled, network(x).pooled, atol=1e-4, rtol=1e-4)
    assert set(plain.state_dict()) == names and not torch.allclose(plain(x).pooled, before)


def test_a_vit_trains_what_the_formula_says():
    """A block's maps D->3D, D->D, D->4D, 4D->D cost r (4D + 2D + 5D + 5D) = 16 r D."""
    network = build_backbone("vit_tiny", channels=3, size=16, dim=24, depth=3, heads=3)
    assert train_low_rank(network, 2) == (12, 3 * 16 * 2 * 24)


def test_impossible_ranks_and_a_second_change_are_refused():
    network = build_backbone("vit_tiny", channels=3, size=16)
    with pytest.raises(UsageError, match="trains nothing"):
        train_low_rank(network, 0)
    train_low_rank(network, 1)
    with pytest.raises(UsageError, match="adapted already"):
        train_low_rank(network, 1)
