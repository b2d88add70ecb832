"""DICOM: a folder of slices as one volume, in order and at its place.

NEMA PS3.3, C.7.6.2.1.1: ImagePositionPatient and ImageOrientationPatient are in millimetres to the left, to the back
and up.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from osteon.core.errors import MissingExtra
from osteon.modalities._base import Unreadable
from osteon.modalities._nifti import MAX_CELLS

#: Files with these endings are taken for slices.
SUFFIXES = frozenset((".dcm", ".dicom", ".ima"))
#: Largest difference of the gaps between slices, as a share of their median.
UNEVEN = 0.1


def read_slices(folder: Path, *, values: bool) -> list[Any]:
    """Every slice in a folder, in any order. Raises :class:`Unreadable`, and MissingExtra without pydicom."""
    try:
        import pydicom
    except ImportError as error:
        raise MissingExtra("pydicom", "volume", why="Reading DICOM slices") from error
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))
    slices = []
    for file in files:
        if not file.is_file():  # opening a pipe would wait for ever
            raise Unreadable(f"slice {file.name} is not a regular file")
        try:
            slices.append(pydicom.dcmread(file, stop_before_pixels=not values))
        except Exception as error:  # a damaged slice may raise about anything
            raise Unreadable(f"slice {file.name} cannot be decoded: {str(error).strip() or type(error).__name__}"
                             ) from error
    return slices


def order_slices(slices: Sequence[Any]) -> tuple[list[Any], tuple[int, int, int], np.ndarray]:
    """Slices from first to last along their normal, the sides (slices, rows, columns), and the affine (3, 4).

    The affine leads from column, row and slice to millimetres to the right, to the front and up, as that of NIfTI does.

    Raises:
        Unreadable: fewer than 2 slices, several series or sizes, slices that are missing or twice there.
    """
    if len(slices) < 2:
        raise Unreadable(f"holds {len(slices)} slice; a volume has 2 or more")
    series = {str(getattr(s, "SeriesInstanceUID", "")) for s in slices}
    if len(series) > 1:
        raise Unreadable(f"holds slices of {len(series)} series; put each into a folder of its own")
    sizes = {(int(s.Rows), int(s.Columns)) for s in slices}
    if len(sizes) > 1:
        raise Unreadable(f"holds slices of different sizes: {', '.join(f'{r} x {c}' for r, c in sorted(sizes))}")
    if any(int(getattr(s, "SamplesPerPixel", 1)) != 1 or int(getattr(s, "NumberOfFrames", 1) or 1) != 1
           for s in slices):
        raise Unreadable("holds colour or multi-frame slices; only single grey slices are read")
    (rows, columns), = sizes
    if rows * columns * len(slices) > MAX_CELLS:
        raise Unreadable(f"claims {len(slices)} x {rows} x {columns} cells, more than the limit of "
                         f"{MAX_CELLS / 1e6:.0f} million")
    try:
        turns = np.array([[float(v) for v in s.ImageOrientationPatient] for s in slices])
        places = np.array([[float(v) for v in s.ImagePositionPatient] for s in slices])
        down, across = (float(v) for v in slices[0].PixelSpacing)
    except (AttributeError, TypeError, ValueError) as error:
        raise Unreadable("has slices without a place (ImagePositionPatient, ImageOrientationPatient, PixelSpacing)"
                         ) from error
    if not (np.isfinite(turns).all() and np.isfinite(places).all() and min(down, across) > 0):
        raise Unreadable("has slices whose place, orientation or PixelSpacing is impossible")
    if np.abs(turns - turns[0]).max() > 1e-3:
        raise Unreadable("has slices that are not parallel")
    along_row, along_column = turns[0, :3], turns[0, 3:]
    height = places @ np.cross(along_row, along_column)
    order = np.argsort(height, kind="stable")
    gaps = np.diff(height[order])
    usual = float(np.median(gaps))
    if usual < 1e-6 or gaps.min() < UNEVEN * usual:
        raise Unreadable("holds a place twice: two slices lie at the same height")
    if np.abs(gaps - usual).max() > UNEVEN * usual:
        raise Unreadable(f"lacks slices: gaps between them range from {gaps.min():g} to {gaps.max():g} mm")
    first, last = places[order[0]], places[order[-1]]
    matrix = np.column_stack([along_row * across, along_column * down, (last - first) / (len(slices) - 1), first])
    return [slices[i] for i in order], (len(slices), rows, columns), matrix * np.array([[-1.0], [-1.0], [1.0]])


def read_dicom(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Values (1, slices, rows, columns) float32 in the units of the scanner (CT: Hounsfield), and the affine (3, 4)."""
    ordered, shape, affine = order_slices(read_slices(folder, values=True))
    out = np.empty((1, *shape), np.float32)
    for i, one in enumerate(ordered):
        slope, inter = float(getattr(one, "RescaleSlope", 1) or 1), float(getattr(one, "RescaleIntercept", 0) or 0)
        try:
            out[0, i] = np.asarray(one.pixel_array, np.float32) * slope + inter
        except Exception as error:  # compressed pixels without a decoder, a short file
            raise Unreadable(f"slice {i + 1} cannot be decoded: {str(error).strip() or type(error).__name__}"
                             ) from error
    return out, affine
