from __future__ import annotations

import pytest
import torch
from torch import nn

from osteon.compressors.eora import EoRA, compensate, two_of_four
from osteon.core.errors import UsageError
from osteon.parts.compact import PackedLinear
from osteon.parts.compressor import Budget
from tests.contracts.compressor_kit import calibration, network


def inputs(d=12, n=200):
    """Columns with a steep spectrum."""
    g = torch.Generator().manual_seed(0)
    mix = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64))[0]
    return mix @ (torch.logspace(0, -2, d, dtype=torch.float64)[:, None] * torch.randn(d, n, generator=g).double())


def test_no_repair_of_a_rank_is_better_on_the_calibration_inputs():
    x, error = inputs(), torch.randn(8, 12, generator=torch.Generator().manual_seed(1)).double()
    left = []
    for rank in (1, 2, 4, 7, 8):
        up, down = compensate(error, x @ x.T, rank)
        u, s, vh = torch.linalg.svd(error)
        plain = (u[:, :rank] * s[:rank]) @ vh[:rank]
        left.append(float(((error - up @ down) @ x).norm()))
        assert left[-1] <= float(((error - plain) @ x).norm()) + 1e-9
        assert abs(left[-1] ** 2 - float(torch.linalg.svdvals(error @ x)[rank:].square().sum())) < 1e-6
    assert left == sorted(left, reverse=True) and left[-1] < 1e-6


def test_inputs_that_span_a_subspace_need_only_its_rank():
    x = inputs()[:, :3]
    error = torch.randn(8, 12, generator=torch.Generator().manual_seed(1)).double()
    up, down = compensate(error, x @ x.T, 5)
    assert ((error - up @ down) @ x).norm() < 1e-8 and (up[:, 3:] == 0).all() and torch.isfinite(down).all()


def test_two_of_every_four_stay():
    assert two_of_four(torch.tensor([[1.0, -3.0, 2.0, 0.5, 1.0, 0.0, 0.0, 9.0]])).tolist() == [
        [False, True, True, False, True, False, False, True]]


def test_a_packed_layer_is_repaired_on_what_it_saw():
    layer = nn.Linear(12, 8)
    x = inputs().T.float()
    off = []
    for rank in (0, 2, 8):
        packed = PackedLinear(layer, bits=2, group=4, rank=rank)
        EoRA(bits=2, group=4, sparsity="2:4").repair(packed, layer.weight, (x.T @ x).double())
        off.append(float((packed(x) - layer(x)).detach().norm()))
    assert off[1] < 0.7 * off[0] and off[2] < 1e-3 * off[0]


def test_the_repair_brings_features_back():
    """Bytes that are left over for rank are used, and help."""
    net, data = network(), calibration()
    x = torch.cat(list(data.batches()))
    errors = []
    for share in (0.45, 0.8):
        small = EoRA(bits=2, group=8)(net, Budget("bytes", share), data)
        with torch.no_grad():
            errors.append(float((small(x).pooled - net(x).pooled).square().mean()))
    assert errors[1] < 0.5 * errors[0]


def test_convolutional_networks_and_odd_bits_are_refused():
    with pytest.raises(UsageError, match="no linear layers"):
        EoRA()(network("maps"), Budget("bytes", 0.5), calibration())
    with pytest.raises(UsageError, match="bits are"):
        EoRA(bits=3)
