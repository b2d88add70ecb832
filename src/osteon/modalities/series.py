"""Series: channels measured at equal steps of time; gaps, lengths, pictures, and what costs no training to know.

Shape letters: B batch, N samples, C channels, T steps of time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from osteon.core.errors import UsageError
from osteon.modalities._base import Control, Payload, Unreadable
from osteon.parts.types import DataSpec

#: What several samples are called.
SAMPLES = "series"
#: How a series becomes an array; printed.
RULES = ("missing values lie on the line between their neighbours, at the ends they repeat the nearest; a channel "
         "without any takes that channel's mean in the source")
#: Ways to bring series of unequal length to one: stretched by linear interpolation, or followed by their last value.
FITS = ("resample", "pad")
#: Ways to normalise: by statistics of the training part, or every sample by its own mean and deviation.
NORMS = ("series", "window")
#: Lags of the autocorrelations among the summary statistics.
LAGS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
#: Bands of frequency among the summary statistics.
BANDS = 8
#: Size of a picture, and the colours of its first three channels.
HIGH, WIDE = 64, 128
COLOURS = ((40, 70, 160), (200, 80, 40), (40, 130, 80))


@dataclass(frozen=True)
class Header:
    """What is known of a series before it is used: channels, steps, and how many values are missing."""

    channels: int
    length: int
    missing: int


def read_header(payload: Payload) -> Header:
    """Channels, steps and gaps of values (C, T). Raises :class:`Unreadable` where there is nothing to use."""
    values = _values(payload)
    missing = int((~np.isfinite(values)).sum())
    if missing == values.size:
        raise Unreadable("holds no value" if values.size == 0 else "has all values missing")
    return Header(values.shape[0], values.shape[1], missing)


def _values(payload: Payload) -> np.ndarray:
    if isinstance(payload, bytes):  # what a reader found wrong with the sample
        raise Unreadable(payload.decode() or "is empty")
    if not isinstance(payload, np.ndarray) or payload.ndim != 2:
        raise Unreadable("is not an array of channels by time")
    return payload


def fill_missing(values: np.ndarray) -> np.ndarray:
    """Gaps of each channel (C, T) filled: linear between neighbours, nearest at the ends; 0 where a channel has none.

    What is not finite counts as missing.
    """
    known = np.isfinite(values)
    if known.all():
        return values
    out, step = np.array(values, np.float64), np.arange(values.shape[1])
    for channel, have in enumerate(known):
        out[channel] = np.interp(step, step[have], values[channel, have]) if have.any() else 0.0
    return out


def fit_length(values: np.ndarray, length: int, how: str = "resample") -> np.ndarray:
    """Values (C, t) as (C, ``length``): stretched by linear interpolation (ends stay ends), or padded and cut.

    ``pad`` repeats the last value, and keeps the first ``length`` steps of what is longer.
    """
    have = values.shape[1]
    if have == length:
        return values
    if how == "pad":
        return np.pad(values, ((0, 0), (0, max(0, length - have))), mode="edge")[:, :length]
    place = np.linspace(0, have - 1, length)
    return np.stack([np.interp(place, np.arange(have), row) for row in values])


def own_scale(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each channel over time, (..., T) -> two (..., 1); the deviation of a flat one is 1."""
    mean, std = values.mean(-1, keepdims=True), values.std(-1, keepdims=True)
    return mean, np.where(std > 1e-6 * (np.abs(mean) + 1e-6), std, 1.0)


def decode(payload: Payload, length: int, fit: str, norm: str) -> np.ndarray:
    """One series of channels by time as (C, ``length``) float32, gaps filled. Raises :class:`Unreadable`."""
    values = fit_length(fill_missing(_values(payload)), length, fit)
    if norm == "window":
        mean, std = own_scale(values)
        values = (values - mean) / std
    with np.errstate(over="ignore"):
        out = np.ascontiguousarray(values, np.float32)
    if not np.isfinite(out).all():
        raise Unreadable("has values beyond the range of 32-bit numbers")
    return out


def choice(value: Any, known: tuple[str, ...], name: str) -> str:
    """An option that is one of a few words; raises UsageError."""
    if value not in known:
        raise UsageError(f"There is no {name} '{value}'.", where=name, fix=f"Set {' or '.join(known)}.")
    return str(value)


