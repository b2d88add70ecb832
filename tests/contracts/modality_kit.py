"""What contracts on every modality share: each one's generated source, and a small network that takes it."""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np
import torch

from osteon.backbones import Backbone, build_backbone
from osteon.core import registry
from osteon.data import Dataset, open_source
from osteon.data.codec import named_sources
from osteon.modalities import NAMES, find
from osteon.parts.calibration import Calibration
from osteon.verbs._model import fit_samples

#: every pair instead of one modality a method: ``make contracts``
LONG = bool(os.environ.get("OSTEON_LONG_CONTRACTS"))
#: fewer tokens, smaller samples
SMALL: dict[str, dict[str, Any]] = {"sound": {"patch": 8}, "video": {"patch": 8}}
READ: dict[str, dict[str, int]] = {"video": {"frames": 8, "size": 16}}


def pairs(kind: str, quick: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    """(method, modality) for what the cards of a kind claim beside images: all of it, or the pairs of ``quick``."""
    claimed = [(card.name, m) for card in registry.cards(kind=kind) for m in NAMES[1:] if registry.fits(card, m)]
    return claimed if LONG else [pair for pair in claimed if pair[1] in quick.get(pair[0], ())]


@functools.cache
def data(modality: str, count: int = 24) -> Dataset:
    """Labelled samples."""
    return open_source(f"{next(iter(named_sources(modality)))}:train", cache=False, limit=count,
                       **READ.get(modality, {}))


def network(modality: str, depth: int = 2) -> Backbone:
    """A small Transformer with seeded random weights."""
    spec = data(modality).spec
    torch.manual_seed(0)
    return build_backbone("vit_tiny", channels=spec.channels, size=spec.extent, dim=32, depth=depth, heads=4,
                          **{**find(modality).backbone_options(spec), **SMALL.get(modality, {})}).eval()


def samples(modality: str, count: int = 6) -> torch.Tensor:
    """Samples as a network takes them."""
    return fit_samples(data(modality), data(modality).spec, np.arange(count))


def calibration(modality: str) -> Calibration:
    """All samples, with labels."""
    whole = data(modality)
    return Calibration(lambda rows: fit_samples(whole, whole.spec, rows), len(whole), whole.spec, batch_size=12,
                       stored=whole.batch, labels=np.asarray(whole.labels))
