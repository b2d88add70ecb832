"""The compiled path of image views: the operations of ``crop.py`` and ``colour.py`` in one pass over each sample.

``_kernel.cpp`` is compiled when the package is installed and a C++ compiler is there; it needs nothing of torch or
Python. Where it is missing, or switched off by the environment variable ``OSTEON_KERNEL=0``, torch operations do the
same. What it computes for a sample depends neither on the rest of the batch, nor on the number of threads
(``torch.get_num_threads()``), nor on the instruction set.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from osteon.views.colour import Jitter

SOURCE = Path(__file__).with_name("_kernel.cpp")
LIBRARY = Path(__file__).with_name("_kernel.so")
#: Instruction sets, by the number the library gives them.
SETS = ("plain", "AVX2", "AVX512")
#: Stored values it reads as they are; others are made float32 first.
_DTYPES = {torch.uint8: 0, torch.uint16: 1, torch.float32: 2}


class _Job(ctypes.Structure):
    """What ``Job`` in ``_kernel.cpp`` says, in the same order."""

    _fields_ = [*((name, ctypes.c_void_p) for name in (
        "images", "out", "edge", "flip", "jitter", "factor", "order", "grey", "sigma", "solarise", "mean", "std")),
        ("scale", ctypes.c_double),
        *((name, ctypes.c_int64) for name in ("batch", "channels", "height", "width", "out_height", "out_width")),
        *((name, ctypes.c_int32) for name in ("dtype", "cubic", "clip", "reach", "threads", "isa"))]


@functools.cache
def _load(path: Path) -> tuple[ctypes.CDLL | None, str]:
    """The library, or why there is none."""
    if not path.exists():
        return None, "it was not built; install osteon where a C++ compiler (c++, g++ or clang++) is found"
    try:
        library = ctypes.CDLL(os.fspath(path))
        library.osteon_views_source.restype = ctypes.c_uint32
        library.osteon_views_run.argtypes = [ctypes.POINTER(_Job)]
        built_from = library.osteon_views_source()
    except (OSError, AttributeError) as error:
        return None, f"it cannot be loaded: {error}"
    if SOURCE.exists() and built_from != zlib.crc32(SOURCE.read_bytes()):
        return None, "it was built from another version; install osteon again"
    return library, ""


def missing() -> str:
    """Why the kernel is not used; empty when it is."""
    if os.environ.get("OSTEON_KERNEL") == "0":
        return "switched off by OSTEON_KERNEL=0"
    return _load(LIBRARY)[1]


def available() -> bool:
    """Whether the kernel is there and not switched off."""
    return not missing()


def instruction_set() -> int:
    """The best instruction set of this machine, a number of :data:`SETS`."""
    library, why = _load(LIBRARY)
    if library is None:
        raise RuntimeError(f"The compiled kernel is missing: {why}.")
    return int(library.osteon_views_isa())


def note() -> str:
    """Which path image views take on a CPU, and why, in one line."""
    why = missing()
    return f"views by torch operations; compiled kernel: {why}" if why else (
        f"views by the compiled kernel ({SETS[instruction_set()]}) on CPUs; OSTEON_KERNEL=0 takes torch operations")


def takes(images: Tensor) -> bool:
    """Whether the kernel can work on this tensor: on the CPU, without gradient, and nobody counting operations."""
    return (images.device.type == "cpu" and not images.requires_grad and _get_current_dispatch_mode() is None
            and available())


def render(images: Tensor, edge: Tensor, size: tuple[int, int], flip: Tensor, *, scale: float = 1.0,
           mean: Sequence[float] = (), std: Sequence[float] = (), cubic: bool = False, clip: bool = False,
           jitter: Jitter | None = None, grey: Tensor | None = None, sigma: Tensor | None = None,
           sigma_max: float = 0.0, solarise: Tensor | None = None, threads: int | None = None,
           isa: int | None = None) -> Tensor:
    """Compute one view of a batch on the CPU.

    Args:
        images: (B, C, H, W) stored values of any dtype; uint8, uint16 and float32 are read in place.
        edge: (B, 4) x0, y0, x1, y1 of the boxes in pixels.
        size: (h, w) of the view.
        flip: (B,) bool, True mirrors left-right.
        scale: stored values are divided by it.
        mean: per channel, subtracted at the end; empty for 0.
        std: per channel, divided by at the end; empty for 1.
        cubic: bicubic (a = -1/2) in the place of bilinear.
        clip: cut what bicubic overshoots to [0, 1].
        jitter: parameters of the colour jitter.
        grey: (B,) bool, True removes colour.
        sigma: (B,) deviation of the blur in pixels, 0 for none.
        sigma_max: sets the largest radius of the blur, ``ceil(4 sigma_max)``.
        solarise: (B,) bool, True inverts what is at or above one half.
        threads: ``torch.get_num_threads()`` when None.
        isa: number in :data:`SETS`; the best one when None.

    Returns:
        (B, C, h, w) float32.
    """
    library, why = _load(LIBRARY)
    if library is None:
        raise RuntimeError(f"The compiled kernel is missing: {why}.")
    batch, channels, height, width = images.shape
    _check(images, edge, [flip, grey, sigma, solarise], jitter)
    if len(mean) not in (0, channels) or len(std) not in (0, channels):
        raise ValueError(f"statistics are needed of all {channels} channels")
    if images.dtype not in _DTYPES:
        images = images.to(torch.float32)
    held: list[Tensor] = []  # keeps what the pointers point to

    def point(x: Tensor | None, dtype: torch.dtype) -> int | None:
        if x is None:
            return None
        held.append(x.to(dtype).contiguous())
        return held[-1].data_ptr()

    out = torch.empty(batch, channels, *size)
    job = _Job(
        point(images, images.dtype), out.data_ptr(), point(edge, torch.float64), point(flip, torch.uint8),
        point(jitter.on if jitter else None, torch.uint8), point(jitter.factor if jitter else None, torch.float32),
        point(jitter.order if jitter else None, torch.int64), point(grey, torch.uint8), point(sigma, torch.float32),
        point(solarise, torch.uint8), point(torch.tensor(mean or [0.0] * channels), torch.float32),
        point(torch.tensor(std or [1.0] * channels), torch.float32), scale, batch, channels, height, width, *size,
        _DTYPES[images.dtype], cubic, clip, math.ceil(4 * sigma_max),
        torch.get_num_threads() if threads is None else threads, instruction_set() if isa is None else isa)
    status = library.osteon_views_run(ctypes.byref(job))
    if status == 1:
        raise ValueError(f"this machine has no instruction set {SETS[job.isa]}")
    if status:
        raise MemoryError("the views did not fit into memory")
    return out


def _check(images: Tensor, edge: Tensor, each: Sequence[Tensor | None], jitter: Jitter | None) -> None:
    """Refuse what would make the library read outside of what it is given."""
    batch, _, height, width = images.shape
    shapes = [tuple(x.shape) == (batch,) for x in each if x is not None] + [tuple(edge.shape) == (batch, 4)]
    if jitter is not None:
        shapes += [tuple(jitter.on.shape) == (batch,), tuple(jitter.factor.shape) == (batch, 4),
                   tuple(jitter.order.shape) == (batch, 4)]
    if not all(shapes):
        raise ValueError("boxes (B, 4) and one of every other parameter are needed for every image")
    sides = edge.new_tensor([width, height])
    if not bool(((edge[:, :2] > -1e-3) & (edge[:, 2:] < sides + 1e-3) & (edge[:, 2:] - edge[:, :2] > 1 - 1e-3)).all()):
        raise ValueError("boxes lie inside the images and hold a pixel at least")
    if jitter is not None and batch and not (0 <= int(jitter.order.min()) and int(jitter.order.max()) < 4):
        raise ValueError("the order of a jitter holds the numbers 0 to 3")
