"""Stems of clouds: tokens are groups of near points, or cells of a grid in which every point belongs to one token."""

from __future__ import annotations

import pytest
import torch

from osteon.backbones import Backbone, build_backbone
from osteon.backbones._stem_points import PointGroups
from osteon.backbones._stem_voxels import VoxelTokens
from osteon.core.errors import UsageError
from osteon.parts.clouds import squared_distances


def clouds(batch: int = 3, points: int = 64, channels: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, channels, points, generator=torch.Generator().manual_seed(seed))


def shuffled(x: torch.Tensor, keep_first: bool = False) -> torch.Tensor:
    order = torch.randperm(x.shape[2], generator=torch.Generator().manual_seed(5))
    if keep_first:
        order = torch.cat([torch.zeros(1, dtype=torch.int64), order[order != 0]])
    return x[:, :, order]


def network(stem: str, points: int = 64, channels: int = 3, **options: int) -> Backbone:
    torch.manual_seed(0)
    return build_backbone("vit_tiny", channels=channels, size=(points,), dim=16, depth=1, heads=2, stem=stem,
                          stem_options=options)


def test_default_groups_are_the_papers_for_1024_points_and_fewer_for_fewer():
    for points, groups, size in ((1024, 64, 32), (2048, 64, 64), (512, 64, 16), (256, 32, 16), (1000, 50, 40)):
        stem = PointGroups(3, (points,), 16)
        assert (points // stem.stride, stem.size, stem.shown_width) == (groups, size, 3 * size)
    with pytest.raises(UsageError, match="do not make 48 groups"):
        PointGroups(3, (64,), 16, groups=48)
    with pytest.raises(UsageError, match="do not make 1 groups"):
        PointGroups(3, (67,), 16)
    with pytest.raises(UsageError, match="no clouds"):
        PointGroups(3, (8, 8), 16)


def test_groups_are_near_points_about_centres_that_are_points_of_the_cloud():
    net, x = network("points", groups=8, size=5), clouds()
    places, shown = net.places(x), net.shown(x).unflatten(-1, (-1, 3))
    assert net.grid(64) == (8,) and places.shape == (3, 8, 3) and shown.shape == (3, 8, 5, 3)
    points = x.transpose(1, 2)
    for b in range(3):
        assert any(torch.equal(points[b, 0], centre) for centre in places[b])  # the first point is a centre
        for g in range(8):
            apart = (points[b] - places[b, g]).norm(dim=1).sort().values[:5]
            torch.testing.assert_close(shown[b, g].norm(dim=1), apart)
    assert (shown[:, :, 0] == 0).all()  # the centre itself is the nearest


def test_tokens_do_not_depend_on_the_order_of_points_nor_groups_on_where_the_cloud_is():
    net, x = network("points", groups=8), clouds()
    torch.testing.assert_close(net(shuffled(x, keep_first=True)).pooled, net(x).pooled)
    torch.testing.assert_close(net.shown(x + 0.5), net.shown(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(net.stem(x + 0.5), net.stem(x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(net.places(x + 0.5), net.places(x) + 0.5, atol=1e-5, rtol=1e-5)


def test_tokens_are_in_the_order_of_their_places():
    lined = torch.zeros(1, 3, 64)
    lined[0, 0] = torch.randperm(64, generator=torch.Generator().manual_seed(0)).float()
    places = network("points", groups=16).places(lined)[0, :, 0]
    assert torch.equal(places, places.sort().values)


def test_a_groups_token_by_hand():
    net, x = network("points", groups=8, size=3), clouds()
    stem = net.patch_embed
    token = net.stem(x)[1, 2]
    group = net.shown(x)[1, 2].view(3, 3)
    each = stem.widen(stem.norm1(stem.lift(group)).relu())
    joined = torch.cat([each, each.max(0).values.expand(3, -1)], 1)
    mixed = joined @ torch.cat([stem.local.weight, stem.whole.weight], 1).T + stem.local.bias
    torch.testing.assert_close(token, stem.out(stem.norm2(mixed).relu()).max(0).values)


def test_further_channels_are_read_with_the_points():
    net, x = network("points", channels=5), clouds(channels=5)
    other = x.clone()
    other[:, 4] += 1
    assert not torch.equal(net(x).pooled, net(other).pooled)
    assert torch.equal(net.shown(x), net.shown(other)) and torch.equal(net.places(x), net.places(other))
    torch.testing.assert_close(net(shuffled(x, keep_first=True)).pooled, net(x).pooled)


def test_error_is_the_chamfer_distance_whatever_the_order():
    net, x = network("points", groups=8, size=4), clouds()
    shown = net.shown(x)
    turned = shown.unflatten(-1, (-1, 3)).flip(2).flatten(2)
    assert (net.shown_error(turned, shown) == 0).all()
    moved = turned.unflatten(-1, (-1, 3)) + torch.tensor([1e-3, 0, 0])
    torch.testing.assert_close(net.shown_error(moved.flatten(2), shown), torch.full((3, 8), 2e-6), rtol=0.01, atol=0)


@pytest.mark.parametrize("stem", ["points", "voxels"])
def test_pictures_are_made_of_the_clouds_own_points(stem):
    net, x = network(stem), clouds()
    back = net.assemble(net.shown(x), x)
    assert back.shape == x.shape and back.isfinite().all()
    apart = squared_distances(back.transpose(1, 2), x.transpose(1, 2)).amin(2).sqrt()
    # groups hold points themselves; voxels the mean of theirs, of a side of at most 1/16 of the cloud's
    reach = 1e-4 if stem == "points" else float((x.amax(2) - x.amin(2)).max()) / 16 * 3**0.5
    assert apart.max() <= reach
    blank = net.assemble(net.shown_blank(net.shown(x)), x)
    assert blank.shape == x.shape and blank.isfinite().all()


def test_smaller_views_have_fewer_tokens_of_the_same_sort():
    for stem in ("points", "voxels"):
        net = network(stem, points=128)
        small = net(clouds(points=64))
        assert small.grid == net.grid(64) and small.tokens.shape[1] == net.grid(64)[0]


@pytest.mark.parametrize("stem", ["points", "voxels"])
def test_hidden_tokens_are_not_seen_and_degenerate_clouds_are_finite(stem):
    net, x = network(stem), clouds()
    count = net.grid(64)[0]
    tokens = net.stem(x)
    mask = torch.zeros(3, count, dtype=torch.bool)
    mask[:, 1] = True
    net.patch_embed.forward = lambda _x: torch.where(mask[..., None], 7.0, tokens)  # type: ignore[method-assign]
    first = net(x, mask=mask).pooled
    net.patch_embed.forward = lambda _x: tokens  # type: ignore[method-assign]
    assert torch.equal(net(x, mask=mask).pooled, first)
    again = network(stem)
    for flat in (torch.zeros(2, 3, 64), torch.ones(2, 3, 64), clouds(2) * torch.tensor([1.0, 0, 0])[:, None]):
        assert again(flat).pooled.isfinite().all() and again.shown(flat).isfinite().all()
        assert again.shown_error(again.shown(flat), again.shown(flat)).isfinite().all()


def test_every_point_belongs_to_one_cell_and_tokens_are_the_occupied_cells():
    net, x = network("voxels", points=128), clouds(points=128)
    stem = net.patch_embed
    where, tokens = stem._voxels(x)
    assert tokens == 64 and stem.stride == 2
    low, high = x.amin(2), x.amax(2)
    side = (high - low).amax(1) / 4
    corner = (low + high) / 2 - 2 * side[:, None]
    cells = ((x - corner[..., None]) / side[:, None, None]).floor().clamp(0, 3).long()
    for b in range(3):
        named = {tuple(c) for c in cells[b].T.tolist()}
        assert int(where.count[b]) == len(named) == len(set(where.token[b].tolist()))
        assert sorted(set(where.token[b].tolist())) == list(range(len(named)))
        for p in (0, 17, 90):  # a token's centre is the middle of its points' cell
            middle = corner[b] + (cells[b, :, p] + 0.5) * side[b]
            torch.testing.assert_close(where.centres[b, where.token[b, p]], middle)
    assert torch.equal(stem.present(x).sum(1), where.count)
    full = (stem.shown(x).unflatten(-1, (-1, 4))[..., 3].sum(2) > 0)
    assert torch.equal(full, torch.arange(64) < where.count[:, None])


def test_voxel_tokens_do_not_depend_on_the_order_of_points_on_place_or_on_size():
    net, x = network("voxels"), clouds()
    torch.testing.assert_close(net.stem(shuffled(x)), net.stem(x), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(net.shown(3 * x + 2), net.shown(x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(net.places(3 * x), 3 * net.places(x), atol=1e-4, rtol=1e-4)


def test_a_voxel_token_by_hand():
    stem = VoxelTokens(3, (64,), 8, cells=2, fine=2)
    x = torch.zeros(1, 3, 64)
    x[0, :, 1] = 4.0  # the cube is [0, 4]^3, cells have side 2, voxels side 1
    x[0, :, 2] = torch.tensor([0.5, 0.0, 1.5])  # beside 62 points at the corner
    got = stem(x)[0]
    one = torch.tensor([-1.0, -1, -1, 1]) @ stem.weight[0]
    other = torch.tensor([-0.5, -1, 0.5, 1]) @ stem.weight[1]  # z is above 1: the second voxel
    torch.testing.assert_close(got[0], (one + other) / 2)
    torch.testing.assert_close(got[1], torch.tensor([1.0, 1, 1, 1]) @ stem.weight[7])
    assert (got[2:] == 0).all() and stem.present(x)[0].tolist() == [True, True] + [False] * 6


def test_voxel_errors_by_hand():
    stem = VoxelTokens(4, (64,), 8, cells=2, fine=1)
    shown = torch.tensor([[[0.5, 0, 0, 2, 1.0], [0, 0, 0, 0, 0]]])
    guess = torch.tensor([[[0.5, 1, 0, 5, 0.0], [3, 3, 3, 3, 0.0]]])
    log2 = 0.6931472
    # the place is off by 1 (both ways: 2), the further channel by 3; occupancy of score 0 costs log 2
    torch.testing.assert_close(stem.shown_error(guess, shown), torch.tensor([[2 + 9 + log2, log2]]))
    assert stem.shown_values(guess)[0, :, 4].tolist() == [0, 0]
    assert stem.shown_values(guess + 1)[0, :, 4].tolist() == [1, 1]


def test_padding_of_voxel_tokens_changes_nothing():
    few = torch.zeros(1, 3, 64)
    few[0, :, 32:] = 1.0  # two occupied cells of 64
    net = network("voxels")
    features = net(few)
    torch.testing.assert_close(features.pooled, features.tokens[:, :2].mean(1))
    torch.testing.assert_close(net(few, keep=torch.tensor([[0, 1]])).pooled, features.pooled)


def test_impossible_grids():
    for options in ({"cells": 1}, {"cells": 5}, {"fine": 0}, {"fine": 17}):
        with pytest.raises(UsageError, match="cells"):
            VoxelTokens(3, (64,), 8, **options)
