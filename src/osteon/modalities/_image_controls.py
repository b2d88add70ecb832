"""Features that cost no training, printed beside every result: what pre-training has to beat.

Corley et al. 2023, "Revisiting pre-trained remote sensing model benchmarks: resizing and normalization matters",
arXiv:2305.13456: there, plain image statistics beat a resized ImageNet network on one benchmark. Random convolution
features: Rolf et al. 2021 (MOSAIKS).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from osteon.core.errors import DataError

#: Images at once.
BLOCK = 256


def raw_pixels(images: np.ndarray | Tensor, *, side: int = 32) -> np.ndarray:
    """The pixels themselves as features, (N, C, H, W) -> (N, D) float32.

    Images larger than ``side`` pixels are averaged down to ``side`` by ``side`` (areas, no interpolation), so that D
    stays small enough to fit; smaller ones are left as they are.
    """
    def one(x: Tensor) -> Tensor:
        size = (min(side, x.shape[2]), min(side, x.shape[3]))
        return (x if size == tuple(x.shape[2:]) else F.adaptive_avg_pool2d(x, size)).flatten(1)

    return np.concatenate([one(x).numpy() for x in _blocks(images)])


def image_statistics(images: np.ndarray | Tensor) -> np.ndarray:
    """Mean, standard deviation, largest and smallest value of each channel, (N, C, H, W) -> (N, 4 C) float32."""
    def one(x: Tensor) -> Tensor:
        flat = x.flatten(2)
        return torch.cat([flat.mean(2), flat.std(2, correction=0), flat.amax(2), flat.amin(2)], 1)

    return np.concatenate([one(x).numpy() for x in _blocks(images)])


def random_convolutions(images: np.ndarray | Tensor, *, filters: int = 512, kernel: int = 3, bias: float = -1.0,
                        seed: int = 0) -> np.ndarray:
    """Random convolution features, (N, C, H, W) -> (N, filters) float32.

    ``filters`` Gaussian filters of ``kernel`` pixels, plus ``bias``, ReLU, mean over the image. The images must be at
    least ``kernel`` pixels on a side.
    """
    channels, height, width = images.shape[1:]
    if min(height, width) < kernel:
        raise DataError(f"Images of {height} x {width} pixels are smaller than a filter of {kernel}.", where="images")
    weight = torch.randn(filters, channels, kernel, kernel, generator=torch.Generator().manual_seed(seed))
    shift = torch.full((filters,), bias)
    return np.concatenate([F.conv2d(x, weight, shift).relu_().mean((2, 3)).numpy() for x in _blocks(images)])


def standardise(train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Scale features by the TRAINING mean and standard deviation: needed by distances on features of mixed units.

    Args:
        train: (N, D), the only one statistics are taken from.
        others: (M, D) each.

    Returns:
        All of them scaled, train first; a feature constant in training becomes 0.
    """
    mean, std = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
    scale = np.divide(1.0, std, out=np.zeros_like(std), where=std > 1e-6 * np.abs(mean) + 1e-12)
    return [((x - mean) * scale).astype(np.float32) for x in (train, *others)]


def _blocks(images: np.ndarray | Tensor) -> Iterator[Tensor]:
    """Blocks of images as float32; whole-number types are divided by their largest value."""
    if images.ndim != 4 or len(images) == 0:
        raise DataError(f"Images must have the shape (N, C, H, W), not {tuple(images.shape)}.", where="images")
    for start in range(0, len(images), BLOCK):
        part = images[start:start + BLOCK]
        array = part.detach().cpu().numpy() if isinstance(part, Tensor) else np.asarray(part)
        scale = float(np.iinfo(array.dtype).max) if np.issubdtype(array.dtype, np.integer) else 1.0
        yield torch.from_numpy(array.astype(np.float32) / scale)
