"""What every modality says in the same words: how a sample is read, what its data are, and what competes with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from osteon.parts.types import DataSpec

#: What a source hands over for one sample: encoded bytes, the path of an encoded file, or its values.
Payload = bytes | Path | np.ndarray

#: Features from no network, of training and test samples (N, C, *extent) as stored: (N, F), (M, F). What is fitted is
#: fitted on the first. The spec holds scale and traits.
Control = Callable[[np.ndarray, np.ndarray, DataSpec], tuple[np.ndarray, np.ndarray]]


class Unreadable(Exception):
    """A sample that cannot be used; the message is the reason shown to the user."""


class Unlike(Unreadable):
    """A sample that has another header than the one it was expected to have; nothing is wrong with it."""


class Modality(Protocol):
    """What the module of a modality holds, beside its own way of decoding.

    Attributes:
        CONTROLS: name -> features that cost no training; shown beside every result.
        SAMPLES: what several samples are called in a message, e.g. ``"images"``.

    ``ALIKE`` names the control whose rows say as they are how alike two samples are; without one it is the first, each
    of its columns standardised.

    A modality may also have ``LABELLED_CONTROLS``: name -> ``fit(samples, labels, asked, spec, *, classes, seed)``,
    which gives the scores (M, K) of a classifier that reads samples and labels itself; and ``NUMBER_CONTROLS``: name ->
    ``fit(samples, targets, asked, spec, *, seed)``, which gives the numbers (M,) of a regression that does.
    """

    CONTROLS: Mapping[str, Control]
    SAMPLES: str

    def backbone_options(self, spec: DataSpec) -> dict[str, Any]:
        """Options a backbone needs to take these data, e.g. the size of a vocabulary."""

    def picture(self, values: np.ndarray, spec: DataSpec, like: np.ndarray | None = None) -> np.ndarray:
        """Samples for the eye: stored values divided by the scale (B, C, *extent) -> (B, h, w, 3) uint8.

        ``like`` holds samples whose range of values is to be shown; ``values`` themselves when None.
        """
