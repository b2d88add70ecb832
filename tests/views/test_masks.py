"""Mask policies: exact counts, shapes of what is hidden, the same rows wherever they are computed."""

from __future__ import annotations

import pytest
import torch

from osteon.core.errors import UsageError
from osteon.parts.types import Draws, Step
from osteon.views.masks import (
    POLICIES,
    block_mask,
    hidden_indices,
    ijepa_blocks,
    random_mask,
    ranked_mask,
    rectangles,
    visible_indices,
)


def draws(rows: list[int] | None = None, total: int = 16, step: int = 0) -> Draws:
    return Draws(Step(step, 100), torch.arange(total) if rows is None else torch.tensor(rows), total)


@pytest.mark.parametrize("name", sorted(POLICIES))
@pytest.mark.parametrize("grid,ratio", [((4, 4), 0.75), ((8, 6), 0.5), ((2, 2), 0.25), ((8, 8), 0.0), ((8, 8), 1.0)])
def test_counts_are_exact_and_rows_do_not_depend_on_their_company(name: str, grid: tuple[int, int],
                                                                  ratio: float) -> None:
    options = {"unit": 1} if name == "block" else {}
    whole = POLICIES[name](grid, ratio, draws(), **options)
    assert whole.dtype == torch.bool and whole.shape == (16, grid[0] * grid[1])
    assert (whole.sum(1) == round(ratio * grid[0] * grid[1])).all()
    rows = [3, 11, 4]
    assert torch.equal(POLICIES[name](grid, ratio, draws(rows), **options), whole[rows])
    if 0 < ratio < 1:
        assert not torch.equal(POLICIES[name](grid, ratio, draws(step=1), **options), whole)


def test_random_mask_hides_all_places_alike_and_halves_round_up() -> None:
    mask = random_mask((3, 3), 0.5, draws(total=4000))
    assert (mask.sum(1) == 5).all()
    assert (mask.float().mean(0) - 5 / 9).abs().max() < 0.04  # standard deviation 0.008


def test_scores_weigh_the_choice() -> None:
    # One of two tokens, log-weights 0 and log 3: the second with probability 3/4.
    scores = torch.tensor([1.0, 3.0]).log().expand(4000, 2)
    assert abs(float(random_mask((1, 2), 0.5, draws(total=4000), scores)[:, 1].float().mean()) - 0.75) < 0.03


def test_ranked_mask_takes_the_highest_and_breaks_ties_at_random() -> None:
    scores = torch.tensor([[1.0, 5, 5, 5, 0, 9]]).expand(600, 6)
    mask = ranked_mask((2, 3), 0.5, draws(total=600), scores)
    assert mask[:, 5].all() and not mask[:, 0].any() and not mask[:, 4].any()
    assert (mask[:, 1:4].float().mean(0) - 2 / 3).abs().max() < 0.1


def test_block_mask_hides_whole_cells() -> None:
    mask = block_mask((8, 12), 0.6, draws(), unit=4).view(-1, 2, 4, 3, 4)
    cells = mask.permute(0, 1, 3, 2, 4).flatten(3).float().mean(-1).flatten(1)
    assert ((cells == 0) | (cells == 1)).all()
    assert (cells.sum(1) == 4).all()  # ceil(0.6 * 6)
    assert (block_mask((5, 5), 0.28, draws(), unit=1).sum(1) == 7).all()  # 0.28 * 25 is a little over 7 in floats
    with pytest.raises(UsageError, match="divides"):
        block_mask((6, 6), 0.5, draws(), unit=4)


def test_rectangles_are_rectangles() -> None:
    # A single rectangle: the count is small enough that the first one covers it or nearly so.
    mask = rectangles((32, 32), 0.5, draws(total=32), max_side=0.5).view(-1, 32, 32)
    noise = random_mask((32, 32), 0.5, draws(total=32)).view(-1, 32, 32)

    def edges(m: torch.Tensor) -> float:
        return float((m[:, 1:] != m[:, :-1]).float().mean())

    assert edges(mask) < 0.3 * edges(noise)
    # A grid whose largest rectangle is one token: any token, no rectangle left out.
    assert (rectangles((2, 2), 0.5, draws(total=64)).float().mean(0) > 0.2).all()
    # Rectangles may cover everything at once.
    first = rectangles((4, 4), 1 / 16, draws(total=400), max_side=1.0).float().mean(0)
    assert (first > 0).sum() >= 8


class Preset(Draws):
    """Draws a first rectangle and the same other one ever after."""

    def rand(self, *shape: int) -> torch.Tensor:
        if len(shape) == 1:
            return torch.full((1, *shape), 0.5)
        u = torch.tensor([0.9, 0.9, 0.1, 0.5]).repeat(1, shape[0], 1)  # 2 x 2 at row 0, column 1
        u[:, 0, 2] = 0.5  # the first at row 1
        return u


def test_rectangles_by_hand() -> None:
    """The first rectangle is hidden whole, the second row by row until the count is reached."""
    preset = Preset(Step(0, 1), torch.arange(1), 1)
    for count, want in ((4, [5, 6, 9, 10]), (5, [1, 5, 6, 9, 10]), (2, [5, 6])):
        assert hidden_indices(rectangles((4, 4), count / 16, preset, max_side=0.5)).tolist() == [want]


