from __future__ import annotations

import pytest
import torch
from torch import nn

from osteon.parts.norm import BatchNorm
from osteon.parts.projectors import expander, width_of


@pytest.mark.parametrize(("dim", "asked", "expected"), [(2048, 0, 8192), (64, 0, 256), (128, 0, 512), (4096, 0, 8192),
                                                       (64, 48, 48), (4096, 9000, 9000)])
def test_width_rule(dim: int, asked: int, expected: int):
    assert width_of(dim, asked, times=4, most=8192) == expected


def test_expander_ends_in_a_linear_layer_without_bias():
    head = expander((6, 5, 4, 3))
    assert [type(m) for m in head] == [nn.Linear, BatchNorm, nn.ReLU, nn.Linear, BatchNorm, nn.ReLU, nn.Linear]
    assert head[-1].bias is None and head[-1].weight.shape == (3, 4)
    assert head(torch.randn(7, 6, generator=torch.Generator().manual_seed(0))).shape == (7, 3)


def test_layer_norm_head_treats_samples_apart():
    head, x = expander((6, 5, 3), norm="layer"), torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(head(x)[:2], head(x[:2]))
