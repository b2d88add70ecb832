"""Windows of series in their own units: normalised by the part that is known, forecast, and put back.

Kim et al. 2022, "Reversible Instance Normalization for Accurate Time-Series Forecasting against Distribution Shift",
without its learned scale. Shape letters: B batch, C channels, L steps of context, H steps ahead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from osteon.parts.types import DataSpec


def own_units(past: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel over time, (B, C, L) -> two (B, C, 1); the deviation of a flat one is 1."""
    mean, std = past.mean(-1, keepdim=True), past.std(-1, keepdim=True, unbiased=False)
    return mean, torch.where(std > 1e-6 * (mean.abs() + 1e-6), std, torch.ones_like(std))


def roll_out(ahead: Callable[[Tensor], Tensor], past: Tensor, steps: int) -> Tensor:
    """Forecast any number of steps by putting each forecast behind what is known and reading on.

    Args:
        ahead: (B, C, L) -> (B, C, H), always from as many steps as ``past`` has.
        past: (B, C, L).
        steps: how many are wanted; more than were forecast are cut off.

    Returns:
        (B, C, steps).
    """
    out, known = list[Tensor](), past
    while sum(part.shape[-1] for part in out) < steps:
        out.append(ahead(known))
        known = torch.cat([known, out[-1]], -1)[..., -past.shape[-1]:]
    return torch.cat(out, -1)[..., :steps]


def own_unit_data(data: DataSpec, context: int) -> DataSpec:
    """The data as a network knows them that reads windows of ``context`` steps by their own mean and deviation."""
    return replace(data, size=context, shape=(context,), mean=(0.0,) * data.channels, std=(1.0,) * data.channels,
                   traits={**data.traits, "norm": "window", **({"window": context} if "window" in data.traits else {})})
