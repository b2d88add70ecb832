"""What masked objectives predict: patches of pixels, raw or standardised."""

from __future__ import annotations

from torch import Tensor


def patchify(x: Tensor, patch: int) -> Tensor:
    """Cut images into square patches. (B, C, H, W) -> (B, N, patch*patch*C), raster order, channels last in a patch."""
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, (h // patch) * (w // patch), patch * patch * c)


def unpatchify(tokens: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """Put patches back together. (B, N, patch*patch*C) -> (B, C, H, W)."""
    b, _, width = tokens.shape
    rows, cols = grid
    c = width // (patch * patch)
    x = tokens.reshape(b, rows, cols, patch, patch, c)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(b, c, rows * patch, cols * patch)


def standardise_patches(tokens: Tensor, eps: float = 1e-6) -> Tensor:
    """Subtract each patch's mean and divide by its unbiased standard deviation (MAE, "normalised pixels")."""
    mean = tokens.mean(-1, keepdim=True)
    var = tokens.var(-1, keepdim=True)
    return (tokens - mean) / (var + eps).sqrt()


def unstandardise_patches(prediction: Tensor, patches: Tensor, eps: float = 1e-6) -> Tensor:
    """Give predicted standardised patches the mean and deviation of the true ones, for pictures. (B, N, P) each."""
    return prediction * (patches.var(-1, keepdim=True) + eps).sqrt() + patches.mean(-1, keepdim=True)
