from __future__ import annotations

import pytest
import torch
from torch import nn

from osteon.adapters._singular import SingularValues, rank_for
from osteon.adapters.svfit import SVFit
from osteon.core.errors import UsageError
from osteon.parts.reparam import Reparam
from tests.contracts.adapter_kit import TASK, network, train


def test_the_rank_is_the_least_that_reaches_the_energy():
    values = torch.tensor([4.0, 2.0, 1.0, 0.0])  # squares 16, 4, 1, 0 of 21: shares 0.762, 0.952, 1
    assert [rank_for(values, e) for e in (0.5, 0.762, 0.8, 0.95, 0.96, 1.0)] == [1, 2, 2, 2, 3, 3]
    assert rank_for(torch.ones(5), 1.0) == 5 and rank_for(torch.zeros(3), 0.99) == 1


def diagonal(*values: float) -> nn.Linear:
    layer = nn.Linear(len(values), len(values), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.diag(torch.tensor(values)))
    return layer


def test_the_change_scales_the_largest_directions_alone():
    layer = diagonal(3.0, 2.0, 1.0)
    change = SingularValues(layer, rank=2)
    with torch.no_grad():
        change.shift.copy_(torch.tensor([0.5, -1.0]))
    torch.testing.assert_close(change.weight_delta(), torch.diag(torch.tensor([0.5, -1.0, 0.0])))
    x = torch.tensor([[1.0, 1.0, 1.0]])
    torch.testing.assert_close(Reparam(layer, change)(x), torch.tensor([[3.5, 1.0, 1.0]]))
    assert [p.numel() for p in change.parameters()] == [2]


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Conv2d(3, 4, 3, stride=2, padding=1),
                                   nn.Conv2d(4, 4, 3, groups=2),
                                   nn.Conv2d(3, 4, (3, 1), padding_mode="circular", padding=(1, 0))], ids=str)
def test_the_short_way_through_the_singular_vectors_is_the_changed_weight(layer):
    change = SingularValues(layer, rank=3)
    with torch.no_grad():
        change.shift.copy_(torch.tensor([1.0, -0.5, 0.25]))
    x = torch.randn(2, 6) if isinstance(layer, nn.Linear) else torch.randn(2, layer.in_channels, 8, 8)
    changed = Reparam(layer, change)
    torch.testing.assert_close(changed(x), changed.merge()(x), atol=1e-5, rtol=1e-4)
    u, s, v = torch.linalg.svd(layer.weight.detach().flatten(1), full_matrices=False)
    shifted = s + torch.tensor([1.0, -0.5, 0.25, *[0.0] * (len(s) - 3)])
    torch.testing.assert_close(changed.weight.flatten(1), u @ torch.diag(shifted) @ v, atol=1e-5, rtol=1e-4)


def test_the_change_stays_in_the_span_and_singular_vectors_stay():
    adapter = SVFit(network("vit"), TASK, rank=3, targets="blocks.*.mlp.fc1")
    train(adapter, lr=0.1)
    for reparam in adapter.layers().values():
        delta, change = reparam.change.weight_delta().detach(), reparam.change
        assert int(torch.linalg.matrix_rank(delta, rtol=1e-4)) == 3
        projected = change.left @ change.left.T @ delta @ change.right.T @ change.right
        torch.testing.assert_close(projected, delta, atol=1e-5, rtol=1e-4)


def test_counts_and_options():
    base = network("vit")
    assert SVFit(base, TASK, rank=5).expected_trainable() == 12 * 5 + 132
    assert SVFit(base, TASK, rank=99).expected_trainable() == 12 * 32 + 132  # at most all
    whole, part = (SVFit(base, TASK, energy=e).expected_trainable() for e in (1.0, 0.5))
    assert whole == 12 * 32 + 132 and part < whole / 1.5
    half = SVFit(base, TASK, energy=0.5, targets="blocks.*.mlp.fc1")
    assert list(half.layers()) == [f"blocks.{i}.mlp.fc1" for i in range(3)]
    assert half.expected_trainable() == sum(p.numel() for p in half.trainable().values())
    note = next(n for n in SVFit(base, TASK, rank=5).notes if "singular values" in n)
    assert "blocks.0.attn.qkv 5" in note
    for wrong in ({"energy": 0.0}, {"energy": 1.1}, {"rank": -1}):
        with pytest.raises(UsageError, match="energy lies in"):
            SVFit(base, TASK, **wrong)
