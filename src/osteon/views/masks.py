"""Which tokens to hide: policies on a token grid, exact in count, the same for a sample wherever it is computed.

A policy is ``policy(grid, ratio, draws, scores=None) -> (B, N) bool`` in raster order, True = hidden, with the same
count for every sample: ``round(ratio * N)`` (halves up) unless its docstring says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from osteon.core.errors import UsageError
from osteon.parts.targets import enlarge
from osteon.parts.types import Draws

#: Sides of a grid of tokens: (rows, columns) for images, one number for a sequence.
Grid = tuple[int, ...]


def hidden_count(ratio: float, tokens: int) -> int:
    """``round(ratio * tokens)``, halves up; raises for a ratio outside [0, 1]."""
    if not 0 <= ratio <= 1:
        raise UsageError(f"{ratio} is not a share of tokens.", where="ratio", fix="Give a number between 0 and 1.")
    return int(ratio * tokens + 0.5)


def lowest(key: Tensor, count: int) -> Tensor:
    """(B, N) bool, True at the ``count`` smallest keys of each row (the earlier one among equals)."""
    index = key.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros(key.shape, dtype=torch.bool, device=key.device).scatter_(1, index, True)


def random_mask(grid: Grid, ratio: float, draws: Draws, scores: Tensor | None = None) -> Tensor:
    """Hide tokens at random. He et al. 2022 (MAE), section 3.

    Args:
        grid: sides of the grid of tokens.
        ratio: share to hide.
        draws: the stream.
        scores: (B, N) log-weights: tokens are hidden one after the other with probability proportional to
            ``exp(scores)`` (Gumbel top-k); None hides all alike.

    Returns:
        (B, N) bool, True = hidden.
    """
    tokens = math.prod(grid)
    noise = draws.rand(tokens)
    if scores is not None:
        noise = torch.log(-torch.log(noise.clamp(1e-7, 1 - 1e-7))) - scores.to(noise)
    return lowest(noise, hidden_count(ratio, tokens))


def ranked_mask(grid: Grid, ratio: float, draws: Draws, scores: Tensor | None = None) -> Tensor:
    """Hide the tokens with the highest scores (B, N); ties are broken at random, and no scores are all ties."""
    tokens = math.prod(grid)
    first = draws.rand(tokens).argsort(1)
    if scores is None:
        scores = torch.zeros(first.shape, device=first.device)
    picked = lowest(-scores.to(first.device).gather(1, first), hidden_count(ratio, tokens))
    return torch.zeros_like(picked).scatter_(1, first, picked)


def block_mask(grid: Grid, ratio: float, draws: Draws, scores: Tensor | None = None, *, unit: int = 2) -> Tensor:
    """Hide cells of ``unit`` tokens a side at random. Xie et al. 2022 (SimMIM), section 3.2.

    As in the authors' code the count is ``ceil(ratio * cells)`` cells, so ``unit**2`` times as many tokens of an
    image.

    Args:
        grid: sides of the grid of tokens, all multiples of ``unit``.
        ratio: share to hide.
        draws: the stream.
        scores: (B, N) log-weights of tokens; a cell weighs the mean of its tokens.
        unit: side of a cell in tokens.

    Returns:
        (B, N) bool, True = hidden.
    """
    if unit < 1 or any(side % unit for side in grid):
        raise UsageError(f"A grid of {' x '.join(map(str, grid))} tokens has no whole cells of {unit}.", where="unit",
                         fix="Give a unit that divides every side, e.g. unit=1.")
    coarse = tuple(side // unit for side in grid)
    cells = math.prod(coarse)
    hidden_count(ratio, cells)
    if scores is not None:
        within = tuple(range(2, 2 + 2 * len(grid), 2))
        scores = scores.view(-1, *(n for side in coarse for n in (side, unit))).mean(within).flatten(1)
    # The slack keeps float products such as 0.28 * 25 = 7.000000000000001 from counting one more.
    count = math.ceil(ratio * cells - 1e-9)
    mask = random_mask(coarse, count / cells, draws, scores).view(-1, *coarse)
    return enlarge(mask, unit).flatten(1)


def rectangles(grid: Grid, ratio: float, draws: Draws, scores: Tensor | None = None, *,
               max_side: float = 0.3) -> Tensor:
    """Hide random rectangles, one after the other, until the share is reached. Atito et al. 2021 (GMML), section 3.

    Sides are uniform from one token to ``max_side`` of the grid; rectangles may overlap. The last one is cut, row by
    row, so that every sample hides exactly ``round(ratio * N)``. The grid may be one of pixels.

    Args:
        grid: (rows, columns) of tokens.
        ratio: share to hide.
        draws: the stream.
        scores: unused, all places are alike.
        max_side: largest side of a rectangle as a share of the grid's.

    Returns:
        (B, N) bool, True = hidden.
    """
    if not 0 < max_side <= 1:
        raise UsageError(f"{max_side} is not a share of the grid.", where="max_side", fix="Give 0 < max_side <= 1.")
    rows, columns = grid
    largest = (max(1, int(max_side * rows)), max(1, int(max_side * columns)))
    mean_share = (largest[0] + 1) * (largest[1] + 1) / 4 / (rows * columns)
    # Twice what covers the share on average; a straggler's rest is hidden token by token (below).
    tries = min(512, 4 + math.ceil(2 * -math.log1p(-min(hidden_count(ratio, rows * columns) / (rows * columns), 0.99))
                                   / mean_share))
    u = draws.rand(tries, 4)
    high, wide = (u[..., 0] * largest[0]).floor() + 1, (u[..., 1] * largest[1]).floor() + 1
    top, left = (u[..., 2] * (rows - high + 1)).floor(), (u[..., 3] * (columns - wide + 1)).floor()
    r, c = torch.arange(rows, device=u.device), torch.arange(columns, device=u.device)
    in_rows = (r >= top[..., None]) & (r < (top + high)[..., None])
    in_columns = (c >= left[..., None]) & (c < (left + wide)[..., None])
    when = tries + draws.rand(rows * columns).view(-1, rows, columns)
    for k in range(tries - 1, -1, -1):
        when.masked_fill_(in_rows[:, k, :, None] & in_columns[:, k, None, :], k)
    return lowest(when.flatten(1), hidden_count(ratio, rows * columns))


def cluster_mask(grid: Grid, ratio: float, draws: Draws, scores: Tensor | None = None, *,
                 sides: tuple[int, int] = (3, 5)) -> Tensor:
    """Hide squares of tokens, one after the other, until the share is reached. Gong et al. 2022 (SSAST), section 2.2.

    The side is uniform in ``sides``, one for each sample. Squares may reach over the edge, so that every place is
    hidden equally often; the last ones are cut at random to the exact count ``round(ratio * N)``.

    Args:
        grid: (rows, columns) of tokens.
        ratio: share to hide.
        draws: the stream.
        scores: unused, all places are alike.
        sides: smallest and largest side of a square in tokens.

    Returns:
        (B, N) bool, True = hidden.
    """
    rows, columns = grid
    low, high = sides
    side = (low + (draws.rand() * (high - low + 1)).floor().clamp(max=high - low))[:, None]  # (B, 1)
    count = hidden_count(ratio, rows * columns)
    # Squares that cover so much on average, twice over; a straggler's rest is hidden token by token (below).
    share = low * low / ((rows + low - 1) * (columns + low - 1))
    tries = min(512, 4 + math.ceil(2 * -math.log1p(-min(count / (rows * columns), 0.99)) / share))
    u = draws.rand(tries, 2)
    top = (u[..., 0] * (rows + side - 1)).floor() - (side - 1)
    left = (u[..., 1] * (columns + side - 1)).floor() - (side - 1)
    r, c = torch.arange(rows, device=u.device), torch.arange(columns, device=u.device)
    in_rows = (r >= top[..., None]) & (r < (top + side)[..., None])
    in_columns = (c >= left[..., None]) & (c < (left + side)[..., None])
    first = (in_rows[..., :, None] & in_columns[..., None, :]).flatten(2).int()  # (B, tries, N)
    order = torch.where(first.any(1), first.argmax(1), tries)
    return lowest(order + draws.rand(rows * columns), count)


#: Policy name -> function.
POLICIES: dict[str, Callable[..., Tensor]] = {"random": random_mask, "ranked": ranked_mask, "block": block_mask,
                                              "rectangles": rectangles, "cluster": cluster_mask}


def visible_indices(mask: Tensor) -> Tensor:
    """Raster numbers of the tokens that stay, ascending: (B, N) bool -> (B, K) int64, for ``backbone(x, keep=...)``."""
    return _indices(~mask)


def hidden_indices(mask: Tensor) -> Tensor:
    """Raster numbers of the hidden tokens, ascending: (B, N) bool -> (B, N - K) int64."""
    return _indices(mask)


def _indices(chosen: Tensor) -> Tensor:
    counts = chosen.sum(1)
    if len(counts) and bool((counts != counts[0]).any()):
        raise UsageError(f"Samples hide different numbers of tokens ({int(counts.min())} to {int(counts.max())} "
                         "chosen).", where="mask", fix="Use a policy with an exact count, or mask= instead of keep=.")
    return chosen.nonzero()[:, 1].view(len(chosen), -1)


def ijepa_blocks(grid: Grid, draws: Draws, *, targets: int = 4, target_scale: tuple[float, float] = (0.15, 0.2),
                 target_aspect: tuple[float, float] = (0.75, 1.5), context_scale: tuple[float, float] = (0.85, 1.0),
                 min_context: int | None = None, tries: int = 20) -> tuple[Tensor, list[Tensor]]:
    """A large context block and several target blocks to predict from it. Assran et al. 2023 (I-JEPA), section 3, A.1.

    Sizes are drawn once for the global batch, places for every sample. The context is its block without the targets,
    cut at random to the smallest count in the *global* batch, so that every process has the same shape. Of ``tries``
    placements the first that leaves ``min_context`` tokens is taken, else the one that leaves most. Where targets
    would leave nothing at all (grids of a few tokens), the last targets may overlap that sample's context.

    Args:
        grid: (rows, columns) of tokens, or the length of a sequence, whose blocks are spans, or the three sides of a
            volume or clip, whose blocks are cuboids: of the first side they take the cube root of their share.
        draws: the stream.
        targets: number of target blocks.
        target_scale: share of the grid in a target block.
        target_aspect: height over width of a target block.
        context_scale: share of the grid in the (square) context block, before the targets are taken out.
        min_context: wanted tokens of context; a twentieth of the grid (10 of 196, as in the paper's code) when None.
        tries: placements drawn per sample.

    Returns:
        Context (B, Kc) and ``targets`` tensors (B, Kt), raster indices, ascending.
    """
    if len(grid) == 1:
        grid = (1, *grid)
    tokens = math.prod(grid)
    if tokens < 4 or targets < 1 or len(grid) > 3:
        raise UsageError(f"A grid of {' x '.join(map(str, grid))} tokens cannot be split into {targets} targets and a "
                         "context.",
                         where="ijepa_blocks", fix="Use smaller patches, at least one target, and 4 tokens or more.")
    wanted = max(1, tokens // 20) if min_context is None else min_context
    u = torch.rand(3, generator=draws.generator())
    aspect = target_aspect[0] + (target_aspect[1] - target_aspect[0]) * float(u[1])
    small = _block_size(grid, target_scale[0] + (target_scale[1] - target_scale[0]) * float(u[0]), aspect)
    large = _block_size(grid, context_scale[0] + (context_scale[1] - context_scale[0]) * float(u[2]), 1.0)
    # Everything below is for the global batch, on the CPU: the cut must be the same on every process.
    place = torch.rand(draws.total, tries, targets + 1, len(grid), generator=draws.generator())
    blocks = _covered(grid, small, place[:, :, :targets])
    around = _covered(grid, large, place[:, :, targets])
    left = (around & ~blocks.any(2)).sum(-1)
    enough = left >= wanted
    pick = torch.where(enough.any(1), enough.to(torch.int8).argmax(1), left.argmax(1))
    each = torch.arange(draws.total)
    blocks, around = blocks[each, pick], around[each, pick]
    taken = torch.zeros_like(around)
    for m in range(targets):
        more = taken | blocks[:, m]
        taken = torch.where((around & ~more).any(1, keepdim=True), more, taken)
    context = around & ~taken
    count = int(context.sum(1).min())
    noise = torch.rand(draws.total, tokens, generator=draws.generator())
    context = lowest(noise.masked_fill_(~context, 2.0), count)
    held = draws.rows.cpu()
    index = [_indices(m[held]).to(draws.device) for m in (context, *blocks.unbind(1))]
    return index[0], index[1:]


def _block_size(grid: Grid, share: float, aspect: float) -> Grid:
    """Sides of a block of about ``share`` of the grid, smaller than the grid as in the paper's code."""
    if len(grid) == 3:
        deep = min(max(1, round(share ** (1 / 3) * grid[0])), max(1, grid[0] - 1))
        return deep, *_block_size(grid[1:], share * grid[0] / deep if grid[0] > 1 else share, aspect)
    area = share * grid[0] * grid[1]
    if grid[0] == 1:
        return 1, min(max(1, round(area)), max(1, grid[1] - 1))
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    return min(max(1, height), max(1, grid[0] - 1)), min(max(1, width), max(1, grid[1] - 1))


def _covered(grid: Grid, size: Grid, place: Tensor) -> Tensor:
    """Tokens of a block placed at ``place`` (..., sides) in [0, 1): (..., N) bool."""
    inside = torch.ones(*place.shape[:-1], *[1] * len(grid), dtype=torch.bool)
    for side, (cells, length) in enumerate(zip(grid, size, strict=True)):
        start = (place[..., side] * (cells - length + 1)).floor()[..., None]
        cell = torch.arange(cells)
        within = (cell >= start) & (cell < start + length)
        inside = inside & within.view(*place.shape[:-1], *(cells if s == side else 1 for s in range(len(grid))))
    return inside.flatten(-len(grid))
