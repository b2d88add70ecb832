"""Clips: from files, folders of frames and arrays to a few frames of one size, and what costs no training to know.

Shape letters: B batch, N samples, C channels, T frames, H height, W width.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from osteon.core.errors import MissingExtra
from osteon.modalities import image as pictures
from osteon.modalities._base import Control, Payload, Unreadable
from osteon.modalities._files import apart, averaged, checked, reasons
from osteon.parts.types import DataSpec

#: Files with these endings are taken for clips, and those that Pillow reads when clips were asked for.
SUFFIXES = frozenset((".mp4", ".m4v", ".mov", ".webm", ".avi", ".mkv", ".mpg", ".mpeg", ".wmv", ".ogv"))
ANIMATIONS = frozenset((".gif", ".apng", ".webp"))
_FORMATS = ("GIF", "PNG", "WEBP")
#: Share of the frames wanted that a file may lack at its end; the last one is repeated.
LACKING = 0.2
#: What several samples are called.
SAMPLES = "clips"
#: How a clip becomes an array; printed.
RULES = ("every n-th frame around the middle is taken, the last one repeated where a clip ends too early; of each "
         "frame the central square is resized (bicubic, antialiased); 8 bits")
#: Most frames of a clip: a header that claims more is refused.
MAX_FRAMES = 1_000_000
#: Frames in a picture at most.
SHOWN = 8


@dataclass(frozen=True)
class Header:
    """What is known of a clip before it is decoded: frames, sides in pixels, channels (1 or 3)."""

    frames: int
    height: int
    width: int
    channels: int


@dataclass(frozen=True)
class Shot:
    """What is taken of every clip: frames, from one to the next, side in pixels, channels."""

    frames: int
    stride: int
    size: int
    channels: int


def read_header(payload: Payload) -> Header:
    """Frames, sides and channels of a clip without decoding it. Raises :class:`Unreadable`."""
    if isinstance(payload, np.ndarray):
        header = Header(*_array_shape(payload))
    else:
        with reasons():
            path = checked(payload)
            if path.is_dir():
                files = frame_files(path)
                first = pictures.read_header(files[0]) if files else pictures.Header(0, 0, 0, "")
                header = Header(len(files), first.height, first.width, first.channels)
            elif path.suffix.lower() in ANIMATIONS:
                header = _animation_header(path)
            else:
                header = _film_header(path)
    if header.frames < 2:
        raise Unreadable(f"holds {header.frames or 'no'} frame{'s' * (header.frames != 1)}; a clip has 2 or more")
    if header.frames > MAX_FRAMES:
        raise Unreadable(f"claims {header.frames:,} frames, more than the limit of {MAX_FRAMES:,}")
    if header.height * header.width > pictures.MAX_PIXELS:
        raise Unreadable(f"claims frames of {header.width} x {header.height} pixels, more than the limit of "
                         f"{pictures.MAX_PIXELS / 1e6:.0f} million")
    return header


def decode(payload: Payload, shot: Shot) -> np.ndarray:
    """The chosen frames of a clip, (C, T, S, S) uint8. Raises :class:`Unreadable`."""
    if isinstance(payload, np.ndarray):
        count = _array_shape(payload)[0]
        wanted = chosen_frames(count, shot.frames, shot.stride)
        frames = [_one(payload[i] if payload.ndim == 4 else payload[i, :, :, None], shot) for i in wanted]
    else:
        with reasons():
            path = checked(payload)
            if path.is_dir():
                files = frame_files(path)
                wanted = chosen_frames(len(files), shot.frames, shot.stride)
                frames = _fitted((pictures.decode(files[i]) for i in wanted), shot)
            elif path.suffix.lower() in ANIMATIONS:
                wanted = chosen_frames(_animation_header(path).frames, shot.frames, shot.stride)
                frames = _fitted(_animation_frames(path, wanted), shot)
            else:
                wanted = chosen_frames(_film_header(path).frames, shot.frames, shot.stride)
                frames = _fitted(_film_frames(path, wanted), shot)
    if len(frames) < max(1, (1 - LACKING) * shot.frames):
        raise Unreadable(f"is truncated: {len(frames)} of {shot.frames} frames can be decoded")
    frames += [frames[-1]] * (shot.frames - len(frames))  # a header may claim more than there is
    return np.ascontiguousarray(np.stack(frames, 1))


def chosen_frames(have: int, frames: int, stride: int) -> list[int]:
    """Numbers of the frames taken: every ``stride``-th around the middle, the last one again where they run out."""
    start = max(0, (have - ((frames - 1) * stride + 1)) // 2)
    return [min(start + i * stride, have - 1) for i in range(frames)]


def frame_files(folder: Path) -> list[Path]:
    """The pictures in a folder in natural order: ``frame2`` before ``frame10``."""
    files = [f for f in folder.iterdir() if f.suffix.lower() in pictures.SUFFIXES and not f.name.startswith(".")]
    return sorted(files, key=lambda f: [(int(p), "") if p.isdecimal() else (-1, p) for p in re.split(r"(\d+)", f.name)])


def _fitted(frames: Iterator[np.ndarray], shot: Shot) -> list[np.ndarray]:
    """Frames (H, W, C) of one size as (C, S, S) each."""
    out, sides = list[np.ndarray](), set[tuple[int, int]]()
    for frame in frames:
        sides.add((frame.shape[0], frame.shape[1]))
        if len(sides) > 1:
            raise Unreadable(f"has frames of different sizes: {', '.join(f'{w} x {h}' for h, w in sorted(sides))}")
        out.append(_one(frame, shot))
    return out


def _one(frame: np.ndarray, shot: Shot) -> np.ndarray:
    if frame.dtype.kind == "f":
        if not np.isfinite(frame).all():
            raise Unreadable("contains NaN or infinity")
        if frame.min() < -1e-6 or frame.max() > 1 + 1e-6:
            raise Unreadable(f"has values from {frame.min():g} to {frame.max():g}; frames of floats lie in [0, 1]")
        frame = np.rint(frame * 255).astype(np.uint8)
    frame = pictures.to_depth(frame, "uint8")
    return pictures.to_channels(pictures.square(frame, shot.size), shot.channels)


def _array_shape(values: np.ndarray) -> tuple[int, int, int, int]:
    if values.ndim not in (3, 4) or min(values.shape, default=0) < 1 or (values.ndim == 4 and values.shape[3] not in
                                                                         (1, 3)):
        raise Unreadable(f"is an array of shape {values.shape}, not (T, H, W) or (T, H, W, C) with 1 or 3 channels")
    if values.dtype.name not in ("uint8", "uint16") and values.dtype.kind != "f":
        raise Unreadable(f"has values of type {values.dtype.name}; only uint8, uint16 and float are defined")
    frames, height, width, channels = (*values.shape, 1)[:4]
    return frames, height, width, channels


def _animation_header(path: Path) -> Header:
    with Image.open(path, formats=_FORMATS) as film:
        return Header(getattr(film, "n_frames", 1), film.height, film.width, 1 if film.mode in ("1", "L") else 3)


def _animation_frames(path: Path, wanted: Sequence[int]) -> Iterator[np.ndarray]:
    with Image.open(path, formats=_FORMATS) as film:
        grey = film.mode in ("1", "L")
        yield from _pick((np.asarray(frame.convert("L" if grey else "RGB")) for frame in ImageSequence.Iterator(film)),
                         wanted)


def _film_header(path: Path) -> Header:
    av = _library()
    with av.open(str(path)) as film:
        if not film.streams.video:
            raise Unreadable("has no picture, only sound or text")
        stream = film.streams.video[0]
        grey = str(getattr(stream, "pix_fmt", None) or "").startswith("gray")
        height, width = int(stream.codec_context.height), int(stream.codec_context.width)
        frames = int(stream.frames) or sum(packet.size > 0 for packet in film.demux(stream))  # some do not say
    return Header(frames, height, width, 1 if grey else 3)


def _film_frames(path: Path, wanted: Sequence[int]) -> Iterator[np.ndarray]:
    av = _library()
    with av.open(str(path)) as film:
        yield from _pick((frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)), wanted)


def _pick(frames: Iterator[np.ndarray], wanted: Sequence[int]) -> Iterator[np.ndarray]:
    """The frames numbered ``wanted`` (ascending, with repeats) as (H, W, C); fewer where there are no more."""
    last = wanted[-1]
    for number, frame in enumerate(frames):
        for _ in range(sum(w == number for w in wanted)):
            yield frame if frame.ndim == 3 else frame[:, :, None]
        if number >= last:
            return


def _library() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingExtra("av", "video", why="Reading films (mp4, webm, avi, mkv; folders of frames, GIFs and arrays "
                           "need nothing)") from error
    return av


def mean_frame(samples: np.ndarray) -> np.ndarray:
    """Mean over time, averaged to at most 16 x 16: (N, C, T, H, W) -> (N, C * 256)."""
    return averaged(samples.mean(2, dtype=np.float32) / 255, (16, 16))


def last_frame(samples: np.ndarray) -> np.ndarray:
    """The last frame averaged to at most 16 x 16: (N, C, T, H, W) -> (N, C * 256)."""
    return averaged(samples[:, :, -1].astype(np.float32) / 255, (16, 16))


def change_statistics(samples: np.ndarray) -> np.ndarray:
    """What changes from frame to frame: (N, C, T, H, W) -> (N, C * (128 + 2 (T - 1))).

    Mean and deviation over time of the absolute difference in 8 x 8 places, and its mean and deviation over the frame
    at every time.
    """
    out = []
    for sample in samples:
        change = np.abs(np.diff(sample.astype(np.float32) / 255, axis=1))  # (C, T - 1, H, W)
        if change.shape[1] == 0:
            change = np.zeros_like(change, shape=(change.shape[0], 1, *change.shape[2:]))
        place = [averaged(f(change, axis=1), (8, 8)).ravel() for f in (np.mean, np.std)]
        out.append(np.concatenate([*place, *(f(change, axis=(2, 3)).ravel() for f in (np.mean, np.std))]))
    return np.stack(out)


def raw_pixels(samples: np.ndarray) -> np.ndarray:
    """Pixels averaged to at most 4 times, 16 rows and 16 columns: (N, C, T, H, W) -> (N, C * 1024)."""
    return averaged(samples, (4, 16, 16)) / 255


#: Features that cost no training, shown beside every result.
CONTROLS: dict[str, Control] = {"mean frame": apart(mean_frame), "last frame": apart(last_frame),
                                "change statistics": apart(change_statistics), "raw pixels": apart(raw_pixels)}


def backbone_options(spec: DataSpec) -> dict[str, Any]:
    """A backbone learns what it needs to know of clips from their channels and sides."""
    return {}


def picture(values: np.ndarray, spec: DataSpec, like: np.ndarray | None = None) -> np.ndarray:
    """A strip of at most 8 frames, first to last: (B, C, T, H, W) in [0, 1] -> (B, H, w, 3) uint8."""
    count = values.shape[2]
    shown = np.unique(np.linspace(0, count - 1, min(SHOWN, count)).round().astype(int))
    strip = np.concatenate([np.asarray(values[:, :, t], np.float32) for t in shown], -1).transpose(0, 2, 3, 1)
    strip = strip[..., :3] if strip.shape[-1] >= 3 else np.repeat(strip[..., :1], 3, -1)
    return (np.clip(strip, 0, 1) * 255).round().astype(np.uint8)


def animation(frames: np.ndarray) -> bytes:
    """Frames (T, H, W) or (T, H, W, 3) uint8 as an animated GIF."""
    memory = io.BytesIO()
    first, *rest = (Image.fromarray(frame) for frame in frames)
    first.save(memory, format="GIF", save_all=True, append_images=rest, duration=100, loop=0)
    return memory.getvalue()
