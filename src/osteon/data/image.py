"""Reading images: the codec that :func:`osteon.data.open_source` uses for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from osteon.data.arrays import list_digits
from osteon.data.codec import Codec
from osteon.data.policy import Plan, make_plan
from osteon.modalities import Payload
from osteon.modalities._measure import measure, scale_of
from osteon.modalities.image import RULES, Header, decode_square, read_header, to_channels, to_depth
from osteon.parts.types import DataSpec


def _plan(headers: dict[int, Header], *, size: int | None, like: DataSpec | None, source: str,
          options: Mapping[str, Any]) -> Plan:
    return make_plan(headers, size=size, like=like, source=source)


def _convert(payload: Payload, plan: Plan) -> np.ndarray:
    return to_depth(to_channels(decode_square(payload, plan.size), plan.channels), plan.dtype)


def _alike(payload: Payload, plan: Plan, header: Header) -> np.ndarray:
    return to_depth(to_channels(decode_square(payload, plan.size, like=header), plan.channels), plan.dtype)


def _measure(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    scale = scale_of(images.dtype)
    return (*measure(images, scale), scale)


def list_path(path: Path, source: str, *, asked: bool, options: Mapping[str, Any] | None = None,
              like: DataSpec | None = None) -> None:
    """Images are what is left when no other modality knows the path: :func:`osteon.data.list_source` lists them."""


#: Generated and embedded sources by name: name -> ``list(split)``.
NAMED = {"digits": list_digits}
CODEC = Codec(read_header, _plan, _convert, _measure, rules=RULES, alike=_alike)
