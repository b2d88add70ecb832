from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.parts.test_real_tokens import LENGTHS, words
from torch import nn

from osteon.core.errors import UsageError
from osteon.evaluators.utilised_rank import second_moments
from osteon.parts.calibration import Calibration
from osteon.parts.types import DataSpec


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


def test_grouped_convolutions_are_refused():
    net = nn.Sequential(nn.Conv2d(2, 2, 1, groups=2))
    data = Calibration(lambda rows: torch.zeros(len(rows), 2, 3, 3), 2, DataSpec("image", 2, 3, (0,) * 2, (1,) * 2))
    with pytest.raises(UsageError, match="groups"):
        data.moments(net, {"0": net[0]})


def test_features_come_in_order_and_the_mode_is_put_back():
    from tests.contracts.compressor_kit import calibration, network

    net, data = network().train(), calibration()
    found = data.features(net)
    assert net.training and found.shape == (24, 32)
    with torch.no_grad():
        assert torch.allclose(found, net.eval()(torch.cat(list(data.batches()))).pooled, atol=1e-5)


@pytest.mark.parametrize(("pool", "registers"), [("mean", 0), ("cls", 2)])
def test_moments_of_texts_with_padding_are_those_of_the_texts_alone(pool, registers):
    network, x = words(pool, registers)
    names = ["blocks.0.attn.qkv", "blocks.1.mlp.fc2"]
    linear = {n: network.get_submodule(n) for n in names}
    spec = DataSpec("text", 1, 6, (0.0,), (1.0,), 1.0, shape=(6,))
    together = Calibration(lambda rows: x[torch.from_numpy(rows)], 3, spec).moments(network, linear)
    alone = [Calibration(lambda rows, i=i, n=n: x[i:i + 1, :, :n], 1, spec).moments(network, linear)
             for i, n in enumerate(LENGTHS)]
    extra = 3 * (registers + (pool == "cls"))
    for name in names:
        assert together[name].count == sum(LENGTHS) + extra
        for key in ("input_sum", "input_outer", "output_outer"):
            torch.testing.assert_close(getattr(together[name], key), sum(getattr(a[name], key) for a in alone),
                                       atol=1e-4, rtol=1e-4)
    moments = second_moments(network, [x])
    torch.testing.assert_close(moments[names[0]], together[names[0]].input_outer)
