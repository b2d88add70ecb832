"""One size, one number of channels, one value type for all images of a source: the rules and the notes on them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from osteon.core.errors import DataError, UsageError
from osteon.modalities.image import Header
from osteon.parts.types import DataSpec

#: Largest side that uniform square images keep without being asked.
KEEP = 256
#: Side given to larger or uneven photographs.
USUAL = 224


@dataclass
class Plan:
    """What every image becomes: side in pixels, channels, value type; and which images cannot."""

    size: int
    channels: int
    dtype: str
    rejected: dict[int, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one stored image."""
        return self.channels, self.size, self.size


def make_plan(headers: dict[int, Header], *, size: int | None, like: DataSpec | None, source: str) -> Plan:
    """Choose size, channels and depth from the headers of all readable images (number -> header)."""
    depth, depth_note, rejected = _depth(headers, like)
    kept = {i: header for i, header in headers.items() if i not in rejected} if rejected else headers
    if not kept:
        raise DataError(f"No image has values of type {depth}.", where=source, fix="Convert the images.")
    wanted = size if size is not None or like is None else like.size
    sides = np.fromiter((side for h in kept.values() for side in (h.height, h.width)), np.int64, 2 * len(kept))
    side, size_note = choose_size(sides.reshape(-1, 2), wanted)
    channels, channel_note = _channels(kept, like, source)
    for i, header in kept.items():
        if header.channels not in (1, 3, channels):
            rejected[i] = f"has {header.channels} channels where {channels} are wanted"
    return Plan(side, channels, depth, rejected, [size_note, channel_note, depth_note])


def choose_size(sides: np.ndarray, size: int | None) -> tuple[int, str]:
    """Side of the square result from (N, 2) heights and widths, and the note that says by which rule."""
    if size is not None and size < 1:
        raise UsageError(f"A size of {size} pixels is not possible.", where="size", fix="Choose a positive number.")
    least, most = sides.min(0), sides.max(0)
    uniform = bool((least == most).all())
    found = f"all {len(sides):,} images are {most[1]} x {most[0]}" if uniform else \
        f"sizes differ (sides of {sides.min()} to {sides.max()} pixels)"
    if size is not None:
        same = uniform and tuple(most) == (size, size)
        how = "kept" if same else f"the central square of each is resized to {size} x {size}"
        return size, f"size: {found}; {how} (rule: size={size} was given)"
    if uniform and most[0] == most[1] and most[0] <= KEEP:
        return int(most[0]), f"size: {found}; kept (rule: one square size up to {KEEP})"
    middle = int(np.median(sides.min(1)))
    side = USUAL if middle >= USUAL else max(8, middle // 8 * 8)
    return side, (f"size: {found}; the central square of each is resized to {side} x {side} (rule: {USUAL}, or "
                  f"the median shorter side {middle} rounded down to a multiple of 8 if less; size=... sets another)")


def _channels(headers: dict[int, Header], like: DataSpec | None, source: str) -> tuple[int, str]:
    counts = Counter(header.channels for header in headers.values())
    if like is not None:
        if set(counts) <= {1, 3} and like.channels in (1, 3) or set(counts) == {like.channels}:
            return like.channels, f"channels: {like.channels} (rule: as in the data the model was trained on)"
        raise DataError(f"The images have {', '.join(map(str, sorted(counts)))} channels, the model was trained on "
                        f"{like.channels}.", where=source, fix="Give images with the same channels.")
    if len(counts) == 1:
        (channels,) = counts
        return channels, f"channels: {channels} (as stored)"
    return 3, f"channels: 3 (rule: {counts[1]:,} grey images among {counts[3]:,} in colour are repeated to RGB)"


def _depth(headers: dict[int, Header], like: DataSpec | None) -> tuple[str, str, dict[int, str]]:
    counts = Counter(header.dtype for header in headers.values())
    if like is not None:
        depth = {255.0: "uint8", 65535.0: "uint16"}.get(like.scale, "float32")
        note = f"values: {depth} (rule: as in the data the model was trained on)"
    else:
        floats = counts["float32"] > counts["uint8"] + counts["uint16"]
        depth = "float32" if floats else "uint16" if counts["uint16"] >= counts["uint8"] else "uint8"
        note = f"values: {depth} (as stored)"
        if not floats and counts["uint8"] and counts["uint16"]:
            note = f"values: {depth} (rule: the depth of the majority; 8 and 16 bits are converted by the factor 257)"
    rejected = {i: f"has {header.dtype} values among {depth} ones: what their range means is unknown"
                for i, header in headers.items() if (header.dtype == "float32") != (depth == "float32")}
    return depth, note, rejected
