from __future__ import annotations

import pytest
import torch

from osteon.core.errors import DataError, UsageError
from osteon.parts.label_maps import BODY, RADII, Shapes, compose, middles, number_labels, usual_shapes
from osteon.parts.types import Draws, Step


def draws(rows=(0, 1, 2, 3), total: int = 4, step: int = 0) -> Draws:
    return Draws(Step(step, 9, 3), torch.tensor(rows), total)


def one(radii=(0.5, 0.5, 0.5), power: float = 2.0, hollow: float = 0.0, centre=(0.0, 0, 0), turn=None) -> Shapes:
    zero = torch.zeros(1, 1, 3)
    return Shapes(torch.tensor([[centre]]), (torch.eye(3) if turn is None else turn)[None, None],
                  torch.tensor([[radii]]), torch.tensor([[power]]), torch.tensor([[hollow]]), zero, zero,
                  torch.zeros(1, 1))


def painted(shapes: Shapes, sides=(8, 8, 8)) -> torch.Tensor:
    labels = torch.zeros(sides, dtype=torch.int64)
    shapes.paint(labels, 0, 0, 7)
    return labels


def test_bodies_by_hand():
    z, y, x = torch.meshgrid(*[middles(8, 8)] * 3, indexing="ij")  # -0.875, -0.625 ... 0.875
    assert torch.equal(painted(one()) == 7, z**2 + y**2 + x**2 <= 0.25)
    assert torch.equal(painted(one(power=1.0)) == 7, z.abs() + y.abs() + x.abs() <= 0.5)
    box = painted(one((0.2, 0.4, 0.7), power=100.0)) == 7
    assert torch.equal(box, (z.abs() < 0.2) & (y.abs() < 0.4) & (x.abs() < 0.7))
    shell = painted(one((0.9,) * 3, hollow=0.5)) == 7
    assert torch.equal(shell, (z**2 + y**2 + x**2 <= 0.81) & (z**2 + y**2 + x**2 >= 0.2025))
    moved = painted(one(centre=(0.5, 0.0, -0.5))) == 7
    assert torch.equal(moved, (z - 0.5)**2 + y**2 + (x + 0.5)**2 <= 0.25)
    swap = torch.eye(3)[[2, 1, 0]]
    assert torch.equal(painted(one((0.2, 0.4, 0.7), 100.0, turn=swap)) == 7, box.transpose(0, 2))
    assert not painted(one(centre=(3.0, 0, 0))).any()


def test_nothing_of_a_bent_shape_is_cut_off():
    """Every cell against the formula, without the box that is looked at."""
    shapes = Shapes.draw(draws(), 12, RADII, torch.ones(3))
    places = torch.stack(torch.meshgrid(middles(6, 12), middles(10, 12), middles(12, 12), indexing="ij"), -1)
    for number in range(12):
        labels = torch.zeros(6, 10, 12, dtype=torch.int64)
        shapes.paint(labels, 1, number, 1)
        at = (1, number)
        bent = places + shapes.sway[at] * torch.sin((places * shapes.wave[at]).sum(-1) + shapes.phase[at])[..., None]
        local = torch.einsum("dhwi,ij->dhwj", bent - shapes.centre[at], shapes.turn[at]) / shapes.radii[at]
        far = (local.abs()**shapes.power[at]).sum(-1)**(1 / shapes.power[at])
        assert (((far <= 1) & (far >= shapes.hollow[at])) != (labels == 1)).sum() <= 1  # rounding at the edge
    assert float(shapes.sway.abs().max()) > 0 and 0 < float((shapes.hollow > 0).float().mean()) < 0.5
    torch.testing.assert_close(shapes.turn @ shapes.turn.mT, torch.eye(3).expand(4, 12, 3, 3), atol=1e-5, rtol=0)
    assert float(shapes.power.min()) >= 1 and float(shapes.power.max()) <= 8


def test_maps_are_the_shapes_in_order_within_a_body():
    reach = torch.full((3,), 9 / 10)
    loose, held = (compose(draws(), (10, 10, 10), least=2, most=4, body=body) for body in (0.0, 1.0))
    shapes = Shapes.draw(draws().fork("shapes"), 4, RADII, reach)
    count = 2 + (draws().fork("count").rand() * 3).long()
    assert count.unique().numel() > 1
    body = Shapes.draw(draws().fork("body"), 1, BODY, 0.2 * reach)
    body.hollow.zero_()
    for row in range(4):
        want = torch.zeros(10, 10, 10, dtype=torch.int64)
        for number in range(int(count[row])):
            shapes.paint(want, row, number, number + 1)
        assert torch.equal(loose[row], want)
        inside = torch.zeros(10, 10, 10, dtype=torch.int64)
        body.paint(inside, row, 0, 1)
        assert torch.equal(held[row], torch.where(inside == 1, torch.where(want == 0, 5, want), 0))


def test_a_sample_does_not_depend_on_the_others_and_every_step_is_new():
    whole = compose(draws(), (12, 12), least=3, most=6)
    assert whole.shape == (4, 12, 12) and whole.dtype == torch.int64
    assert torch.equal(compose(draws((2, 3)), (12, 12), least=3, most=6), whole[2:])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(compose(draws(), (12, 12), least=3, most=6), whole)
    assert not torch.equal(compose(draws(step=1), (12, 12), least=3, most=6), whole)
    assert (whole.flatten(1).amax(1) > 0).all()  # an image is a slice through the middle of its shapes


def test_how_many_shapes():
    assert [usual_shapes((n, n)) for n in (8, 16, 32, 64, 128)] == [(3, 6), (5, 10), (10, 20), (20, 40), (20, 40)]
    for wrong in ({"least": 0, "most": 3}, {"least": 4, "most": 3}, {"least": 1, "most": 600}):
        with pytest.raises(UsageError, match="shapes"):
            compose(draws(), (4, 4), **wrong)
    with pytest.raises(UsageError, match="sides"):
        compose(draws(), (4,), least=1, most=2)


def test_labels_are_numbered_in_each_sample():
    got = number_labels(torch.tensor([[[0, 7], [7, 300]], [[5, 5], [5, 5]]]))
    assert got.tolist() == [[[0, 1], [1, 2]], [[0, 0], [0, 0]]]
    with pytest.raises(DataError, match="600 different values"):
        number_labels(torch.arange(600).view(1, 20, 30))
