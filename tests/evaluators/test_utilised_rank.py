from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from osteon.core.errors import UsageError
from osteon.evaluators.utilised_rank import project, second_moments, used, utilised_rank


def test_planted_rank_is_found() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(400, 3, generator=g) @ torch.randn(3, 10, generator=g)  # three of ten directions
    network = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 6))
    first, second = utilised_rank(network, [x[:200], x[200:]], energy=0.999999)
    assert (first.name, first.inputs, first.outputs, first.width_in, first.width_out) == ("0", 3, 3, 10, 8)
    assert first.rank == 3 and first.share == 3 / 8
    assert second.inputs > 3  # the non-linearity spreads
    one = nn.Sequential(nn.Linear(10, 8))
    nn.init.zeros_(one[0].weight)
    with torch.no_grad():
        one[0].weight[2] = 1.0
    assert utilised_rank(one, [torch.randn(50, 10)])[0].outputs == 1


def test_used_directions_by_hand() -> None:
    moment = torch.diag(torch.tensor([1.0, 6, 3]))
    assert [used(moment, e).shape for e in (0.6, 0.61, 1.0)] == [(3, 1), (3, 2), (3, 3)]
    assert used(moment, 0.6)[:, 0].abs().tolist() == [0, 1, 0]
    assert used(torch.diag(torch.tensor([1.0, 0, 0])), 1.0).shape == (3, 1)
    assert used(torch.zeros(3, 3), 0.9).shape == (3, 1)


def test_share_grows_with_energy_and_lies_in_range() -> None:
    network, x = nn.Sequential(nn.Linear(12, 9)), torch.randn(300, 12) * torch.logspace(0, -2, 12)
    shares = [utilised_rank(network, [x], e)[0].share for e in (0.1, 0.5, 0.9, 0.99, 1.0)]
    assert shares == sorted(shares) and 0 < shares[0] < shares[-1] == 1
    for bad in (0.0, 1.5):
        with pytest.raises(UsageError):
            utilised_rank(network, [x], bad)
    with pytest.raises(UsageError, match="no linear layer"):
        utilised_rank(nn.ReLU(), [x])


def test_projection_keeps_the_outputs_and_factors_have_the_stated_size() -> None:
    x = torch.randn(500, 4) @ torch.randn(4, 10)
    weight = torch.randn(10, 7)
    moment = x.T.double() @ x.double()
    a, b = project(weight, moment, 0.999999999)
    assert a.shape == (10, 4) and b.shape == (4, 7)
    assert torch.allclose(x.double() @ a @ b, x.double() @ weight.double(), atol=1e-4)
    assert a.numel() + b.numel() == 4 * (10 + 7)
    rough = project(weight, moment, 0.5)
    lost = (x.double() @ rough[0] @ rough[1] - x.double() @ weight.double()).square().sum()
    assert 0 < lost < (x.double() @ weight.double()).square().sum()
    narrow = torch.zeros(10, 7)
    narrow[:, 0] = 1.0
    assert project(narrow, moment, 0.999)[1].shape == (1, 7)  # the outputs are the smaller side


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"dilation": 2}])
def test_convolutions_see_patches(options: dict) -> None:
    conv, x = nn.Conv2d(2, 3, 3, bias=False, **options), torch.randn(2, 2, 7, 7)
    moments = second_moments(nn.Sequential(conv), [x])["0"]
    patches = F.unfold(x, 3, **options).transpose(1, 2).reshape(-1, 18)
    assert torch.allclose(moments, patches.T.double() @ patches.double())
    assert torch.allclose(second_moments(nn.Sequential(conv), [x, -2 * x])["0"], 5 * moments)  # all batches count
    outputs = conv(x).movedim(1, -1).reshape(-1, 3).detach().double()
    weight = conv.weight.detach().flatten(1).T.double()
    assert torch.allclose(weight.T @ moments @ weight, outputs.T @ outputs, atol=1e-3)
    grouped = nn.Sequential(nn.Conv2d(2, 2, 1, groups=2), nn.Conv2d(2, 2, 1))
    assert list(second_moments(grouped, [x])) == ["1"]
