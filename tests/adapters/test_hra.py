from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from osteon.adapters.hra import HRA, orthogonality
from osteon.core.errors import UsageError
from tests.contracts.adapter_kit import TASK, images, network, train


def test_orthogonality_of_known_vectors():
    assert orthogonality(torch.eye(4)[:, :3] * 5.0) == 0
    equal = torch.ones(4, 2)  # I - [[1, 1], [1, 1]] = [[0, -1], [-1, 0]]
    assert orthogonality(equal).item() == pytest.approx(math.sqrt(2), abs=1e-6)
    slanted = torch.tensor([[1.0, 3.0], [0.0, 4.0]])  # cosine 0.6
    assert orthogonality(slanted).item() == pytest.approx(0.6 * math.sqrt(2), abs=1e-6)


@pytest.mark.parametrize(("net", "layer"), [("vit", "blocks.0.attn.proj"), ("resnet", "layer2.0.conv1")])
def test_the_input_is_reflected_so_singular_values_stay_and_the_update_has_low_rank(net, layer):
    adapter = HRA(network(net), TASK, rank=4, targets=layer)
    train(adapter, lr=0.1)
    before = network(net).get_submodule(layer).weight.detach().flatten(1)
    after = adapter.merge().get_submodule(layer).weight.detach().flatten(1)
    torch.testing.assert_close(torch.linalg.svdvals(after), torch.linalg.svdvals(before), atol=1e-5, rtol=1e-4)
    assert 1 <= int(torch.linalg.matrix_rank(after - before, rtol=1e-4)) <= 4
    q = torch.eye(before.shape[1])
    for u in adapter.reflections()[0].detach().T:
        q = q @ (torch.eye(len(u)) - 2 * torch.outer(u, u) / (u @ u))
    torch.testing.assert_close(after, before @ q, atol=1e-5, rtol=1e-4)


def test_reflections_come_in_equal_pairs_and_the_penalty_is_felt():
    adapter = HRA(network("vit"), TASK, rank=4, penalty=0.5, targets="blocks.*.attn.proj")
    for u in adapter.reflections():
        assert torch.equal(u[:, 0], u[:, 1]) and torch.equal(u[:, 2], u[:, 3]) and not torch.equal(u[:, 1], u[:, 2])
    want = 0.5 * sum(orthogonality(u) for u in adapter.reflections())
    torch.testing.assert_close(adapter.penalty(), want)
    assert adapter.penalty() > 0.5 * 3 * 2.0  # two pairs: at least sqrt(4) a layer
    adapter.penalty().backward()
    assert adapter.reflections()[0].grad.abs().sum() > 0
    assert HRA(network("vit"), TASK, rank=4).penalty() is None
    assert adapter.expected_trainable() == 3 * 4 * 32 + 132
    kernel = HRA(network("resnet"), TASK, rank=4, targets="layer1.0.conv1")  # 8 channels, 3 x 3
    assert kernel.expected_trainable() == 4 * 8 * 9 + kernel.head_size


def test_odd_ranks_and_oblong_kernels_are_refused():
    for wrong in ({"rank": 3}, {"rank": 0}, {"penalty": -1.0}):
        with pytest.raises(UsageError, match="rank must be even"):
            HRA(network("vit"), TASK, **wrong)
    base = network("resnet")
    base.layer1[0].conv1 = nn.Conv2d(8, 8, (3, 1), padding=(1, 0), bias=False)
    with pytest.raises(UsageError, match="square kernels; layer1.0.conv1"):
        HRA(base, TASK)
    assert HRA(network("vit"), TASK, rank=2)(images(1)).shape == (1, 4)
