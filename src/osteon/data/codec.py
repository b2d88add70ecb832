"""How the samples of each modality get from what a source holds to one array: header, plan, conversion, statistics."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np

from osteon.core.errors import UsageError, nearest
from osteon.core.options import coerce
from osteon.modalities import NAMES, Payload

#: Largest number an option of reading may be.
MOST_NUMBER = 10**9


class PlanLike(Protocol):
    """What every sample of a source becomes."""

    dtype: str
    rejected: dict[int, str]
    notes: list[str]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one stored sample, (C, *extent)."""


@dataclass
class Plan:
    """One shape and type for all samples of a source, and which samples cannot have them.

    Args:
        shape: of one stored sample, (C, *extent).
        dtype: its value type.
        traits: what the modality is to remember of the data.
        rejected: number of a sample -> why it cannot be used.
        notes: every choice with its rule.
    """

    shape: tuple[int, ...]
    dtype: str
    traits: dict[str, Any] = field(default_factory=dict)
    rejected: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Codec:
    """How one modality is read.

    Args:
        header: what is known of a sample before it is decoded; raises :class:`osteon.modalities.Unreadable`.
        plan: ``plan(headers, size=, like=, source=, options=) -> PlanLike`` from (number -> header).
        convert: a payload as an array of the plan's shape and type; raises ``Unreadable``.
        measure: stored samples -> (mean of each channel, deviation, scale).
        options: options of ``--set`` and their defaults.
        rules: how every kind of file becomes an array; printed.
        settle: called with the plan and the decoded samples, where traits are known only then.
        alike: ``alike(payload, plan, header)``, where the plan of samples that are all alike is known from one of them:
            ``convert`` of a sample that has this header, from one reading; raises ``Unlike`` where it has another.
    """

    header: Callable[[Payload], Any]
    plan: Callable[..., PlanLike]
    convert: Callable[[Payload, Any], np.ndarray]
    measure: Callable[[np.ndarray], tuple[Sequence[float], Sequence[float], float]]
    options: Mapping[str, Any] = field(default_factory=dict)
    rules: str = ""
    settle: Callable[[Any, np.ndarray], None] | None = None
    alike: Callable[[Payload, Any, Any], np.ndarray] | None = None


def codec(modality: str) -> Codec:
    """The codec of a modality."""
    return cast(Codec, importlib.import_module(f"osteon.data.{modality}").CODEC)


def named_sources(modality: str) -> Mapping[str, Callable[[str | None], Any]]:
    """Embedded and generated sources of a modality by name: name -> function of the split that lists them."""
    return cast(Mapping[str, Callable[[str | None], Any]], importlib.import_module(f"osteon.data.{modality}").NAMED)


def modality_options(modality: str | None = None) -> dict[str, Any]:
    """Options of ``--set`` that belong to reading one modality, or any of them."""
    names = NAMES if modality is None else (modality,)
    return {key: value for name in names for key, value in codec(name).options.items()}


def check_options(modality: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of reading a modality, the defaults where nothing was given; an unknown one raises UsageError."""
    known = dict(codec(modality).options)
    for key in given:
        if key not in known:
            raise UsageError(f"Reading {modality} has no option '{key}'.{nearest(key, known)}", where="--set",
                             fix=f"It has: {', '.join(known) or 'none'}.")
    return {**known, **{k: _like(known[k], v, k) for k, v in given.items() if v is not None}}


def _like(usual: Any, value: Any, name: str) -> Any:
    """A value of the type of an option's default, where that is a number or a switch. Raises UsageError."""
    if not isinstance(usual, (bool, int, float)):
        return value
    made = coerce(value, type(usual).__name__, name=name, where="--set")
    if abs(made) <= MOST_NUMBER:  # neither NaN nor beyond what any option can mean
        return made
    raise UsageError(f"{name} = {value} is no number that can be meant.", where="--set",
                     fix=f"Give at most {MOST_NUMBER:,}.")
