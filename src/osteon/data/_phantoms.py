"""Generated volumes: bodies of six kinds at any place, angle and size, under an uneven field and noise."""

from __future__ import annotations

import numpy as np

from osteon.data.listing import Listing

#: Classes. The first five differ by shape alone: their bodies have the same volume and brightness, so that a histogram
#: cannot tell them; of the last a part is brighter than the rest.
PHANTOMS = ("ellipsoid", "box", "tube", "shell", "pair", "bright core")
COUNT, TRAIN, SIDE = 1000, 700, 16


def list_phantoms(split: str | None) -> Listing:
    """1,000 generated volumes of 16 x 16 x 16 cells in six classes.

    ``train`` (700) and ``test`` (300) are a fixed random split; nothing is shared between volumes but the recipe.
    """
    rng = np.random.default_rng(0)
    labels = np.arange(COUNT) % len(PHANTOMS)
    parts = np.where(rng.permutation(COUNT) < TRAIN, "train", "test")
    seeds = rng.integers(2**31, size=COUNT)
    listing = Listing("phantoms", [f"phantom-{i:04d}" for i in range(COUNT)],
                      lambda i: phantom(int(labels[i]), int(seeds[i])), "phantoms-1", labels=[int(v) for v in labels],
                      class_names=list(PHANTOMS), split=[str(p) for p in parts], cached=False, encoded=False,
                      modality="volume")
    return listing.only(split) if split else listing


def phantom(kind: int, seed: int) -> np.ndarray:
    """One volume (16, 16, 16) float32: dark ground, a body of 100 to 250 cells, a smooth factor over space, noise."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    cells = 100 + 150 * rng.random()
    grid = np.stack(np.meshgrid(*[np.arange(SIDE) - (SIDE - 1) / 2] * 3, indexing="ij"), -1)
    at = (grid - rng.uniform(-2.5, 2.5, 3)) @ turn
    stretch = np.exp(0.12 * rng.standard_normal(3))
    body, core = _body(kind, at / (stretch / stretch.prod() ** (1 / 3)), cells)
    values = 0.2 + (0.35 + 0.3 * rng.random()) * body + 0.35 * core
    slope, bend = rng.uniform(-0.25, 0.25, 3), rng.uniform(-0.15, 0.15, 3)
    place = grid / (SIDE / 2)
    field = np.exp(place @ slope + (place**2 - 1 / 3) @ bend)
    return (values * field + 0.06 * rng.standard_normal(values.shape)).astype(np.float32)


def _body(kind: int, at: np.ndarray, cells: float) -> tuple[np.ndarray, np.ndarray]:
    """Shares in [0, 1] of each cell that belong to a body of a volume, and to its bright core; ``at`` (..., 3)."""
    radius = (3 * cells / (4 * np.pi)) ** (1 / 3)
    far = np.linalg.norm(at, axis=-1)
    none = np.zeros_like(far)
    if kind == 1:
        return _inside(np.abs(at).max(-1), cells ** (1 / 3) / 2), none
    if kind == 2:  # 1 : 3, so that it fits
        thick = (cells / (6 * np.pi)) ** (1 / 3)
        return np.minimum(_inside(np.linalg.norm(at[..., :2], axis=-1), thick), _inside(np.abs(at[..., 2]), 3 * thick)
                          ), none
    if kind == 3:  # a hollow of half the outer radius
        outer = radius * (8 / 7) ** (1 / 3)
        return _inside(far, outer) - _inside(far, outer / 2), none
    if kind == 4:
        small = radius / 2 ** (1 / 3)
        gap = np.array([0.0, 0.0, 1.25 * small])
        return np.maximum(*(_inside(np.linalg.norm(at - sign * gap, axis=-1), small) for sign in (-1, 1))), none
    return _inside(far, radius), _inside(far, radius / 2) if kind == 5 else none


def _inside(distance: np.ndarray, limit: float) -> np.ndarray:
    """1 within the limit, 0 beyond, a slope of one cell between."""
    return np.clip(limit - distance + 0.5, 0, 1)
