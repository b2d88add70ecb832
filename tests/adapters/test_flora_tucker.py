from __future__ import annotations

import pytest
import torch
from torch import nn

from osteon.adapters.flora_tucker import FLoRATucker, TuckerDelta, ranks_for, tucker
from osteon.core.errors import UsageError
from osteon.parts.reparam import Reparam
from tests.contracts.adapter_kit import TASK, network


def test_the_tucker_product_by_a_plain_loop():
    torch.manual_seed(0)
    core, factors = torch.randn(2, 3, 2), [torch.randn(4, 2), torch.randn(5, 3), torch.randn(3, 2)]
    want = torch.zeros(4, 5, 3)
    for i in range(4):
        for j in range(5):
            for k in range(3):
                want[i, j, k] = sum(core[a, b, c] * factors[0][i, a] * factors[1][j, b] * factors[2][k, c]
                                    for a in range(2) for b in range(3) for c in range(2))
    torch.testing.assert_close(tucker(core, factors), want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tucker(core[:, :, 0], factors[:2]), factors[0] @ core[:, :, 0] @ factors[1].T)


LAYERS = [nn.Linear(6, 4), nn.Conv2d(6, 4, 3, stride=2, padding=1), nn.Conv2d(6, 4, (3, 1), dilation=2),
          nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, groups=4, padding=1),
          nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular")]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_one_factor_after_the_other_is_the_changed_weight(layer):
    torch.manual_seed(0)
    change = TuckerDelta(layer, rank=2, kernel_rank=2, scale=4.0, dropout=0.0)
    x = torch.randn(2, 6) if isinstance(layer, nn.Linear) else torch.randn(2, layer.in_channels, 9, 9)
    torch.testing.assert_close(Reparam(layer, change)(x), layer(x))  # the core is zero
    nn.init.normal_(change.core)
    changed = Reparam(layer, change)
    torch.testing.assert_close(changed(x), changed.merge()(x), atol=1e-4, rtol=1e-4)
    assert (changed(x) - layer(x)).abs().max() > 1e-2
    for side, rank in enumerate(change.core.shape):
        unfolded = change.weight_delta().detach().movedim(side, 0).flatten(1)
        assert int(torch.linalg.matrix_rank(unfolded, rtol=1e-4)) <= rank


def test_ranks_are_at_most_the_sides_and_the_count_is_core_and_factors():
    assert ranks_for(torch.Size([16, 3, 3, 1]), 8, 2) == (8, 3, 2, 1)
    adapter = FLoRATucker(network("resnet"), TASK, targets="layer2.0.conv1", rank=10)  # (12, 8, 3, 3)
    assert adapter.expected_trainable() == 10 * 8 * 2 * 2 + 10 * 12 + 8 * 8 + 2 * 3 + 2 * 3 + 68
    linear = FLoRATucker(network("vit"), TASK, targets="blocks.0.attn.qkv", rank=4)
    assert linear.expected_trainable() == 16 + 4 * (96 + 32) + 132


def test_scale_dropout_and_the_start_of_the_factors():
    layer = nn.Linear(400, 30)
    one, four = (TuckerDelta(layer, rank=16, kernel_rank=2, scale=s, dropout=0.0) for s in (1.0, 4.0))
    nn.init.normal_(one.core)
    four.load_state_dict(one.state_dict())
    torch.testing.assert_close(four.weight_delta(), 4 * one.weight_delta())
    # Kaiming-normal with a = sqrt(3): variance 2 / (1 + 3) / fan_in, fan_in = 16
    assert four.factors[1].detach().std().item() == pytest.approx((0.5 / 16) ** 0.5, rel=0.1)
    adapter = FLoRATucker(network("vit"), TASK, rank=4, dropout=0.5)
    for module in adapter.modules():
        if isinstance(module, TuckerDelta):
            nn.init.normal_(module.core)
    x = torch.randn(2, 3, 32, 32)
    assert not torch.equal(adapter.train()(x), adapter(x))
    assert torch.equal(adapter.eval()(x), adapter(x))
    for wrong in ({"rank": 0}, {"kernel_rank": 0}, {"dropout": 1.0}):
        with pytest.raises(UsageError, match="Ranks are at least 1"):
            FLoRATucker(network("vit"), TASK, **wrong)
