from __future__ import annotations

import math

import pytest
import torch

from osteon.core.errors import UsageError
from osteon.parts.clouds import squared_distances
from osteon.parts.types import DataSpec, Draws, Step
from osteon.views import make_views
from osteon.views.points import RECIPES, PointsPlan, cut_rank, rotations, turned

B, P = 6, 64


def spec(channels: int = 3, **traits: object) -> DataSpec:
    return DataSpec("points", channels, P, (0.0,) * channels, (1.0,) * channels, 1.0, shape=(P,), traits=traits)


def draws(rows: int = B, total: int = B) -> Draws:
    return Draws(Step(1, 10, 0), torch.arange(rows), total)


def cloud(channels: int = 3) -> torch.Tensor:
    return torch.randn(B, channels, P, generator=torch.Generator().manual_seed(0))


def view(plan: PointsPlan, x: torch.Tensor, data: DataSpec | None = None):
    return plan.view(x, data or spec(), draws())


@pytest.mark.parametrize("up", ["", "x", "y", "z"])
def test_rotations_are_rotations(up):
    turn = rotations(draws(), up)
    torch.testing.assert_close(turn @ turn.transpose(1, 2), torch.eye(3).expand(B, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(turn), torch.ones(B))
    if up:
        axis = torch.eye(3)["xyz".index(up)]
        torch.testing.assert_close(turn @ axis, axis.expand(B, 3))
        assert (turn[:, ("xyz".index(up) + 1) % 3, ("xyz".index(up) + 1) % 3] < 0.999).all()
    x = cloud()
    torch.testing.assert_close(turned(x, turn), torch.einsum("bij,bjp->bip", turn, x))


def test_rotations_about_all_axes_send_a_vector_anywhere():
    turn = rotations(Draws(Step(0, 1, 0), torch.arange(4000), 4000))
    z = turn[:, :, 2]
    assert z.mean(0).abs().max() < 0.05
    torch.testing.assert_close((z[:, :, None] * z[:, None]).mean(0), torch.eye(3) / 3, atol=0.03, rtol=0)
    assert (turn.diagonal(dim1=1, dim2=2).sum(1)).mean().abs() < 0.05  # uniform rotations have a mean trace of 0


def test_each_part_alone_does_what_it_says():
    x = cloud()
    same = view(PointsPlan(P), x)
    assert torch.equal(same.x, x)
    turn = view(PointsPlan(P, turn="all"), x)
    torch.testing.assert_close(squared_distances(*[turn.x.transpose(1, 2)] * 2),
                               squared_distances(*[x.transpose(1, 2)] * 2), atol=1e-4, rtol=1e-4)
    moved = view(PointsPlan(P, shift=0.2), x)
    shift = (moved.x - x)
    torch.testing.assert_close(shift, shift[..., :1].expand_as(shift), atol=1e-6, rtol=0)
    assert shift.abs().max() <= 0.2 and shift[..., 0].unique().numel() == 3 * B
    stretched = view(PointsPlan(P, stretch=1.5), x).x / x
    torch.testing.assert_close(stretched, stretched[..., :1].expand_as(x))
    assert stretched.min() >= 1 / 1.5 - 1e-5 and stretched.max() <= 1.5 + 1e-5
    trembling = view(PointsPlan(P, jitter=0.02), x).x - x
    assert trembling.abs().max() <= 0.05 + 1e-6 and 0.015 < trembling.std() < 0.025


def test_cuts_keep_one_side_or_a_cube_and_repeat_what_is_kept():
    x = cloud()
    made = view(PointsPlan(P, keep=0.5), x)
    kept = made.params["kept"]
    assert (kept.sum(1) >= P / 2).all() and (kept.sum(1) < P).any()
    for b in range(B):
        points = {tuple(p) for p in x[b, :, kept[b]].T.tolist()}
        shown = [tuple(p) for p in made.x[b].T.tolist()]
        assert set(shown) == points
        counts = [shown.count(p) for p in points]
        assert max(counts) - min(counts) <= 1
    rank = cut_rank(x, draws())
    assert rank.sort(1).values.tolist() == [list(range(P))] * B
    direction = draws().fork("cut").randn(3)  # the stream the plan cuts by
    along = (x * direction[..., None]).sum(1)
    sided = [bool(along[b][kept[b]].max() <= along[b][~kept[b]].min()) for b in range(B) if not kept[b].all()]
    assert any(sided) and not all(sided)


def test_thinning_drops_no_more_than_it_may():
    kept = view(PointsPlan(P, drop=0.5), cloud()).params["kept"].float().mean(1)
    assert (kept > 0.3).all() and kept.mean() < 0.95 and kept.std() > 0.02


def test_normals_turn_with_the_cloud_and_stay_normal():
    # a flat patch through 0, whose normal is (1, 1, 1)
    flat = torch.randn(B, 3, P, generator=torch.Generator().manual_seed(0))
    flat = flat - flat.mean(1, keepdim=True)
    x = torch.cat([flat, torch.full((B, 3, P), 3**-0.5), cloud()[:, :1]], 1)
    for plan in (PointsPlan(P, turn="all"), PointsPlan(P, stretch=1.5),
                 PointsPlan(P, turn="up", stretch=1.5, keep=0.5)):
        made = view(plan, x, spec(7, normals=True, up="z")).x
        assert (made[:, :3] * made[:, 3:6]).sum(1).abs().max() < 1e-5
        torch.testing.assert_close(made[:, 3:6].norm(dim=1), torch.ones(B, P))
    other = view(PointsPlan(P, turn="all"), x, spec(7, normals=False)).x
    assert torch.equal(other[:, 3:], x[:, 3:])
    assert torch.equal(made[:, 6].sort(1).values.unique(), made[:, 6].unique())


def test_views_do_not_depend_on_who_else_is_local():
    x, plan = cloud(), RECIPES["simclr"](spec(), turn="all")[0]
    whole = plan.view(x, spec(), draws())
    part = plan.view(x[2:4], spec(), Draws(Step(1, 10, 0), torch.tensor([2, 3]), B))
    assert torch.equal(part.x, whole.x[2:4])


def test_recipes():
    assert {name: len(make(spec())) for name, make in RECIPES.items()} == {
        "none": 1, "crop_flip": 1, "simclr": 2, "byol": 2, "multicrop": 6, "supervised": 1}
    assert torch.equal(make_views("none", spec())(cloud(), draws())[0].x, cloud())
    sizes = [v.x.shape[2] for v in make_views("multicrop", spec(), stride=8)(cloud(), draws())]
    assert sizes == [64, 64, 32, 32, 32, 32]
    first, second = make_views("simclr", spec())(cloud(), draws())
    assert not torch.equal(first.x, second.x)
    mild = RECIPES["crop_flip"](spec())[0]
    assert (mild.keep, mild.turn, mild.stretch, mild.shift, mild.jitter) == (1, "none", 1.5, 0.2, 0)
    upright = make_views("simclr", spec(up="y"), strength=0.0, drop=0.0, min_scale=1.0)(cloud(), draws())[0]
    torch.testing.assert_close(upright.x[:, 1], cloud()[:, 1], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(upright.x[:, 0], cloud()[:, 0])


@pytest.mark.parametrize("wrong", [{"min_scale": 0.0}, {"min_scale": 1.5}, {"drop": 1.0}, {"turn": "sideways"},
                                   {"strength": -1.0}])
def test_impossible_views(wrong):
    with pytest.raises(UsageError, match="impossible"):
        make_views("simclr", spec(), **wrong)


def test_statistics_are_applied_last():
    data = DataSpec("points", 3, P, (1.0, 2.0, 3.0), (2.0,) * 3, 1.0, shape=(P,))
    got = PointsPlan(P).view(cloud(), data, draws()).x
    torch.testing.assert_close(got, (cloud() - torch.tensor([1.0, 2, 3])[:, None]) / 2)
    assert math.isfinite(float(got.sum()))
