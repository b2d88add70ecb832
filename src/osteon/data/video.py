"""Reading clips: films, folders of frames, animations and arrays; frames, stride and size by stated rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from osteon.core.errors import DataError
from osteon.data._moving_digits import list_moving_digits
from osteon.data._solids import list_archive, numbers
from osteon.data.codec import Codec, Plan
from osteon.data.folders import list_folder, list_series, walk
from osteon.data.listing import Listing
from osteon.data.policy import choose_size
from osteon.data.tables import list_csv, path_suffixes
from osteon.modalities import Payload
from osteon.modalities._measure import measure, scale_of
from osteon.modalities.image import SUFFIXES as IMAGES
from osteon.modalities.video import ANIMATIONS, RULES, SAMPLES, SUFFIXES, Header, Shot, decode, read_header
from osteon.parts.types import DataSpec

#: Frames of a clip, largest stride and largest side that are taken without being asked.
USUAL_FRAMES, USUAL_STRIDE, USUAL_SIZE = 16, 4, 112
#: Frames and sides are multiples of this, so that patches tile them.
MULTIPLE = 4
#: Options of ``--set``: frames of a clip, from one taken frame to the next (0 leaves it to the rule), side in pixels.
OPTIONS: dict[str, Any] = {"frames": 0, "stride": 0}


def list_path(path: Path, source: str, *, asked: bool, options: Mapping[str, Any] | None = None,
              like: DataSpec | None = None) -> Listing | None:
    """The clips at a path, or None when it holds none (an error when clips were asked for).

    A folder counts as clips when it holds more films than images, a manifest when its first file is a film. Folders of
    frames, animations and ``.npy`` could be images as well: they are clips when clips were asked for.
    """
    found: Listing | None = None
    if path.is_dir():
        manifest = path / "metadata.csv"
        films = len(walk(path, SUFFIXES).files)
        if manifest.is_file() and path_suffixes(manifest) & (SUFFIXES | (ANIMATIONS if asked else frozenset())):
            found = list_csv(manifest, source)
        elif films and (asked or films > len(walk(path, IMAGES).files)):
            found = list_folder(path, source, suffixes=SUFFIXES, samples=SAMPLES)
        elif asked:
            found = (list_series(path, source, suffixes=IMAGES - ANIMATIONS, samples=SAMPLES) or
                     list_folder(path, source, suffixes=ANIMATIONS, samples=SAMPLES))
    elif path.suffix.lower() in (".csv", ".tsv") and (asked or path_suffixes(path) & SUFFIXES):
        found = list_csv(path, source)
    else:
        found = list_archive(path, source, modality="video", shapes="(N, T, H, W) or (N, T, H, W, C)", asked=asked)
    if found is None and asked:
        raise DataError("The source holds no clip.", where=source, fix="Clips are a folder of films (mp4, webm, avi, "
                        "mkv with pip install 'osteon[video]'), of animated GIFs or of folders of frames, with a "
                        "subfolder a class, a csv manifest with columns path, label, group, split, or arrays "
                        "(.npy, .npz) of shape (N, T, H, W) or (N, T, H, W, C).")
    return None if found is None else replace(found, modality="video")


def _plan(headers: dict[int, Header], *, size: int | None, like: DataSpec | None, source: str,
          options: Mapping[str, Any]) -> Plan:
    """Frames, stride, side and channels: as in the data the model was trained on, as asked, or by rule."""
    kept = list(headers.values())
    if like is not None:
        stride = int(like.traits["stride"])
        note = (f"clips: {like.extent[0]} frames, one of {stride}, {like.extent[1]} x {like.extent[2]} pixels (rule: "
                "as in the data the model was trained on)")
        return Plan((like.channels, *like.extent), "uint8", dict(like.traits), notes=[note])
    notes = list[str]()
    lengths = np.array([h.frames for h in kept])
    frames, stride = _times(lengths, options, notes)
    side = _side(np.array([(h.height, h.width) for h in kept]), size, notes)
    channels = 3 if any(h.channels == 3 for h in kept) else 1
    notes.append(f"channels: {channels} (rule: 3 if any clip has colours)")
    return Plan((channels, frames, side, side), "uint8", {"stride": stride}, notes=notes)


def _times(lengths: np.ndarray, options: Mapping[str, Any], notes: list[str]) -> tuple[int, int]:
    """How many frames, and from one to the next."""
    fix = "Give a whole number of frames; 0 leaves it to the rule."
    asked, step = (numbers(options[name], name, (1,), fix, whole=True) for name in ("frames", "stride"))
    middle = int(np.median(lengths))
    if asked:
        frames, rule = int(asked[0]), "as asked"
    else:
        frames = min(USUAL_FRAMES, max(1, middle // MULTIPLE) * MULTIPLE)
        rule = f"rule: {USUAL_FRAMES}, or the median length down to a multiple of {MULTIPLE} if less"
    stride = int(step[0]) if step else max(1, min(USUAL_STRIDE, middle // frames))
    how = "as asked" if step else f"rule: the median clip divided by the frames, 1 to {USUAL_STRIDE}"
    reach = (frames - 1) * stride + 1
    notes.append(f"frames: {frames} ({rule}), one of {stride} ({how}); clips have {lengths.min():,} to "
                 f"{lengths.max():,} frames, {(lengths > reach).mean():.0%} are cut to their middle, "
                 f"{(lengths < reach).mean():.0%} repeat their last frame")
    return frames, stride


def _side(sides: np.ndarray, size: int | None, notes: list[str]) -> int:
    """Side of the square frames."""
    least, most = sides.min(0), sides.max(0)
    if size is not None:
        side, note = choose_size(sides, size)
        notes.append(note.replace("images", "clips"))
        return side
    if (least == most).all() and most[0] == most[1] and most[0] <= USUAL_SIZE:
        notes.append(f"size: all clips are {most[1]} x {most[0]}; kept (rule: one square size up to {USUAL_SIZE})")
        return int(most[0])
    middle = int(np.median(sides.min(1)))
    side = min(USUAL_SIZE, max(8, middle // 8 * 8))
    notes.append(f"size: frames have sides of {sides.min()} to {sides.max()} pixels; the central square of each is "
                 f"resized to {side} x {side} (rule: {USUAL_SIZE}, or the median shorter side {middle} down to a "
                 "multiple of 8 if less; size=... sets another)")
    return side


def _convert(payload: Payload, plan: Plan) -> np.ndarray:
    channels, frames, side, _ = plan.shape
    return decode(payload, Shot(frames, int(plan.traits["stride"]), side, channels))


def _measure(samples: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    scale = scale_of(samples.dtype)
    return (*measure(samples, scale), scale)


#: Generated sources by name: name -> ``list(split)``.
NAMED = {"moving_digits": list_moving_digits}
CODEC = Codec(read_header, _plan, _convert, _measure, OPTIONS, RULES)
