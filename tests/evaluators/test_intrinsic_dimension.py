from __future__ import annotations

import pytest
import torch
from torch import nn

from osteon.core.errors import UsageError
from osteon.evaluators.intrinsic_dimension import RandomSubspace, _fastfood, hadamard, intrinsic_dimension


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))


def columns(space: RandomSubspace, d: int) -> torch.Tensor:
    return torch.stack([space._expand(e) for e in torch.eye(d)], 1)


@pytest.mark.parametrize("projection", ["dense", "fastfood"])
def test_start_count_and_seed(projection: str) -> None:
    base = network()
    x = torch.randn(4, 6)
    space = RandomSubspace(base, 7, seed=3, projection=projection)
    assert torch.equal(space(x), base(x))  # nothing moved yet
    assert [p.numel() for p in space.parameters()] == [7]
    one, other, third = (RandomSubspace(network(), 7, seed=s, projection=projection) for s in (3, 3, 4))
    for m in (one, other, third):
        m.z.data = torch.arange(7.0)
    assert torch.equal(one(x), other(x)) and not torch.allclose(one(x), third(x))
    before = [p.clone() for p in base.parameters()]
    one(x).sum().backward()
    assert one.z.grad.abs().sum() > 0
    assert all(torch.equal(a, b) for a, b in zip(before, base.parameters(), strict=True))
    assert sorted(one.weights()) == sorted(n for n, _ in base.named_parameters())


def test_directions_have_unit_length_over_the_whole_network() -> None:
    dense = columns(RandomSubspace(network(), 5, projection="dense"), 5)
    assert torch.allclose(dense.norm(dim=0), torch.ones(5), atol=1e-5)
    g = torch.Generator().manual_seed(0)
    expand = _fastfood(5000, 40, g)
    fast = torch.stack([expand(e) for e in torch.eye(40)], 1)
    assert torch.allclose(fast.norm(dim=0), torch.ones(40), atol=0.1)
    assert (fast.T @ fast - torch.eye(40)).abs().max() < 0.2  # nearly orthogonal
    assert fast.shape == (5000, 40)
    assert abs(float(fast.mean())) < 1e-3 and 0.3 < float((fast > 0).double().mean()) < 0.7


def test_fastfood_permutes_between_its_transforms() -> None:
    """Without a permutation H G H is constant along i xor j, so that all columns hold the same sizes."""
    expand = _fastfood(16, 16, torch.Generator().manual_seed(0))
    sizes = torch.stack([expand(e) for e in torch.eye(16)], 1).abs()
    turned = torch.stack([sizes[torch.arange(16) ^ j, 0] for j in range(16)], 1)
    assert not torch.allclose(sizes, turned, atol=1e-3)


def test_the_least_dimension_is_the_one_that_reaches_the_level() -> None:
    def fit(module: nn.Module) -> float:
        d = sum(p.numel() for p in module.parameters())
        return min(1.0, 0.5 + 0.04 * d)  # 1 from d = 13 on, and in the whole network

    at = {level: intrinsic_dimension(network, fit, [5, 8, 10, 13], level=level).least for level in (0.7, 0.8, 0.9, 1.0)}
    assert at == {0.7: 5, 0.8: 8, 0.9: 10, 1.0: 13}


def test_hadamard() -> None:
    assert hadamard(torch.tensor([1.0, 2, 3, 4])).tolist() == [10, -2, -4, 0]
    x = torch.randn(3, 16)
    assert torch.allclose(hadamard(hadamard(x)), 16 * x, atol=1e-4)
    assert torch.allclose(hadamard(torch.eye(8)) @ hadamard(torch.eye(8)).T, 8 * torch.eye(8))


def test_a_planted_dimension_is_found() -> None:
    """Ten equations for 100 unknowns: about ten random directions solve them, and fewer do not."""
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(10, 100, generator=g), torch.randn(10, generator=g)

    class Free(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(100))

        def forward(self, a: torch.Tensor) -> torch.Tensor:
            return a @ self.w

    def fit(module: nn.Module) -> float:
        optimizer = torch.optim.LBFGS(module.parameters(), max_iter=200, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = (module(a) - b).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        return 1 - float((module(a) - b).square().mean().detach() / b.square().mean())

    found = intrinsic_dimension(Free, fit, [1, 2, 5, 10, 12, 50], level=0.99)
    assert found.least in (10, 12) and found.full == pytest.approx(1, abs=1e-3) and found.parameters == 100
    assert found.ratio == 100 / found.least and list(found.curve) == [d for d in (1, 2, 5, 10, 12) if d <= found.least]
    assert found.curve[1] < 0.5
    none = intrinsic_dimension(Free, fit, [1, 2], level=0.99)
    assert none.least is None and none.ratio is None and set(none.curve) == {1, 2}


def test_what_cannot_be() -> None:
    with pytest.raises(UsageError, match="do not fit"):
        RandomSubspace(network(), 1000)
    with pytest.raises(UsageError, match="no projection"):
        RandomSubspace(network(), 3, projection="sparse")