def summary_statistics(samples: np.ndarray) -> np.ndarray:
    """Of each channel: mean, deviation, 5 quantiles, autocorrelations, energies of bands; (N, C, T) -> (N, C * 25).

    Autocorrelations are at :data:`LAGS` (0 where the series is shorter). Bands divide the frequencies above 0 evenly in
    octaves; of each, the logarithm of its share of the energy. A flat channel has shares and correlations of 0.
    """
    values = samples.astype(np.float64)
    mean, std = own_scale(values)
    z = (values - mean) / std
    quantiles = np.moveaxis(np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95), axis=-1), 0, -1)
    length = values.shape[-1]
    lagged = [(z[..., lag:] * z[..., :-lag]).sum(-1) / length if lag < length else np.zeros(z.shape[:-1])
              for lag in LAGS]
    parts = [mean, values.std(-1, keepdims=True), quantiles, np.stack(lagged, -1), _bands(z)]
    return np.concatenate(parts, -1).reshape(len(samples), -1).astype(np.float32)


def _bands(z: np.ndarray) -> np.ndarray:
    """Logarithm of each band's share of the energy, lowest first: (..., T) -> (..., BANDS)."""
    power = np.abs(np.fft.rfft(z, axis=-1))[..., 1:] ** 2
    total = power.sum(-1)
    count = power.shape[-1]
    edges = np.round(np.geomspace(1, count + 1, BANDS + 1)).astype(int) - 1
    share = [power[..., a:b].sum(-1) / np.where(total > 0, total, 1) for a, b in zip(edges, edges[1:], strict=False)]
    return np.where(total[..., None] > 0, np.log(np.stack(share, -1) + 1e-4), 0.0)


def raw_values(samples: np.ndarray) -> np.ndarray:
    """Values averaged over equal spans, at most 256 a channel and about 1,024 in all: (N, C, T) -> (N, D)."""
    few = min(samples.shape[-1], 256, max(8, 1024 // samples.shape[1]))
    parts = [p.mean(-1, dtype=np.float64) for p in np.array_split(samples, few, axis=-1)]
    return np.stack(parts, -1).reshape(len(samples), -1).astype(np.float32)


def _apart(reader: Callable[[np.ndarray], np.ndarray]) -> Control:
    def both(train: np.ndarray, test: np.ndarray, spec: DataSpec) -> tuple[np.ndarray, np.ndarray]:
        return reader(np.asarray(train)), reader(np.asarray(test))

    return both


#: Features that cost no training, shown beside every result.
CONTROLS: dict[str, Control] = {"summary statistics": _apart(summary_statistics), "raw values": _apart(raw_values)}


def backbone_options(spec: DataSpec) -> dict[str, Any]:
    """A backbone learns what it needs to know of series from their channels and length."""
    return {}


def picture(values: np.ndarray, spec: DataSpec, like: np.ndarray | None = None) -> np.ndarray:
    """Lines over time of the first three channels, each on its own scale: (B, C, T) -> (B, 64, 128, 3) uint8."""
    from PIL import Image, ImageDraw

    shown = values[:, :len(COLOURS)].astype(np.float64)
    range_of = (values if like is None else like)[:, :len(COLOURS)]
    low, high = (np.percentile(range_of, q, axis=(0, 2))[:, None] for q in (1, 99))
    unit = np.clip((shown - low) / np.maximum(high - low, 1e-12), 0, 1)
    twice = 2  # drawn at twice the size and averaged, so that lines are smooth
    across = np.linspace(0, twice * WIDE - 1, values.shape[-1])
    out = []
    for sample in unit:
        image = Image.new("RGB", (twice * WIDE, twice * HIGH), (255, 255, 255))
        pen = ImageDraw.Draw(image)
        for line, colour in list(zip(sample, COLOURS, strict=False))[::-1]:
            down = (1 - line) * (twice * HIGH - 5) + 2
            points = list(zip(across.tolist(), down.tolist(), strict=True))
            pen.line(points if len(points) > 1 else [(0, points[0][1]), (twice * WIDE, points[0][1])], fill=colour,
                     width=3)
        out.append(np.asarray(image.resize((WIDE, HIGH), Image.Resampling.BOX)))
    return np.stack(out)
