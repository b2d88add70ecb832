"""Volumes: from scans to arrays of one orientation, spacing, extent and window, and what costs no training to know.

Shape letters: B batch, N samples, C channels, D slices from the feet up, H rows from back to front, W columns from left
to right.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from osteon.modalities._base import Control, Payload, Unreadable
from osteon.modalities._dicom import order_slices, read_dicom, read_slices
from osteon.modalities._files import apart, averaged, checked, reasons
from osteon.modalities._nifti import MAX_CELLS, read_nifti, read_nifti_header
from osteon.parts.types import DataSpec

#: Files with these endings are taken for volumes.
SUFFIXES = frozenset((".nii", ".nii.gz"))
#: What several samples are called.
SAMPLES = "volumes"
#: How a volume becomes an array; printed.
RULES = ("axes are turned to up, front and right by the affine, without interpolation; other spacings are resampled "
         "(trilinear, antialiased); larger volumes keep their middle, smaller ones are surrounded by the lowest value")
#: Most channels: a scan with more volumes than that is a film.
MAX_CHANNELS = 16
#: Percentiles of a volume that become 0 and 1 where no window is given.
ROBUST = (0.5, 99.5)
#: Depth of stored values: 0..65535 stand for 0..1.
LEVELS = 65535


@dataclass(frozen=True)
class Header:
    """What is known of a volume before it is decoded: channels, sides (D, H, W) and their spacing, after turning."""

    channels: int
    sides: tuple[int, int, int]
    spacing: tuple[float, float, float]


def turn(affine: np.ndarray) -> tuple[tuple[int, ...], tuple[bool, ...], tuple[float, ...]]:
    """How a volume (k, j, i) is turned to (up, front, right) by whole axes.

    The cells' axes are given to the body's so that their directions agree most in sum; what runs the other way is
    mirrored.

    Args:
        affine: (3, 4) from i, j, k, 1 to millimetres to the right, to the front and up.

    Returns:
        For each of the new sides: the old one, whether it is mirrored, and its spacing in mm.
    """
    steps = affine[:, :3]
    spacing = np.linalg.norm(steps, axis=0)
    cosine = steps / spacing  # (right front up, i j k)
    best = max(itertools.permutations(range(3)), key=lambda order: sum(abs(cosine[w, a]) for w, a in enumerate(order)))
    axes = [(2 - best[world], bool(cosine[world, best[world]] < 0), float(spacing[best[world]])) for world in (2, 1, 0)]
    old, mirrored, mm = zip(*axes, strict=True)
    return old, mirrored, mm


def upright(values: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, tuple[float, ...]]:
    """A volume (C, k, j, i) as (C, D, H, W), and the spacing of its sides in mm. See :func:`turn`."""
    old, mirrored, spacing = turn(affine)
    turned = values.transpose(0, *(1 + axis for axis in old))
    return np.flip(turned, tuple(1 + side for side in range(3) if mirrored[side])), spacing


def read_header(payload: Payload) -> Header:
    """Channels, sides and spacing of a volume without decoding it. Raises :class:`Unreadable`."""
    if isinstance(payload, np.ndarray):
        return _array_header(payload)
    with reasons():
        path = checked(payload)
        if path.is_dir():
            _, shape, affine = order_slices(read_slices(path, values=False))
            channels = 1
        else:
            head = read_nifti_header(path)
            shape, affine = _three(head.shape[2::-1]), head.affine
            channels = head.shape[3] if len(head.shape) == 4 else 1
    if channels > MAX_CHANNELS:
        raise Unreadable(f"holds {channels} volumes; up to {MAX_CHANNELS} are taken for channels, more for a film, "
                         "which is to be cut into volumes")
    old, _, spacing = turn(affine)
    return Header(channels, _three(shape[axis] for axis in old), _three(spacing))


def decode(payload: Payload, spacing: Sequence[float], *, nearest: bool = False) -> np.ndarray:
    """One volume (C, D, H, W) float32 upright and at a spacing in mm. Raises :class:`Unreadable`.

    With ``nearest`` no value is mixed of others: for labels.
    """
    if isinstance(payload, np.ndarray):
        _array_header(payload)
        values, have = np.asarray(payload if payload.ndim == 4 else payload[None], np.float32), (1.0, 1.0, 1.0)
    else:
        with reasons():
            path = checked(payload)
            values, have = upright(*(read_dicom(path) if path.is_dir() else read_nifti(path)))  # type: ignore[assignment]
    if not np.isfinite(values).all():
        raise Unreadable("contains NaN or infinity")
    cells = [sampled(n, mm, wanted) for n, mm, wanted in zip(values.shape[1:], have, spacing, strict=True)]
    if math.prod(cells) * len(values) > MAX_CELLS:
        raise Unreadable(f"would have {' x '.join(map(str, cells))} cells at the spacing of the others, more than the "
                         f"limit of {MAX_CELLS / 1e6:.0f} million")
    for side, (mm, wanted) in enumerate(zip(have, spacing, strict=True)):
        values = resample(values, 1 + side, sampled(values.shape[1 + side], mm, wanted), nearest=nearest)
    return np.ascontiguousarray(values, np.float32)


def sampled(length: int, have: float, wanted: float) -> int:
    """Cells of a side after resampling from one spacing to another."""
    return max(1, round(length * have / wanted))


def resample(values: np.ndarray, axis: int, length: int, *, nearest: bool = False) -> np.ndarray:
    """One side brought to ``length`` cells over the same stretch: a triangle filter, wider where it gets coarser.

    Or, with ``nearest``, the cell that holds the middle of the new one.
    """
    have = values.shape[axis]
    if have == length:
        return values
    step = have / length
    centre = (np.arange(length) + 0.5) * step
    if nearest:
        return np.take(values, centre.astype(np.int64), axis)
    weight = np.clip(1 - np.abs(np.arange(have) + 0.5 - centre[:, None]) / max(step, 1.0), 0, None)
    weight = (weight / weight.sum(1, keepdims=True)).astype(np.float32)
    return np.moveaxis(np.tensordot(weight, values, (1, axis)), 0, axis)


def scale_window(values: np.ndarray, window: Sequence[float] | None) -> np.ndarray:
    """Values (C, ...) with ``window`` (low, high) at 0 and 1, clipped; None: by :data:`ROBUST`, a channel each."""
    if window is None:
        low, high = (np.percentile(values, q, axis=(1, 2, 3), keepdims=True) for q in ROBUST)
        flat = high <= low  # nearly everything has one value: what differs is at the ends
        low = np.where(flat, values.min((1, 2, 3), keepdims=True), low)
        high = np.where(flat, values.max((1, 2, 3), keepdims=True), high)
        if (high <= low).any():
            raise Unreadable("has the same value everywhere")
    else:
        low, high = (np.float32(v) for v in window)
    return np.clip((values - low) / (high - low), 0, 1)


def whole_labels(values: np.ndarray) -> np.ndarray:
    """Labels as stored, uint16. Raises :class:`Unreadable` where they are none."""
    if (values != np.rint(values)).any() or values.min() < 0 or values.max() > LEVELS:
        raise Unreadable(f"holds values that are no labels from 0 to {LEVELS:,}")
    return values.astype(np.uint16)


def fit_extent(values: np.ndarray, extent: Sequence[int]) -> np.ndarray:
    """The middle of a volume (C, D, H, W) with sides ``extent``; what is missing around it is 0."""
    for side, wanted in enumerate(extent):
        have = values.shape[1 + side]
        start = max(0, have - wanted) // 2
        values = np.take(values, range(start, start + min(have, wanted)), 1 + side)
        before = max(0, wanted - have) // 2
        widths = [(0, 0)] * 4
        widths[1 + side] = (before, wanted - values.shape[1 + side] - before)
        values = np.pad(values, widths)
    return values


def intensity_histogram(samples: np.ndarray, bins: int = 64) -> np.ndarray:
    """Share of cells in each of ``bins`` equal ranges of [0, 1], a channel each: (N, C, D, H, W) -> (N, C * bins)."""
    out = np.empty((*samples.shape[:2], bins), np.float32)
    for n, c in np.ndindex(*samples.shape[:2]):
        place = np.minimum((samples[n, c].astype(np.float32) * (bins / LEVELS)).astype(np.int64), bins - 1)
        out[n, c] = np.bincount(place.ravel(), minlength=bins) / place.size
    return out.reshape(len(samples), -1)


def small_volumes(samples: np.ndarray, few: int = 8) -> np.ndarray:
    """Voxels averaged to at most ``few`` cells a side: (N, C, D, H, W) -> (N, C * 512)."""
    return averaged(samples, (few, few, few)) / LEVELS


#: The 13 directions through opposite neighbours of a cell, of length 1.
_DIRECTIONS = np.array([d for d in itertools.product((-1, 0, 1), repeat=3) if d > (0, 0, 0)], np.float32)
_DIRECTIONS /= np.linalg.norm(_DIRECTIONS, axis=1, keepdims=True)


def gradient_statistics(samples: np.ndarray) -> np.ndarray:
    """Gradients by direction in each eighth of a volume: (N, C, D, H, W) -> (N, C * 104).

    Each gradient counts, by its length, for the nearest of 13 directions (Dalal & Triggs 2005 in three dimensions,
    without regard to sign); sums over an octant are means over its cells.
    """
    count, channels = samples.shape[:2]
    out = np.zeros((count, channels, 8, len(_DIRECTIONS)), np.float32)
    for n, c in np.ndindex(count, channels):
        slope = np.stack(_slopes(samples[n, c].astype(np.float32) / LEVELS), -1)  # (D, H, W, 3)
        nearest, length = np.abs(slope @ _DIRECTIONS.T).argmax(-1), np.linalg.norm(slope, axis=-1)
        halves = [(slice(0, max(1, side // 2)), slice(side // 2, None)) for side in length.shape]
        for octant, place in enumerate(itertools.product(*halves)):
            part = np.bincount(nearest[place].ravel(), length[place].ravel(), minlength=len(_DIRECTIONS))
            out[n, c, octant] = part / nearest[place].size
    return out.reshape(count, -1)


def _slopes(values: np.ndarray) -> list[np.ndarray]:
    return [np.gradient(values, axis=axis) if side > 1 else np.zeros_like(values)
            for axis, side in enumerate(values.shape)]


#: Features that cost no training, shown beside every result.
CONTROLS: dict[str, Control] = {"intensity histogram": apart(intensity_histogram),
                                "raw voxels": apart(small_volumes), "gradient statistics": apart(gradient_statistics)}


def backbone_options(spec: DataSpec) -> dict[str, Any]:
    """A backbone learns what it needs to know of volumes from their channels and sides."""
    return {}


def picture(values: np.ndarray, spec: DataSpec, like: np.ndarray | None = None) -> np.ndarray:
    """The three middle slices side by side, up and front at the top: (B, C, D, H, W) in [0, 1] -> (B, h, w, 3) uint8.

    From the left: seen from above, from the front, from the right. The first channel is shown.
    """
    first = np.asarray(values[:, 0], np.float32)
    deep, high, wide = first.shape[1:]
    slices = [first[:, deep // 2], first[:, :, high // 2], first[:, :, :, wide // 2]]
    tall = max(deep, high)
    row = []
    for part in slices:
        part = part[:, ::-1]
        row.append(np.pad(part, ((0, 0), (0, tall - part.shape[1]), (0, 0))))
    grey = (np.clip(np.concatenate(row, 2), 0, 1) * 255).round().astype(np.uint8)
    return np.repeat(grey[..., None], 3, -1)


def _array_header(values: np.ndarray) -> Header:
    if values.ndim not in (3, 4) or values.dtype.kind not in "iufb" or min(values.shape, default=0) < 1:
        raise Unreadable(f"is an array of shape {values.shape} and type {values.dtype}, not (D, H, W) or (C, D, H, W) "
                         "of numbers")
    if values.size > MAX_CELLS:
        raise Unreadable(f"has {values.size:,} cells, more than the limit of {MAX_CELLS / 1e6:.0f} million")
    return Header(values.shape[0] if values.ndim == 4 else 1, _three(values.shape[-3:]), (1.0, 1.0, 1.0))


def _three(values: Any) -> Any:
    first, second, third = values
    return first, second, third