def test_indices_split_the_grid() -> None:
    mask = torch.tensor([[True, False, False, True], [False, True, True, False]])
    assert visible_indices(mask).tolist() == [[1, 2], [0, 3]]
    assert hidden_indices(mask).tolist() == [[0, 3], [1, 2]]
    with pytest.raises(UsageError, match="different numbers"):
        visible_indices(torch.tensor([[True, False], [False, False]]))


@pytest.mark.parametrize("grid", [(4, 4), (8, 8), (14, 14), (3, 8)])
def test_ijepa_blocks(grid: tuple[int, int]) -> None:
    rows, columns = grid
    sizes = set()
    for step in range(12):
        context, targets = ijepa_blocks(grid, draws(step=step))
        assert len(targets) == 4 and len({t.shape for t in targets}) == 1
        assert context.shape[0] == targets[0].shape[0] == 16 and context.shape[1] >= 1
        sizes.add(targets[0].shape[1])
        for i in range(16):
            ctx = context[i].tolist()
            assert ctx == sorted(set(ctx)) and 0 <= ctx[0] and ctx[-1] < rows * columns
            union = set()
            for t in targets:
                r, c = t[i] // columns, t[i] % columns
                assert (r.max() - r.min() + 1) * (c.max() - c.min() + 1) == len(t[i])  # a full rectangle
                assert t[i].tolist() == sorted(t[i].tolist())
                union |= set(t[i].tolist())
            # Overlap is allowed only where the targets leave (almost) no token outside them.
            assert not union & set(ctx) or rows * columns - len(union) < 2
    if grid == (14, 14):
        # 0.15 to 0.2 of 196 tokens, sides rounded.
        assert min(sizes) >= 25 and max(sizes) <= 44 and len(sizes) > 2


def test_ijepa_cut_is_that_of_the_global_batch() -> None:
    for step in range(5):
        context, targets = ijepa_blocks((8, 8), draws(step=step))
        rows = [9, 2]
        part, part_targets = ijepa_blocks((8, 8), draws(rows, step=step))
        assert torch.equal(part, context[rows])
        assert all(torch.equal(p, t[rows]) for p, t in zip(part_targets, targets, strict=True))


def test_ijepa_places_vary_and_reach_the_borders() -> None:
    _, (target,) = ijepa_blocks((8, 8), draws(total=300), targets=1)
    top, left = target[:, 0] // 8, target[:, 0] % 8
    height, width = target[0, -1] // 8 - top[0] + 1, target[0, -1] % 8 - left[0] + 1
    assert set(top.tolist()) == set(range(8 - int(height) + 1))
    assert set(left.tolist()) == set(range(8 - int(width) + 1))
    assert abs(float(torch.corrcoef(torch.stack((top.float(), left.float())))[0, 1])) < 0.2  # not on the diagonal


def test_ijepa_context_is_spread_over_its_block() -> None:
    """The cut to a common count takes away tokens at random, not the last rows."""
    context, _ = ijepa_blocks((14, 14), draws(total=256))
    assert abs(float((context // 14).float().mean()) - 6.5) < 0.5


def test_bad_requests_are_refused() -> None:
    with pytest.raises(UsageError):
        random_mask((4, 4), 1.5, draws())
    with pytest.raises(UsageError):
        ijepa_blocks((1, 3), draws())
    with pytest.raises(UsageError):
        rectangles((4, 4), 0.5, draws(), max_side=0.0)


@pytest.mark.parametrize("grid", [(4, 4, 4), (2, 4, 4), (3, 5, 7), (1, 4, 4), (8, 14, 14)])
def test_policies_on_three_sides(grid: tuple[int, int, int]) -> None:
    tokens = grid[0] * grid[1] * grid[2]
    assert (random_mask(grid, 0.75, draws()).sum(1) == int(0.75 * tokens + 0.5)).all()
    if all(side % 2 == 0 for side in grid):
        cells = block_mask(grid, 0.5, draws()).view(16, grid[0] // 2, 2, grid[1] // 2, 2, grid[2] // 2, 2)
        assert torch.equal(cells.amax((2, 4, 6)), cells.amin((2, 4, 6)))  # whole cubes
    context, targets = ijepa_blocks(grid, draws())
    assert len(targets) == 4 and all(torch.equal(t, t.sort(1).values) for t in (context, *targets))
    for target in targets:
        place = torch.stack(torch.unravel_index(target, grid), -1)  # (B, Kt, 3)
        sides = place.amax(1) - place.amin(1) + 1
        assert (sides.prod(1) == target.shape[1]).all() and (sides == sides[0]).all()  # full cuboids of one size
        assert not (place[0].amin(0) == place[5].amin(0)).all() or tokens < 32  # at places of their own
    if tokens >= 64:
        share = targets[0].shape[1] / tokens
        assert 0.08 <= share <= 0.3 and context.shape[1] >= tokens // 20
    part, _ = ijepa_blocks(grid, draws([3, 7]))
    assert torch.equal(part, context[[3, 7]])
    taken = torch.cat(targets, 1)
    assert not (context[:, :, None] == taken[:, None, :]).any() or tokens < 32


def test_a_cuboid_takes_the_cube_root_of_its_share_of_the_first_side() -> None:
    # a share of 1/8 of 8 x 8 x 8 is a cube of 4
    _, (target,) = ijepa_blocks((8, 8, 8), draws(), targets=1, target_scale=(0.125, 0.125), target_aspect=(1.0, 1.0))
    assert target.shape[1] == 64
    place = torch.stack(torch.unravel_index(target, (8, 8, 8)), -1)
    assert ((place.amax(1) - place.amin(1)) == 3).all()
