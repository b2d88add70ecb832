"""``pairs``: handwritten digits and tones that say the same number, some without sound and some without image."""

from __future__ import annotations

import numpy as np

from osteon.data.arrays import list_digits
from osteon.data.listing import Listing
from osteon.modalities.sound import encode_wav


def list_pairs(split: str | None) -> Listing:
    """scikit-learn's 1,797 digits, each with a quarter of a second of sound: as many short beeps as the digit says.

    One in ten has no sound and another one in ten no image. ``train`` (1,200) and ``test`` (597) are a fixed random
    split.
    """
    digits = list_digits(None)
    rng = np.random.default_rng(0)
    count = len(digits.ids)
    labels = [int(str(label)) for label in digits.labels or ()]
    seeds, fate = rng.integers(2**31, size=count), rng.random(count)
    parts = np.where(rng.permutation(count) < 1200, "train", "test")

    def payload(i: int) -> dict[str, object]:
        image = None if 0.1 <= fate[i] < 0.2 else digits.payload(i)
        sound = None if fate[i] < 0.1 else encode_wav(_beeps(labels[i], int(seeds[i])), 4000)
        return {"image": image, "sound": sound}

    listing = Listing("pairs", [f"pair-{i:04d}" for i in range(count)], payload, "pairs-1",  # type: ignore[arg-type]
                      labels=list(digits.labels or ()), class_names=digits.class_names,
                      split=[str(p) for p in parts], cached=False, modality="several",
                      traits={"names": ["image", "sound"]})
    return listing.only(split) if split else listing


def _beeps(number: int, seed: int, rate: int = 4000) -> np.ndarray:
    """So many beeps of one random pitch in 0.32 seconds, at random moments that do not overlap, under noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(0.32 * rate)) / rate
    pitch, sound = 300 * 3 ** rng.random(), np.zeros(len(t))
    slots = np.sort(rng.permutation(10)[:number])
    for slot in slots:
        start = 0.03 * slot + 0.005 * rng.random() + 0.005
        on = (t >= start) & (t < start + 0.015)
        sound[on] = np.sin(2 * np.pi * pitch * (t[on] - start))
    return 0.4 * sound + 0.05 * rng.standard_normal(len(t))
