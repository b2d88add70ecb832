from __future__ import annotations

import pytest
import torch
from torch import nn

from osteon.adapters.bias import Bias
from osteon.core.errors import UsageError
from tests.contracts.adapter_kit import TASK, network, train


def test_every_bias_trains_and_nothing_else():
    adapter = Bias(network("vit"), TASK)
    names = {n for n in adapter.trainable() if n.startswith("backbone.")}
    assert names == {f"backbone.{n}" for n, _ in network("vit").named_parameters() if n.endswith(".bias")}
    # three blocks (qkv 96, proj 32, fc1 128, fc2 32, two norms 64), patches 32, last norm 32, head 132
    assert adapter.expected_trainable() == 3 * (96 + 32 + 128 + 32 + 64) + 32 + 32 + 132


def test_a_bias_that_is_not_called_so_does_not_count_and_the_weight_of_a_norm_stays():
    adapter = Bias(network("resnet"), TASK)
    assert all(n.endswith("bias") for n in adapter.names) and "bn1.bias" in adapter.names
    weight = adapter.backbone.bn1.weight.clone()
    train(adapter)
    assert torch.equal(adapter.backbone.bn1.weight, weight)
    merged = adapter.merge()
    assert torch.equal(merged.bn1.bias, adapter.backbone.bn1.bias)
    assert not torch.equal(merged.bn1.bias, network("resnet").bn1.bias)


def test_a_network_without_biases_is_refused():
    base = network("vit")
    for module in base.modules():
        if getattr(module, "bias", None) is not None:
            module.bias = None
    assert isinstance(base, nn.Module)
    with pytest.raises(UsageError, match="no biases"):
        Bias(base, TASK)
