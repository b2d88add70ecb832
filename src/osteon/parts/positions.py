"""Where a token lies: fixed sine-cosine positions on a grid of any number of sides, and learned ones carried over.

Sine-cosine: Vaswani et al. 2017, arXiv:1706.03762, section 3.5, applied to columns and rows as in MAE (He et al. 2022,
arXiv:2111.06377, appendix A.1). Interpolation: Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.core.errors import UsageError


def sincos_1d(places: Tensor, dim: int, temperature: float = 10000.0) -> Tensor:
    """Sines, then cosines, of places (N,) at ``dim // 2`` falling frequencies ``temperature^(-2i/dim)``: (N, dim)."""
    half = dim // 2
    frequency = temperature ** (-torch.arange(half, dtype=torch.float64, device=places.device) / half)
    angle = places.double()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def sincos(grid: tuple[int, ...], dim: int, *, reference: tuple[int, ...] | None = None,
           temperature: float = 10000.0) -> Tensor:
    """Fixed positions of a grid of tokens in raster order: (1, N, dim) float32.

    Every side gets an equal, even share of the width, the last side first: of images the first half codes the column,
    the second half the row. What three sides leave over (at most 4 numbers) is zero.

    Args:
        grid: sides of the grid, (rows, columns) for images.
        dim: width, a multiple of 2, of images a multiple of 4.
        reference: the grid the network was built for. Another grid is taken to show the same field of view, so that its
            cell centres are placed between the reference's; None counts cells from 0.
        temperature: the longest wavelength is about 2 pi times this many cells.
    """
    sides = len(grid)
    multiple = 4 if sides == 2 else 2
    share = dim // (2 * sides) * 2
    if dim % multiple or not share:
        raise UsageError(f"Sine-cosine positions need a width that is a multiple of {multiple}, not {dim}.",
                         where="dim")
    parts = []
    for side in reversed(range(sides)):
        code = sincos_1d(_places(grid[side], (reference or grid)[side]), share, temperature)
        parts.append(code.view(*(grid[side] if s == side else 1 for s in range(sides)), share).expand(*grid, share))
    full = torch.cat(parts, dim=-1).reshape(1, -1, share * sides).float()
    return F.pad(full, (0, dim - full.shape[-1]))


def _places(count: int, reference: int) -> Tensor:
    """Centres of ``count`` cells in units of the reference's cells, the reference's first centre being 0."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) * (reference / count) - 0.5


def resample(positions: Tensor, grid: tuple[int, ...], new_grid: tuple[int, ...]) -> Tensor:
    """Carry learned positions (1, N, D) of ``grid`` to ``new_grid``: (1, N', D).

    Bicubic on grids with two sides, linear on one, trilinear on three.
    """
    if positions.shape[1] != math.prod(grid):
        raise UsageError(f"{positions.shape[1]} positions do not fill a grid of {' x '.join(map(str, grid))}.")
    if grid == new_grid:
        return positions
    field = positions.float().reshape(1, *grid, -1).movedim(-1, 1)
    mode = {1: "linear", 2: "bicubic", 3: "trilinear"}[len(grid)]
    field = F.interpolate(field, size=new_grid, mode=mode, antialias=mode == "bicubic", align_corners=False)
    return field.flatten(2).transpose(1, 2).to(positions.dtype)


class PlaceEmbed(nn.Module):
    """Positions of tokens that lie anywhere: a perceptron of their coordinates (Pang et al. 2022, Point-MAE).

    Args:
        width: coordinates of a place.
        dim: width of a token.
        hidden: width of the hidden layer.
    """

    def __init__(self, width: int, dim: int, hidden: int = 128) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, dim)
        self.register_buffer("like", torch.zeros(()), persistent=False)  # the maps' type, whatever replaces them

    like: Tensor

    def forward(self, places: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, dim)."""
        return self.fc2(F.gelu(self.fc1(places.to(self.like.dtype))))
