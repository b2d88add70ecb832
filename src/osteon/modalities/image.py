"""Images: from bytes to arrays by stated rules, to one square size, and the exact statistics of the result.

Shape letters: H height, W width, C channels, S side of the square result, N images.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from osteon.modalities._base import Control, Payload, Unlike, Unreadable
from osteon.modalities._image_controls import image_statistics, raw_pixels
from osteon.parts.types import DataSpec

#: Pillow's own hard limit; an image that claims more is refused from its header, before anything is decoded.
MAX_PIXELS = 178_956_970

#: Files with these endings are taken for images; everything else in a folder is ignored and counted.
SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".bmp", ".dib", ".tif", ".tiff",
                      ".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif", ".tga", ".pcx"))

#: A JPEG is decoded at a reduced size (its own transform leaves the higher frequencies out) where so many times the
#: side asked for is left for the resampling: Pillow's rule for thumbnails.
GAP = 2

#: Bytes of the largest file that is read at once and not in the pieces its decoder asks for.
WHOLE = 16 * 1024 * 1024

#: How every kind of file becomes an array; printed in the notes of every dataset of files.
RULES = ("EXIF orientation is applied; palette, CMYK and YCbCr become RGB; alpha is composited over white; 1-bit "
         "becomes 8-bit grey; 16-bit grey stays uint16 (16-bit colour is read as 8-bit); float stays float32; of an "
         "animation the first frame is taken; a JPEG is decoded at 1/2, 1/4 or 1/8 of its sides where at least "
         f"{GAP} times the side asked for is left.")

#: Formats that are pure decoders. Others (EPS, PDF, WMF) would start external programs.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF", "MPO", "TGA", "PCX")
_UPRIGHT = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_90}
_GREY = ("1", "L", "LA", "La")
#: A pipe is opened without waiting for somebody to write to it.
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_DEPTHS = {"I": "uint16", "F": "float32"}


#: What several samples are called.
SAMPLES = "images"


def _apart(reader: Callable[[np.ndarray], np.ndarray]) -> Control:
    """A control that learns nothing from the training part."""
    def both(train: np.ndarray, test: np.ndarray, spec: DataSpec) -> tuple[np.ndarray, np.ndarray]:
        first, second = (np.asarray(reader(part.astype(np.float32) / spec.scale), np.float32) for part in (train, test))
        return first, second

    return both


#: Features that cost no training, shown beside every result.
CONTROLS: dict[str, Control] = {"raw pixels": _apart(raw_pixels), "image statistics": _apart(image_statistics)}


def backbone_options(spec: DataSpec) -> dict[str, Any]:
    """A backbone learns what it needs to know of images from their channels and size."""
    return {}


def picture(values: np.ndarray, spec: DataSpec, like: np.ndarray | None = None) -> np.ndarray:
    """(B, C, H, W) values in [0, 1] -> (B, H, W, 3) uint8; float data are stretched to the 1st to 99th percentile.

    One channel is shown grey, three as colours, any other number by its first three (or first) channels.

    Args:
        values: images divided by their scale.
        spec: of the data.
        like: images whose percentiles count; ``values`` themselves when None.
    """
    around = values if like is None else like
    low, high = (0.0, 1.0) if spec.scale != 1.0 else (float(v) for v in np.percentile(around, [1, 99]))
    a = np.asarray(values, dtype=np.float32).transpose(0, 2, 3, 1)
    a = a[..., :3] if a.shape[-1] >= 3 else np.repeat(a[..., :1], 3, axis=-1)
    return (np.clip((a - low) / max(high - low, 1e-12), 0, 1) * 255).round().astype(np.uint8)


@dataclass(frozen=True)
class Header:
    """What is known of an image before it is decoded: sides in pixels, channels and value type of the result."""

    height: int
    width: int
    channels: int
    dtype: str


@contextlib.contextmanager
def strict_pillow() -> Iterator[None]:
    """Truncated files are errors and metadata warnings are silent, whatever the surrounding program has set.

    Warning filters belong to the process, so this goes around a thread pool, not inside its workers.
    """
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before


def read_header(payload: Payload, *, max_pixels: int = MAX_PIXELS) -> Header:
    """Sides, channels and value type of an image, without decoding it. Raises :class:`Unreadable`."""
    if isinstance(payload, np.ndarray):
        height, width, channels = (*payload.shape, 1)[:3]
        return Header(height, width, channels, _array_dtype(payload.dtype))
    with _reasons(), _open(payload, max_pixels) as picture:
        return _header(picture)


def _header(picture: Image.Image) -> Header:
    mode = picture.mode
    dtype = "uint16" if mode.startswith("I;16") else _DEPTHS.get(mode, "uint8")
    return Header(picture.height, picture.width, 1 if dtype != "uint8" or mode in _GREY else 3, dtype)


def decode(payload: Payload, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Pixels of one image, (H, W, C) uint8, uint16 or float32, by :data:`RULES`. Raises :class:`Unreadable`."""
    if isinstance(payload, np.ndarray):
        image = payload.astype(_array_dtype(payload.dtype), copy=False)
        image = image[:, :, None] if image.ndim == 2 else image
    else:
        with _reasons(), _open(payload, max_pixels) as picture:
            picture.load()  # before the orientation is read: TIFF turns itself upright while loading
            image = _pixels(_upright(picture))
    return _finite(image)


