"""Generated clips: two of scikit-learn's digits that move in one of five ways, after Moving MNIST.

Srivastava et al. 2015, Unsupervised Learning of Video Representations using LSTMs, section 4 (two digits in a frame
that bounce off its walls).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from osteon.data.listing import Listing
from osteon.data.splits import train_validation_split

#: Classes: how both digits move. No single frame tells them; of the last two the mean over time is the same as well.
MOTIONS = ("sideways", "up and down", "diagonal", "clockwise", "anticlockwise")
COUNT, TRAIN, FRAMES, SIDE, GLYPH = 1000, 700, 16, 32, 12


def list_moving_digits(split: str | None) -> Listing:
    """1,000 generated clips of 16 frames of 32 x 32: two handwritten digits; the label is how they move.

    ``train`` (700) and ``test`` (300) are fixed, and so are the digits: the images of clips in ``test`` occur in no
    clip of ``train``. Each clip's id names its two images.
    """
    rng = np.random.default_rng(0)
    _, classes = _digits()
    order = rng.permutation(COUNT)
    labels, parts = np.empty(COUNT, np.int64), np.empty(COUNT, object)
    pairs = np.empty((COUNT, 2), np.int64)
    first, second = train_validation_split(classes, fraction=0.3, seed=0)
    for name, rows, pool in (("train", np.sort(order[:TRAIN]), first), ("test", np.sort(order[TRAIN:]), second)):
        labels[rows], parts[rows] = np.arange(len(rows)) % len(MOTIONS), name
        pairs[rows] = [rng.choice(pool, 2, replace=False) for _ in rows]
    seeds = rng.integers(2**31, size=COUNT)
    listing = Listing("moving_digits", [f"clip-{i:04d}-{a:04d}-{b:04d}" for i, (a, b) in enumerate(pairs)],
                      lambda i: moving(int(labels[i]), pairs[i], int(seeds[i])), "moving-digits-1",
                      labels=[int(v) for v in labels], class_names=list(MOTIONS), split=[str(p) for p in parts],
                      cached=False, encoded=False, modality="video")
    return listing.only(split) if split else listing


@lru_cache(maxsize=1)
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits enlarged linearly to 12 x 12, (1797, 12, 12) in [0, 1], and their classes."""
    from sklearn.datasets import load_digits

    data = load_digits()
    have = data.images.shape[1]
    place = (np.arange(GLYPH) + 0.5) * have / GLYPH - 0.5
    enlarge = np.stack([np.interp(place, np.arange(have), row) for row in np.eye(have)], 1)  # (12, 8)
    return enlarge @ (data.images / 16) @ enlarge.T, data.target


def moving(kind: int, pair: np.ndarray, seed: int) -> np.ndarray:
    """One clip (16, 32, 32) uint8: where digits overlap, the brighter one is seen."""
    rng = np.random.default_rng(seed)
    images, _ = _digits()
    frames = np.zeros((FRAMES, SIDE, SIDE))
    for number in pair:
        path = _path(kind, rng)
        for t, (row, column) in enumerate(np.rint(path).astype(int)):
            part = frames[t, row:row + GLYPH, column:column + GLYPH]
            np.maximum(part, images[number], out=part)
    return np.rint(frames * 255).astype(np.uint8)


def _path(kind: int, rng: np.random.Generator) -> np.ndarray:
    """Row and column of a digit's upper left corner at every time, (16, 2), reflected at the walls."""
    room, t = SIDE - GLYPH, np.arange(FRAMES)
    speed = (1 + 1.5 * rng.random()) * rng.choice([-1, 1])
    start = rng.uniform(0, room, 2)
    if kind < 3:
        step = np.array([(0.0, 1.0), (1.0, 0.0), (0.7, 0.7 * rng.choice([-1, 1]))][kind]) * speed
        far = (start + t[:, None] * step) % (2 * room)
        return np.where(far > room, 2 * room - far, far)
    radius = rng.uniform(4, room / 2)
    middle = rng.uniform(radius, room - radius, 2)
    angle = 2 * np.pi * rng.random() + (1 if kind == 3 else -1) * abs(speed) / radius * t
    return middle + radius * np.stack([np.sin(angle), np.cos(angle)], 1)  # rows run down, so this is clockwise
