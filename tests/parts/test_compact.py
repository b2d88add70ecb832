from __future__ import annotations

import pytest
import torch
from torch import nn

from osteon.core.errors import UsageError
from osteon.parts.compact import PackedLinear, factor, factored


@pytest.mark.parametrize("layer, form", [
    (nn.Linear(6, 4), "channel"), (nn.Conv2d(3, 8, 3, stride=2, padding=1), "channel"),
    (nn.Conv2d(3, 8, (3, 5), stride=(2, 1), padding=(1, 2), bias=False), "spatial")])
def test_thin_pairs_of_full_rank_compute_the_same_and_less_loses_the_tail(layer, form):
    from osteon.parts.compact import thin_matrix

    full = min(thin_matrix(layer.weight, form).shape)
    x = torch.randn(2, 6) if isinstance(layer, nn.Linear) else torch.randn(2, 3, 8, 8)
    assert torch.allclose(factor(layer, full, form)(x), layer(x), atol=1e-5)
    if isinstance(layer, nn.Linear):
        pair = factor(layer, 2)
        error = (pair.up.weight @ pair.down.weight - layer.weight).square().sum()
        assert torch.isclose(error, torch.linalg.svdvals(layer.weight)[2:].square().sum(), atol=1e-6)


def test_packed_codes_come_back():
    layer = nn.Linear(7, 3)
    for bits, worst in ((8, 1 / 254), (4, 1 / 14), (2, 1 / 2)):
        packed = PackedLinear(layer, bits=bits, group=4, rank=0)
        rough = packed.encode(layer.weight)
        assert packed.codes.shape == (3, -(-7 * bits // 8))
        for start in (0, 4):
            part = slice(start, start + 4)
            largest = layer.weight[:, part].abs().amax(1, keepdim=True)
            assert ((rough - layer.weight)[:, part].abs() <= largest * worst * 1.001).all()
        assert torch.allclose(packed(torch.eye(7)).T - layer.bias[:, None], rough, atol=1e-6)


def test_two_codes_share_a_byte_the_first_in_the_low_bits():
    layer = nn.Linear(2, 1, bias=False)
    packed = PackedLinear(layer, bits=4, group=2, rank=0)
    packed.encode(torch.tensor([[7.0, -3.0]]))
    assert packed.codes.tolist() == [[(7 + 8) + 16 * (-3 + 8)]] and packed.scale.tolist() == [[1.0]]


def test_a_repair_is_added_and_sparsity_is_kept():
    layer = nn.Linear(4, 2)
    packed = PackedLinear(layer, bits=8, group=4, rank=1)
    keep = torch.tensor([[True, False, True, False]]).expand(2, 4)
    assert (packed.encode(layer.weight, keep)[:, [1, 3]] == 0).all()
    with torch.no_grad():
        packed.up.fill_(2.0)
        packed.down.fill_(0.5)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    wanted = x @ packed.weight().T + layer.bias + x.sum(1, keepdim=True)
    assert torch.allclose(packed(x), wanted, atol=1e-5)


def test_what_cannot_be_cut_is_refused():
    for layer, rank in ((nn.Linear(3, 3), 0), (nn.Conv2d(4, 4, 3, groups=2), 1),
                        (nn.Conv2d(4, 4, 3, padding="same"), 1), (nn.Conv2d(4, 4, 3, padding_mode="circular"), 1)):
        with pytest.raises(UsageError):
            factored(layer, rank)
    with pytest.raises(UsageError, match="2, 4 or 8 bits"):
        PackedLinear(nn.Linear(3, 3), bits=3, group=3, rank=0)