def decode_square(payload: Payload, size: int, *, max_pixels: int = MAX_PIXELS,
                  like: Header | None = None) -> np.ndarray:
    """Central square of one image resized to ``size``, (C, S, S), by :data:`RULES`. Raises :class:`Unreadable`.

    ``square(decode(payload), size)`` in fewer copies, but for a JPEG that is decoded at a reduced size. An image whose
    header is not ``like``, where that is given, raises :class:`osteon.modalities.Unlike` before it is decoded.
    """
    if isinstance(payload, np.ndarray):
        if like is not None and read_header(payload) != like:
            raise Unlike
        return square(decode(payload), size)
    with _reasons(), _open(payload, max_pixels, whole=like is not None) as picture:
        if like is not None and _header(picture) != like:
            raise Unlike
        if picture.format == "JPEG" and min(picture.size) > size:
            picture.draft(None, (GAP * size, GAP * size))  # type: ignore[arg-type]
        picture.load()
        upright = _upright(picture)
        if upright.mode not in ("L", "RGB") or upright.has_transparency_data:
            return square(_finite(_pixels(upright)), size)
        side, small = min(upright.size), upright
        if side != max(upright.size):
            left, top = (upright.width - side) // 2, (upright.height - side) // 2
            small = upright.crop((left, top, left + side, top + side))
        if side != size:
            small = small.resize((size, size), Image.Resampling.BICUBIC)
        values = np.frombuffer(small.tobytes(), np.uint8).reshape(size, size, -1)
        return np.ascontiguousarray(values.transpose(2, 0, 1))


def _finite(image: np.ndarray) -> np.ndarray:
    if image.dtype == np.float32 and not np.isfinite(image).all():
        raise Unreadable("contains NaN or infinity")
    return image


def square(image: np.ndarray, size: int) -> np.ndarray:
    """Central square of an image, resized (bicubic, antialiased) to ``size``: (H, W, C) -> (C, S, S).

    Cropping first gives the same picture as resizing the shorter side and cropping then, but a very long and thin
    image cannot blow up memory.
    """
    height, width, channels = image.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    crop = image[top:top + side, left:left + side]
    if side != size:
        if crop.dtype == np.uint8 and channels in (1, 3):
            picture = Image.fromarray(np.ascontiguousarray(crop[:, :, 0] if channels == 1 else crop))
            crop = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC)).reshape(size, size, channels)
        else:
            planes = [np.asarray(Image.fromarray(np.ascontiguousarray(crop[:, :, c], dtype=np.float32)).resize(
                (size, size), Image.Resampling.BICUBIC)) for c in range(channels)]
            crop = _cast(np.stack(planes, axis=-1), image.dtype)
    return np.ascontiguousarray(crop.transpose(2, 0, 1))


