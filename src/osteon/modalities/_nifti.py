"""NIfTI-1 and NIfTI-2 files: the header's shape, type and affine, and the values, without any package.

The format: Cox et al. 2004, A (sort of) new image data format standard: NIfTI-1; field offsets are those of nifti1.h
and nifti2.h.
"""

from __future__ import annotations

import gzip
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from osteon.modalities._base import Unreadable

#: Code of a type of values -> numpy's.
TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
#: Cells of the largest volume that is read: a header that claims more is refused before memory is taken.
MAX_CELLS = 2**28
#: What a byte of deflated data can become at most.
DEFLATE = 1032
#: Where a field lies and how it is written, in version 1 and 2.
_V1 = {"dim": (40, "8h"), "type": (70, "h"), "pixdim": (76, "8f"), "offset": (108, "f"), "slope": (112, "f"),
       "inter": (116, "f"), "qform": (252, "h"), "sform": (254, "h"), "quatern": (256, "6f"), "srow": (280, "12f")}
_V2 = {"dim": (16, "8q"), "type": (12, "h"), "pixdim": (104, "8d"), "offset": (168, "q"), "slope": (176, "d"),
       "inter": (184, "d"), "qform": (344, "i"), "sform": (348, "i"), "quatern": (352, "6d"), "srow": (400, "12d")}


@dataclass(frozen=True)
class Nifti:
    """What a header says.

    Args:
        shape: cells along i, j, k and, of several volumes, their number.
        dtype: of the values as stored.
        affine: (3, 4) from cell numbers i, j, k, 1 to millimetres to the right, to the front and up.
        offset: byte at which the values begin.
        slope: factor on the values, 0 = none.
        inter: what is added after that.
    """

    shape: tuple[int, ...]
    dtype: str
    affine: np.ndarray
    offset: int
    slope: float
    inter: float

    @property
    def nbytes(self) -> int:
        """Size of the values."""
        return int(np.prod([int(n) for n in self.shape])) * np.dtype(self.dtype).itemsize


def read_nifti_header(path: Path) -> Nifti:
    """The header of a ``.nii`` or ``.nii.gz`` file. Raises :class:`Unreadable`."""
    with _open(path) as file:
        raw = file.read(540)
    if len(raw) < 348:
        raise Unreadable(f"is truncated: {len(raw)} bytes are no NIfTI header")
    for order in "<>":
        size = struct.unpack_from(order + "i", raw)[0]
        if size == 348 and raw[344:347] == b"n+1":
            return _parse(raw, order, _V1, path)
        if size == 540 and raw[4:7] == b"n+2" and len(raw) == 540:
            return _parse(raw, order, _V2, path)
    if raw[344:347] == b"ni1":
        raise Unreadable("is one half of a pair of files (.hdr and .img); save it as .nii")
    raise Unreadable("is not a NIfTI file")


def read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Values (C, k, j, i) float32 of a file, scaled as its header says, and its affine (3, 4)."""
    head = read_nifti_header(path)
    with _open(path) as file:
        file.seek(head.offset)
        raw = file.read(head.nbytes)
    if len(raw) < head.nbytes:
        raise Unreadable(f"is truncated: it holds {len(raw):,} of the {head.nbytes:,} bytes its header claims")
    values = np.frombuffer(raw, head.dtype).reshape(head.shape[::-1])  # the first side runs fastest
    with np.errstate(over="ignore", invalid="ignore"):
        if head.slope and (head.slope, head.inter) != (1.0, 0.0):
            values = values * np.float64(head.slope) + head.inter
        out = np.ascontiguousarray(values, np.float32)
    return (out if out.ndim == 4 else out[None]), head.affine


def _parse(raw: bytes, order: str, fields: dict[str, tuple[int, str]], path: Path) -> Nifti:
    def get(name: str) -> tuple[Any, ...]:
        at, kind = fields[name]
        return struct.unpack_from(order + kind, raw, at)

    dim, code = get("dim"), get("type")[0]
    sides = dim[0]
    if not 1 <= sides <= 7 or any(n < 1 for n in dim[1:1 + sides]):
        raise Unreadable(f"claims the impossible sides {' x '.join(map(str, dim[1:]))}")
    shape = [int(n) for n in dim[1:1 + sides]]
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) < 3 or min(shape[:3]) < 2:
        raise Unreadable(f"is no volume: its sides are {' x '.join(map(str, shape))}")
    if len(shape) > 4:
        raise Unreadable(f"has {len(shape)} sides ({' x '.join(map(str, shape))}); a volume has 3, or 4 with channels")
    cells = int(np.prod(np.array(shape, object)))
    if cells > MAX_CELLS:
        raise Unreadable(f"claims {' x '.join(map(str, shape))} cells, more than the limit of {MAX_CELLS / 1e6:.0f} "
                         "million")
    if code not in TYPES:
        raise Unreadable(f"holds values of NIfTI type {code}; only real numbers up to 64 bits are read")
    offset, slope, inter = get("offset")[0], get("slope")[0], get("inter")[0]
    slope, inter = (float(v) if np.isfinite(v) else 0.0 for v in (slope, inter))
    if not np.isfinite(offset) or not 0 <= offset < 2**31:
        raise Unreadable(f"claims that its values begin at byte {offset}")
    head = Nifti(tuple(shape), np.dtype(order + TYPES[code]).str, _affine(get), int(offset) or len(raw), slope, inter)
    size = path.stat().st_size * (DEFLATE if path.suffix.lower() == ".gz" else 1)
    if size < head.offset + head.nbytes:
        raise Unreadable(f"is truncated: {size:,} bytes, and its header claims {head.offset + head.nbytes:,}")
    return head


def _affine(get: Any) -> np.ndarray:
    """The affine by the rule of the format: sform if there is one, else qform, else the spacings alone."""
    pixdim = np.array(get("pixdim"), np.float64)
    spacing = np.where(np.isfinite(pixdim[1:4]) & (pixdim[1:4] > 0), pixdim[1:4], 1.0)
    if get("sform")[0] > 0:
        affine = np.array(get("srow"), np.float64).reshape(3, 4)
    elif get("qform")[0] > 0:
        b, c, d, x, y, z = get("quatern")
        spacing = spacing * (1, 1, -1.0 if pixdim[0] < 0 else 1.0)
        affine = np.column_stack([_rotation(b, c, d) * spacing, (x, y, z)])
    else:
        affine = np.column_stack([np.diag(spacing), np.zeros(3)])
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:, :3])) < 1e-12:
        raise Unreadable("has an affine that places its cells nowhere (not invertible)")
    return affine


def _rotation(b: float, c: float, d: float) -> np.ndarray:
    """Rotation of the unit quaternion with the imaginary parts b, c, d: (3, 3)."""
    rest = 1.0 - (b * b + c * c + d * d)
    if rest < 1e-7:  # a half turn: rounding must not leave it longer than 1
        length = (b * b + c * c + d * d) ** 0.5
        a, b, c, d = 0.0, b / length, c / length, d / length
    else:
        a = rest**0.5
    return np.array([[a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
                     [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
                     [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c]])


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]
