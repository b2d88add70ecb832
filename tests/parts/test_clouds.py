from __future__ import annotations

import itertools

import pytest
import torch

from osteon.parts import clouds
from osteon.parts.clouds import (
    chamfer,
    curve_order,
    farthest_points,
    morton,
    nearest_points,
    squared_distances,
    take_points,
)


def cloud(batch: int, points: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, points, 3, generator=torch.Generator().manual_seed(seed))


def test_farthest_points_by_hand():
    line = torch.tensor([[0.0, 0, 0], [1, 0, 0], [4, 0, 0], [10, 0, 0], [5.5, 0, 0]])[None]
    # 0; then 10; then the one with the largest least distance: 5.5 (4.5 from 10) before 4 (4); then 1 (1) or 4 (1.5)
    assert farthest_points(line, 4).tolist() == [[0, 3, 4, 2]]
    assert farthest_points(line, 1).tolist() == [[0]]
    with pytest.raises(ValueError, match="6 of 5"):
        farthest_points(line, 6)


def test_farthest_points_are_distinct_until_there_are_none_left():
    x = cloud(3, 20)
    assert all(len(set(row)) == 20 for row in farthest_points(x, 20).tolist())
    twice = torch.cat([x[:, :2]] * 10, 1)
    assert farthest_points(twice, 5)[:, :2].tolist() == [[0, 1]] * 3
    assert (take_points(twice, farthest_points(twice, 5))[:, 2:] == x[:, :1]).all()


def test_nearest_points_are_those_of_a_loop_and_begin_with_the_centre():
    x = cloud(2, 30)
    centres = x[:, [4, 7]]
    got = nearest_points(x, centres, 5)
    for b, g in itertools.product(range(2), range(2)):
        apart = ((x[b] - centres[b, g]) ** 2).sum(1)
        assert got[b, g].tolist() == apart.argsort()[:5].tolist()
    assert got[:, :, 0].tolist() == [[4, 7]] * 2
    assert take_points(x, got).shape == (2, 2, 5, 3)
    torch.testing.assert_close(take_points(x, got)[1, 0, 3], x[1, got[1, 0, 3]])
    torch.testing.assert_close(squared_distances(x, x), torch.cdist(x, x).square(), atol=1e-4, rtol=1e-4)
    assert (squared_distances(x, x).diagonal(dim1=1, dim2=2) == 0).all()


def test_z_order_by_hand():
    cells = torch.tensor(list(itertools.product(range(2), repeat=3)))
    assert morton(cells, 1).tolist() == list(range(8))  # x is the highest bit of three
    assert morton(torch.tensor([[2, 0, 0], [0, 0, 3], [3, 3, 3], [1, 2, 0]]), 2).tolist() == [32, 9, 63, 20]
    corners = torch.tensor([[[1.0, 1, 1], [0, 0, 0], [0.1, 0, 1], [0, 0.1, 0]]])
    assert curve_order(corners).tolist() == [[1, 3, 2, 0]]
    assert curve_order(7 + 3 * corners).tolist() == curve_order(7 + 3 * corners, 1).tolist() == [[1, 3, 2, 0]]
    assert curve_order(torch.ones(1, 3, 3)).tolist() == [[0, 1, 2]]


def test_chamfer_by_hand():
    a = torch.tensor([[0.0, 0, 0], [1, 0, 0]])
    b = torch.tensor([[0.0, 0, 0], [0, 2, 0], [0, 0, 3]])
    # to b: 0 and 1, mean 1/2; to a: 0, 4 and 9, mean 13/3
    assert float(chamfer(a, b)) == pytest.approx(0.5 + 13 / 3)
    assert float(chamfer(b, a)) == pytest.approx(0.5 + 13 / 3)
    assert float(chamfer(a, a.flip(0))) == 0
    real_b = torch.tensor([True, False, True])
    assert float(chamfer(a, b, None, real_b)) == pytest.approx(0.5 + 4.5)
    assert float(chamfer(b, a, real_b, None)) == pytest.approx(0.5 + 4.5)
    none = torch.zeros(3, dtype=torch.bool)
    assert float(chamfer(a, b, None, none)) == 0 and float(chamfer(b, a, none, None)) == 0


def test_chamfer_is_the_same_in_blocks_and_has_the_gradient_of_the_least_distances(monkeypatch):
    a, b = cloud(6, 7).view(2, 3, 7, 3).requires_grad_(), cloud(6, 9, seed=1).view(2, 3, 9, 3)
    apart = squared_distances(a, b)
    plain = apart.amin(-1).mean(-1) + apart.amin(-2).mean(-1)
    want, = torch.autograd.grad(plain.sum(), a)
    for held in (clouds.HELD, 70):
        monkeypatch.setattr(clouds, "HELD", held)
        got = chamfer(a, b)
        assert got.shape == (2, 3)
        torch.testing.assert_close(got, plain)
        torch.testing.assert_close(torch.autograd.grad(got.sum(), a)[0], want)


def test_chamfer_of_a_few_real_points_is_that_of_them_alone():
    a, b = cloud(4, 6), cloud(4, 6, seed=3)
    real = torch.tensor([[True] * 3 + [False] * 3] * 4)
    torch.testing.assert_close(chamfer(a, b, real, real), chamfer(a[:, :3], b[:, :3]))