def to_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Grey repeated to RGB, or RGB weighed to grey (ITU-R 601): (C, H, W) -> (channels, H, W)."""
    if image.shape[0] == channels:
        return image
    if image.shape[0] == 1:
        return np.repeat(image, channels, axis=0)
    if image.shape[0] == 3 and channels == 1:
        weights = np.array([0.299, 0.587, 0.114])
        return _cast(np.einsum("chw,c->hw", image.astype(np.float64), weights), image.dtype)[None]
    raise Unreadable(f"has {image.shape[0]} channels where {channels} are wanted")


def to_depth(image: np.ndarray, dtype: str) -> np.ndarray:
    """The same picture in another integer depth: 8 to 16 bits by x257, 16 to 8 bits by /257, rounded."""
    if image.dtype == dtype:
        return image
    name = image.dtype.name
    if (name, dtype) == ("uint8", "uint16"):
        return image.astype(np.uint16) * np.uint16(257)
    if (name, dtype) == ("uint16", "uint8"):
        return ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    raise Unreadable(f"has {name} values among {dtype} ones: what their range means is unknown")


@functools.lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    Image.init()  # a format that this build of Pillow lacks would make Image.open raise KeyError
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _open(payload: bytes | Path, max_pixels: int, *, whole: bool = False) -> Image.Image:
    """A picture whose header was read; ``whole``: all of a file that is not large is read at once."""
    if isinstance(payload, Path):
        payload = _contents(payload) if whole else _sound(payload, payload.stat())
    if isinstance(payload, bytes):
        if not payload:
            raise Unreadable("is empty (0 bytes)")
        picture = Image.open(io.BytesIO(payload), formats=_formats())
    else:
        picture = Image.open(payload, formats=_formats())
    if picture.width * picture.height > max_pixels:
        size = f"{picture.width} x {picture.height}"
        picture.close()
        raise Unreadable(f"claims {size} pixels, more than the limit of {max_pixels / 1e6:.0f} million "
                         "(a decompression bomb?)")
    return picture


def _sound(path: Path, status: os.stat_result) -> Path:
    """The path of a file that can be opened and read."""
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise Unreadable("is not a regular file")
    if status.st_size == 0:
        raise Unreadable("is empty (0 bytes)")
    return path


def _contents(path: Path) -> bytes | Path:
    """All of a file, by the system's own calls: for little files half of what :meth:`Path.read_bytes` takes. The path
    itself where it is large."""
    handle = os.open(path, _READ)
    try:
        status = os.fstat(handle)
        if _sound(path, status) and status.st_size > WHOLE:
            return path
        parts = [os.read(handle, status.st_size)]
        while parts[-1] and sum(map(len, parts)) < status.st_size:
            parts.append(os.read(handle, status.st_size))
        return parts[0] if len(parts) == 1 else b"".join(parts)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _reasons() -> Iterator[None]:
    """Turn whatever a decoder raises on a hostile file into one sentence."""
    try:
        yield
    except Unreadable:
        raise
    except FileNotFoundError as error:
        raise Unreadable("file not found") from error
    except PermissionError as error:
        raise Unreadable("no permission to read") from error
    except Image.DecompressionBombError as error:
        raise Unreadable(f"claims more than {MAX_PIXELS / 1e6:.0f} million pixels (a decompression bomb?)") from error
    except Image.UnidentifiedImageError as error:
        raise Unreadable("is not an image of a known format") from error
    except Exception as error:  # decoders raise about anything on damaged input
        raise Unreadable(f"cannot be decoded: {str(error).strip() or type(error).__name__}") from error


def _upright(picture: Image.Image) -> Image.Image:
    try:
        turn = _UPRIGHT.get(picture.getexif().get(0x0112, 1))
    except Exception:  # damaged metadata is no reason to lose the picture
        turn = None
    return picture if turn is None else picture.transpose(turn)


def _pixels(picture: Image.Image) -> np.ndarray:
    mode = picture.mode
    if mode.startswith("I;16"):
        return np.asarray(picture).astype(np.uint16)[:, :, None]
    if mode == "I":
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 65535:
            raise Unreadable("has 32-bit integer values outside 0..65535")
        return values.astype(np.uint16)[:, :, None]
    if mode == "F":
        return np.asarray(picture, dtype=np.float32)[:, :, None]
    if picture.has_transparency_data:
        canvas = Image.new("RGBA", picture.size, "white")
        canvas.alpha_composite(picture.convert("RGBA"))
        picture = canvas.convert("RGB")
    picture = picture.convert("L" if mode in _GREY else "RGB")
    values = np.asarray(picture)
    return values[:, :, None] if values.ndim == 2 else values


def _array_dtype(dtype: np.dtype) -> str:
    if dtype.name in ("uint8", "uint16"):
        return dtype.name
    if dtype.kind == "f":
        return "float32"
    raise Unreadable(f"has values of type {dtype.name}; only uint8, uint16 and float are defined")


def _cast(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Back to the stored type: integers rounded and clipped, because bicubic weights overshoot."""
    if dtype.kind == "u":
        return np.clip(np.rint(values), 0, np.iinfo(dtype).max).astype(dtype)
    return values.astype(dtype)
