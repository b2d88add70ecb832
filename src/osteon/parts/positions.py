"""Where a token lies: fixed sine-cosine positions on a grid, and learned ones carried to another grid.

Sine-cosine: Vaswani et al. 2017, arXiv:1706.03762, section 3.5, applied to columns and rows as in MAE (He et al. 2022,
arXiv:2111.06377, appendix A.1). Interpolation: Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.2.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from osteon.core.errors import UsageError


def sincos_1d(places: Tensor, dim: int, temperature: float = 10000.0) -> Tensor:
    """Sines, then cosines, of places (N,) at ``dim // 2`` falling frequencies ``temperature^(-2i/dim)``: (N, dim)."""
    half = dim // 2
    frequency = temperature ** (-torch.arange(half, dtype=torch.float64, device=places.device) / half)
    angle = places.double()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def sincos_2d(grid: tuple[int, int], dim: int, *, reference: tuple[int, int] | None = None,
              temperature: float = 10000.0) -> Tensor:
    """Fixed positions of a grid of tokens in raster order: (1, rows * columns, dim) float32.

    The first half of the width codes the column, the second half the row.

    Args:
        grid: (rows, columns).
        dim: width, a multiple of 4.
        reference: the grid the network was built for. Another grid is taken to show the same field of view, so that its
            cell centres are placed between the reference's; None counts cells from 0.
        temperature: the longest wavelength is about 2 pi times this many cells.
    """
    if dim % 4:
        raise UsageError(f"Sine-cosine positions need a width that is a multiple of 4, not {dim}.", where="dim")
    rows, columns = (_places(grid[a], (reference or grid)[a]) for a in (0, 1))
    x, y = sincos_1d(columns, dim // 2, temperature), sincos_1d(rows, dim // 2, temperature)
    shape = (grid[0], grid[1], dim // 2)
    return torch.cat([x[None].expand(shape), y[:, None].expand(shape)], dim=2).reshape(1, -1, dim).float()


def _places(count: int, reference: int) -> Tensor:
    """Centres of ``count`` cells in units of the reference's cells, the reference's first centre being 0."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) * (reference / count) - 0.5


def resample(positions: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Carry learned positions (1, N, D) of ``grid`` to ``new_grid`` by bicubic interpolation: (1, N', D)."""
    if positions.shape[1] != grid[0] * grid[1]:
        raise UsageError(f"{positions.shape[1]} positions do not fill a grid of {grid[0]} x {grid[1]}.")
    if grid == new_grid:
        return positions
    field = positions.float().reshape(1, *grid, -1).permute(0, 3, 1, 2)
    field = F.interpolate(field, size=new_grid, mode="bicubic", antialias=True, align_corners=False)
    return field.flatten(2).transpose(1, 2).to(positions.dtype)
