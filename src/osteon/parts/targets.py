"""What masked objectives predict: patches of values, raw or standardised."""

from __future__ import annotations

from torch import Tensor


def patchify(x: Tensor, patch: int) -> Tensor:
    """Cut samples into patches of ``patch`` cells a side, whatever the number of sides.

    Images: (B, C, H, W) -> (B, N, patch*patch*C), tokens in raster order, channels last in a patch.
    """
    sides = x.dim() - 2
    cut = x.reshape(*x.shape[:2], *(n for side in x.shape[2:] for n in (side // patch, patch)))
    order = [0, *(2 + 2 * i for i in range(sides)), *(3 + 2 * i for i in range(sides)), 1]
    return cut.permute(order).reshape(x.shape[0], -1, patch**sides * x.shape[1])


def unpatchify(tokens: Tensor, patch: int, grid: tuple[int, ...]) -> Tensor:
    """Put patches back together. Images: (B, N, patch*patch*C) -> (B, C, H, W)."""
    sides = len(grid)
    x = tokens.reshape(tokens.shape[0], *grid, *[patch] * sides, -1)
    order = [0, 2 * sides + 1, *(n for i in range(sides) for n in (1 + i, 1 + sides + i))]
    return x.permute(order).reshape(tokens.shape[0], -1, *(side * patch for side in grid))


def enlarge(cells: Tensor, factor: int) -> Tensor:
    """Every cell of a grid (B, *grid) repeated ``factor`` times along each side: (B, *grid * factor)."""
    for side in range(1, cells.dim()):
        cells = cells.repeat_interleave(factor, side)
    return cells


def standardise_patches(tokens: Tensor, eps: float = 1e-6) -> Tensor:
    """Subtract each patch's mean and divide by its unbiased standard deviation (MAE, "normalised pixels")."""
    mean = tokens.mean(-1, keepdim=True)
    var = tokens.var(-1, keepdim=True)
    return (tokens - mean) / (var + eps).sqrt()


def unstandardise_patches(prediction: Tensor, patches: Tensor, eps: float = 1e-6) -> Tensor:
    """Give predicted standardised patches the mean and deviation of the true ones, for pictures. (B, N, P) each."""
    return prediction * (patches.var(-1, keepdim=True) + eps).sqrt() + patches.mean(-1, keepdim=True)
