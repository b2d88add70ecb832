"""What osteon knows of each kind of data, one file a modality."""

from __future__ import annotations

import importlib
import pkgutil
from typing import cast

from osteon.core.errors import UsageError, nearest
from osteon.modalities._base import Control, Modality, Payload, Unlike, Unreadable

__all__ = ["NAMES", "Control", "Modality", "Payload", "Unlike", "Unreadable", "find", "one_of"]

#: Modalities there are: each is a module here, one in ``data`` that reads it and one in ``views`` that augments it.
NAMES = tuple(sorted((name for _, name, _ in pkgutil.iter_modules(__path__) if not name.startswith("_")),
                     key=lambda name: (name != "image", name)))


def one_of(samples: str) -> str:
    """The singular of what several samples are called."""
    return samples if samples == "series" else samples.removesuffix("s")


def find(name: str) -> Modality:
    """The module of a modality."""
    if name not in NAMES:
        raise UsageError(f"There is no modality '{name}'.{nearest(name, NAMES)}", where="modality",
                         fix=f"Known: {', '.join(NAMES)}.")
    return cast(Modality, importlib.import_module(f"osteon.modalities.{name}"))
