"""Samples of several modalities at once, packed into one array: which members there are and where each lies.

A packed sample is (1, T): for each member first a number that is 1 where the member is there and 0 where it is
missing, then the values of each member as it stores them, flattened one after the other; a missing one is all zeros.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from osteon.parts.types import DataSpec


@dataclass(frozen=True)
class Member:
    """One modality of several.

    Args:
        name: of the modality.
        spec: what its samples look like.
        start: where its values begin in a packed sample.
    """

    name: str
    spec: DataSpec
    start: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one of its samples: (C, *extent)."""
        return (self.spec.channels, *self.spec.extent)

    @property
    def stop(self) -> int:
        """Where its values end."""
        return self.start + math.prod(self.shape)


class Members(tuple[Member, ...]):
    """The members of a packed sample, in their order."""

    __slots__ = ()

    @classmethod
    def of(cls, traits: Mapping[str, Any]) -> Members:
        """From the traits of a :class:`DataSpec`, or the options of a backbone.

        ``{"members": {name: spec}, "own": {name: what its modality knows beside}}``.
        """
        own = traits.get("own", {})
        specs = {name: spec_from(spec) for name, spec in traits["members"].items()}
        return cls.place((name, replace(s, traits={**own.get(name, {}), **s.traits})) for name, s in specs.items())

    @classmethod
    def place(cls, specs: Iterable[tuple[str, DataSpec | Mapping[str, Any]]]) -> Members:
        """One after the other, behind their flags."""
        known = [(name, spec if isinstance(spec, DataSpec) else spec_from(spec)) for name, spec in specs]
        found, start = list[Member](), len(known)
        for name, spec in known:
            found.append(Member(name, spec, start))
            start = found[-1].stop
        return cls(found)

    @property
    def names(self) -> list[str]:
        """Of the modalities."""
        return [m.name for m in self]

    @property
    def width(self) -> int:
        """Numbers in a packed sample, T."""
        return self[-1].stop

    def there(self, x: Tensor) -> Tensor:
        """Which members are there: (B, 1, T) -> (B, M) bool."""
        return x[:, 0, :len(self)] > 0.5

    def values(self, x: Tensor, member: Member) -> Tensor:
        """Values of a member as stored: (B, 1, T) -> (B, C, *extent)."""
        return x[:, 0, member.start:member.stop].reshape(-1, *member.shape)

    def normalised(self, x: Tensor, member: Member) -> Tensor:
        """Values of a member as a network takes them."""
        mean, std = moments(member.spec, x)
        return (self.values(x, member) / member.spec.scale - mean) / std

    def pack(self, there: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """Flags (B, M) and stored values by name -> (B, 1, T) float32; what is missing becomes zero."""
        parts = [there.float()]
        for i, member in enumerate(self):
            value = values[member.name].float()
            short = member.spec.extent[-1] - value.shape[-1]  # a view of a text may be shorter: <pad> is 0
            flat = (F.pad(value, (0, short)) if short else value).flatten(1)
            parts.append(torch.where(there[:, i, None], flat, torch.zeros_like(flat)))
        return torch.cat(parts, 1)[:, None]

    def stored(self, member: Member, normalised: Tensor) -> Tensor:
        """Back from what a network takes to what is stored."""
        mean, std = moments(member.spec, normalised)
        return (normalised * std + mean) * member.spec.scale

    def split(self, samples: np.ndarray, member: Member) -> tuple[np.ndarray, np.ndarray]:
        """Of packed samples (N, 1, T): which have the member (N,), and its values (N, C, *extent)."""
        there = samples[:, 0, self.index(member)] > 0.5
        return there, samples[:, 0, member.start:member.stop].reshape(-1, *member.shape)


def moments(spec: DataSpec, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel, (1, C, 1, ...), of values divided by the scale."""
    shape = (1, -1, *[1] * len(spec.extent))
    mean, std = (torch.tensor(v, dtype=torch.float32, device=like.device).view(shape) for v in (spec.mean, spec.std))
    return mean, std


def spec_from(plain: Mapping[str, Any]) -> DataSpec:
    """A :class:`DataSpec` from its JSON form."""
    known = {f.name for f in fields(DataSpec)}
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items() if k in known}
    return DataSpec(**values)


def plain_spec(spec: DataSpec) -> dict[str, Any]:
    """A :class:`DataSpec` as JSON-ready values."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(spec).items()}
