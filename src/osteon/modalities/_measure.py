"""Exact statistics of stored samples, whatever their modality."""

from __future__ import annotations

import numpy as np
from PIL import Image

#: Cells of one channel that are counted at a time.
_CELLS = 2**22
_SCALES = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}


def scale_of(dtype: np.dtype | str) -> float:
    """Number that maps stored values to about [0, 1]: 255 (uint8), 65535 (uint16), 1 (float32)."""
    return _SCALES[np.dtype(dtype).name]


def _count(values: np.ndarray, bins: int) -> np.ndarray:
    """How often each value occurs in (n,) integers. Pillow counts bytes as they are, numpy widens them first."""
    if values.dtype != np.uint8:
        return np.bincount(values, minlength=bins)
    return np.array(Image.frombuffer("L", (len(values), 1), values, "raw", "L", 0, 1).histogram(), np.int64)


def measure(images: np.ndarray, scale: float, *, chunk: int = 1024) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel after division by ``scale``, over all cells of (N, C, *extent).

    Exact for integers (counted value by value); float values are summed in double precision, chunk by chunk
    (Chan et al. 1979, pairwise update).
    """
    channels = images.shape[1]
    if images.dtype.kind == "u":
        bins = 256 if images.dtype == np.uint8 else 65536
        counts = np.zeros((channels, bins), np.int64)
        few = min(chunk, max(1, _CELLS // max(1, images[:1, 0].size)))
        for start in range(0, len(images), few):
            for c in range(channels):
                counts[c] += _count(np.ascontiguousarray(images[start:start + few, c]).reshape(-1), bins)
        values = np.arange(bins, dtype=np.float64) / scale
        share = counts / counts.sum(1, keepdims=True)
        mean = share @ values
        variance = (share * (values[None] - mean[:, None]) ** 2).sum(1)
    else:
        others = (0, *range(2, images.ndim))
        total, mean, spread = 0, np.zeros(channels), np.zeros(channels)
        for start in range(0, len(images), chunk):
            part = images[start:start + chunk].astype(np.float64) / scale
            size = part[:, 0].size
            part_mean = part.mean(others)
            shift = part_mean - mean
            apart = part - part_mean.reshape(1, -1, *[1] * (part.ndim - 2))
            spread += (apart**2).sum(others) + shift**2 * total * size / (total + size)
            mean, total = mean + shift * size / (total + size), total + size
        variance = spread / max(1, total)
    return tuple(float(m) for m in mean), tuple(float(s) for s in np.sqrt(variance))
