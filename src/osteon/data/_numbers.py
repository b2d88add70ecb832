"""``numbers``: handwritten digits, beeps that count to the same number, and words about it; some of each missing."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from osteon.data.arrays import list_digits
from osteon.data.listing import Listing
from osteon.modalities import Payload
from osteon.modalities.sound import encode_wav

_STARTS = ("this is", "here we have", "somebody wrote", "you can hear", "it is")


def list_numbers(split: str | None) -> Listing:
    """scikit-learn's 1,797 digits, each with a third of a second of as many beeps, and a sentence.

    The sentence tells odd from even and below five from five or more. One in ten sets has no sound, one in ten no
    image, one in ten no text. ``train`` (1,200) and ``test`` (597) are a fixed random split.
    """
    digits = list_digits(None)
    rng = np.random.default_rng(0)
    count = len(digits.ids)
    labels = [int(str(label)) for label in digits.labels or ()]
    seeds, fate = rng.integers(2**31, size=count), rng.random(count)
    parts = np.where(rng.permutation(count) < 1200, "train", "test")

    def payload(i: int) -> Payload:
        made: dict[str, Any] = {"image": digits.payload(i), "sound": encode_wav(_beeps(labels[i], int(seeds[i])), 4000),
                                "text": _words(labels[i], int(seeds[i])).encode()}
        for place, name in enumerate(made):
            if 0.1 * place <= fate[i] < 0.1 * (place + 1):
                made[name] = None
        return cast(Payload, made)

    listing = Listing("numbers", [f"number-{i:04d}" for i in range(count)], payload, "numbers-1",
                      labels=list(digits.labels or ()), class_names=digits.class_names,
                      split=[str(p) for p in parts], cached=False, modality="several",
                      traits={"names": ["image", "sound", "text"]})
    return listing.only(split) if split else listing


def _beeps(number: int, seed: int, rate: int = 4000) -> np.ndarray:
    """So many beeps of one random pitch in 0.32 seconds, at random moments that do not overlap, under noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(0.32 * rate)) / rate
    pitch, sound = 300 * 3 ** rng.random(), np.zeros(len(t))
    for slot in rng.permutation(10)[:number]:
        start = 0.03 * slot + 0.005 * rng.random() + 0.005
        on = (t >= start) & (t < start + 0.015)
        sound[on] = np.sin(2 * np.pi * pitch * (t[on] - start))
    return 0.4 * sound + 0.05 * rng.standard_normal(len(t))


def _words(number: int, seed: int) -> str:
    rng = np.random.default_rng(seed + 1)
    kind = "an odd number" if number % 2 else "an even number"
    size = "below five" if number < 5 else "five or more"
    return f"{_STARTS[rng.integers(len(_STARTS))]} {kind} , {size}"
