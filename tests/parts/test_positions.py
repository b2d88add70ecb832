from __future__ import annotations

import math

import pytest
import torch

from osteon.core.errors import UsageError
from osteon.parts.positions import resample, sincos


def test_naive_loop():
    rows, columns, dim = 2, 3, 8
    table = sincos((rows, columns), dim)[0]
    for r in range(rows):
        for c in range(columns):
            want = []
            for place in (c, r):  # the column first, as in MAE's code
                angles = [place / 10000 ** (i / (dim // 4)) for i in range(dim // 4)]
                want += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            torch.testing.assert_close(table[r * columns + c], torch.tensor(want))


def test_values_a_person_can_recompute():
    table = sincos((1, 2), 4)[0]
    assert table[0].tolist() == [0.0, 1.0, 0.0, 1.0]
    torch.testing.assert_close(table[1], torch.tensor([math.sin(1), math.cos(1), 0.0, 1.0]))


def test_positions_are_told_apart():
    table = sincos((14, 14), 64)[0]
    distance = torch.cdist(table, table) + torch.eye(len(table)) * 9
    assert distance.min() > 0.5


def test_another_grid_lies_between_the_reference_cells():
    reference = (4, 4)
    assert torch.equal(sincos(reference, 16, reference=reference), sincos(reference, 16))
    # half as many cells over the same field of view: centres at 0.5 and 2.5 of the reference
    half = sincos((1, 2), 4, reference=(1, 4))[0]
    torch.testing.assert_close(half[:, 0], torch.tensor([math.sin(0.5), math.sin(2.5)]))
    # one row that stands for four: centre at 1.5
    flat = sincos((1, 2), 4, reference=(4, 2))[0]
    torch.testing.assert_close(flat[:, 2], torch.full((2,), math.sin(1.5)))


def test_resample():
    learned = torch.arange(16.0)[None, :, None].repeat(1, 1, 3)
    assert resample(learned, (4, 4), (4, 4)) is learned
    constant = torch.full((1, 16, 3), 2.0)
    torch.testing.assert_close(resample(constant, (4, 4), (7, 2)), torch.full((1, 14, 3), 2.0))
    # a ramp along columns stays a ramp along columns, in raster order
    ramp = torch.arange(4.0).repeat(4)[None, :, None]
    wide = resample(ramp, (4, 4), (2, 8))[0, :, 0].reshape(2, 8)
    assert torch.allclose(wide[0], wide[1], atol=1e-5) and bool((wide[0].diff() > 0).all())
    assert wide.mean().item() == pytest.approx(1.5, abs=1e-5)


def test_resample_carries_gradient():
    learned = torch.randn(1, 16, 3, requires_grad=True)
    resample(learned, (4, 4), (8, 8)).sum().backward()
    assert bool((learned.grad != 0).all())


def test_refusals():
    with pytest.raises(UsageError, match="multiple of 4"):
        sincos((2, 2), 6)
    with pytest.raises(UsageError, match="do not fill"):
        resample(torch.zeros(1, 15, 4), (4, 4), (2, 2))
