"""NIfTI files written byte by byte, for tests."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np

CODES = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "f8": 64, "i1": 256, "u2": 512, "u4": 768}


def nifti(values: np.ndarray, affine: np.ndarray | None = None, *, version: int = 1, order: str = "<",
          slope: float = 0.0, inter: float = 0.0, quatern: tuple[float, ...] = (), qfac: float = 1.0,
          spacing: tuple[float, ...] = (1.0, 1.0, 1.0), dim: tuple[int, ...] = (), code: int = 0) -> bytes:
    """Values (i, j, k[, c]) as a file; ``affine`` (3, 4) is the sform, ``quatern`` (b, c, d, x, y, z) the qform."""
    kind = values.dtype.newbyteorder(order)
    sides = dim or (values.ndim, *values.shape, *[1] * (7 - values.ndim))
    pixdim = (qfac, *spacing, 1.0, 1.0, 1.0, 1.0)
    srow = (np.eye(3, 4) if affine is None else affine).ravel()
    quad = quatern or (0.0,) * 6
    code, bits = code or CODES[kind.str[1:]], 8 * kind.itemsize
    forms = (int(bool(quatern)), int(affine is not None))
    if version == 1:
        head = bytearray(352)
        struct.pack_into(order + "i", head, 0, 348)
        struct.pack_into(order + "8h", head, 40, *sides)
        struct.pack_into(order + "hh", head, 70, code, bits)
        struct.pack_into(order + "8f", head, 76, *pixdim)
        struct.pack_into(order + "3f", head, 108, 352, slope, inter)
        struct.pack_into(order + "2h6f12f", head, 252, *forms, *quad, *srow)
        head[344:348] = b"n+1\0"
    else:
        head = bytearray(544)
        struct.pack_into(order + "i", head, 0, 540)
        head[4:12] = b"n+2\0\r\n\x1a\n"
        struct.pack_into(order + "hh", head, 12, code, bits)
        struct.pack_into(order + "8q", head, 16, *sides)
        struct.pack_into(order + "8d", head, 104, *pixdim)
        struct.pack_into(order + "q2d", head, 168, 544, slope, inter)
        struct.pack_into(order + "2i6d12d", head, 344, *forms, *quad, *srow)
    return bytes(head) + np.asfortranarray(values).astype(kind).tobytes(order="F")


def write(path: Path, values: np.ndarray, affine: np.ndarray | None = None, **options: object) -> Path:
    """Write such a file, compressed where its name says so."""
    raw = nifti(values, affine, **options)  # type: ignore[arg-type]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw, 1) if path.name.endswith(".gz") else raw)
    return path
