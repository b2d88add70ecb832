"""Generated segmentations: random shapes over each other, to be rendered by the objective ``anatomix``."""

from __future__ import annotations

import numpy as np
import torch

from osteon.data.listing import Listing
from osteon.parts.label_maps import compose
from osteon.parts.types import Draws, Step

COUNT, TRAIN, SIDE, LEAST, MOST = 400, 300, 16, 5, 10


def list_label_maps(split: str | None) -> Listing:
    """400 generated segmentations of 16 x 16 x 16 cells with 5 to 10 shapes each; ``train`` (300) and ``test`` (100).

    The shapes are no anatomy, and the volumes belong to no classes.
    """
    listing = Listing("label_maps", [f"label-map-{i:03d}" for i in range(COUNT)], label_map, "label-maps-1",
                      split=["train" if i < TRAIN else "test" for i in range(COUNT)], cached=False, encoded=False,
                      modality="volume", reading={"segments": True})
    return listing.only(split) if split else listing


def label_map(number: int) -> np.ndarray:
    """One segmentation, (16, 16, 16) uint16: 0 where nothing is, else a label up to 11."""
    draws = Draws(Step(number, COUNT, 0), torch.arange(1), 1, name="label_maps")
    return compose(draws, (SIDE,) * 3, least=LEAST, most=MOST)[0].numpy().astype(np.uint16)
