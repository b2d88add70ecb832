from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.contracts.compressor_kit import network
from torch import nn

from osteon.core.errors import DataError, UsageError
from osteon.parts.calibration import Calibration
from osteon.parts.compact import Int8Linear, PackedLinear, factor
from osteon.parts.compressor import Budget, Cost, amount, measure, params_of
from osteon.parts.surgery import apply_edits
from osteon.parts.types import DataSpec


@pytest.mark.parametrize("text, unit, value, share", [
    ("params=0.3", "params", 0.3, True), ("flops=50%", "flops", 0.5, True), ("latency=5ms", "latency", 5, False),
    ("latency=0.2s", "latency", 200, False), ("bytes=2MB", "bytes", 2e6, False), ("bytes=1KiB", "bytes", 1024, False),
    ("params=1", "params", 1, True), ("params=200k", "params", 2e5, False), ("params=5", "params", 5, False)])
def test_budgets_are_read(text, unit, value, share):
    assert Budget.parse(text) == Budget(unit, value, share)


@pytest.mark.parametrize("text", ["params", "params=", "params=0", "params=120%", "parms=0.3", "bytes=2XB", "=0.3",
                                  "params=-1", "bytes=1.2.3"])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(UsageError):
        Budget.parse(text)


def test_a_share_is_of_the_original_and_a_cost_stands_for_itself():
    whole = Cost(1000, 500, 4000)
    assert Budget("params", 0.3).limit(whole) == 300 and Budget("bytes", 100, share=False).limit(whole) == 100
    assert Budget("params", 0.3).met(Cost(300, 0, 0), whole) and not Budget("params", 0.3).met(Cost(301, 0, 0), whole)
    assert amount("bytes", 2.5e6) == "2.5 MB" and amount("params", 12) == "12"


def test_costs_of_a_layer_a_person_can_count():
    layer = nn.Linear(10, 4)
    assert params_of(layer) == 44 and params_of(Int8Linear(layer)) == 44
    assert params_of(PackedLinear(layer, bits=4, group=5, rank=2)) == 44 + 2 * 14
    net = network()
    cost = measure(net)
    assert cost.params == sum(p.numel() for p in net.parameters())
    assert 4 * cost.params < cost.bytes < 4 * cost.params + 9000


def test_moments_are_the_sums_over_all_rows():
    x = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    spec = DataSpec("image", 3, 6, (0,) * 3, (1,) * 3, 1.0)
    net = nn.Sequential(nn.Conv2d(3, 2, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(18, 4))
    data = Calibration(lambda rows: x[torch.from_numpy(rows)], 5, spec, batch_size=2)
    found = data.moments(net, {"0": net[0], "2": net[2]})
    patches = nn.functional.unfold(x, 3, padding=1, stride=2).transpose(1, 2).reshape(-1, 27).double()
    hidden = net[1](net[0](x)).detach().double()
    assert found["0"].count == 45 and found["2"].count == 5
    assert torch.allclose(found["0"].input_outer, patches.T @ patches, atol=1e-5)
    assert torch.allclose(found["2"].covariance, torch.from_numpy(np.cov(hidden.numpy().T, bias=True)), atol=1e-5)
    out = net(x).detach().double()
    assert torch.allclose(found["2"].output_sum, out.sum(0), atol=1e-5)
    assert torch.allclose(found["2"].output_outer, out.T @ out, atol=1e-5)
    assert net.training


def test_a_layer_that_never_runs_and_a_small_set_are_errors():
    net = nn.Sequential(nn.Linear(2, 2))
    data = Calibration(lambda rows: torch.zeros(len(rows), 2), 3, DataSpec("image", 1, 1, (0,), (1,)))
    with pytest.raises(UsageError, match="took no part"):
        data.moments(net, {"other": nn.Linear(2, 2)})
    with pytest.raises(UsageError, match="too small: 3 samples"):
        data.need(4, "clustering")
    with pytest.raises(UsageError):
        Calibration(lambda rows: torch.zeros(1), 0, DataSpec("image", 1, 1, (0,), (1,)))


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


def test_unknown_and_unfit_edits_are_named():
    with pytest.raises(DataError, match="Unknown change"):
        apply_edits(network(), [{"op": "fold"}])
    with pytest.raises(DataError, match="does not fit"):
        apply_edits(network(), [{"op": "int8", "layers": ["blocks.9.attn.qkv"]}])
