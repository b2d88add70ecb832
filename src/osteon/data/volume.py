"""Reading volumes: scans in folders and manifests, one orientation, spacing, extent and window by stated rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from osteon.core.errors import DataError, UsageError
from osteon.data._label_maps import list_label_maps
from osteon.data._phantoms import list_phantoms
from osteon.data._solids import list_archive, numbers
from osteon.data.codec import Codec, Plan
from osteon.data.folders import ending, list_folder, list_series, walk
from osteon.data.listing import Listing
from osteon.data.tables import list_csv, path_suffixes
from osteon.modalities import Payload
from osteon.modalities._dicom import SUFFIXES as SLICES
from osteon.modalities._measure import measure, scale_of
from osteon.modalities.image import SUFFIXES as IMAGES
from osteon.modalities.volume import (
    LEVELS,
    RULES,
    SAMPLES,
    SUFFIXES,
    Header,
    decode,
    fit_extent,
    read_header,
    sampled,
    scale_window,
    whole_labels,
)
from osteon.parts.types import DataSpec

#: Most cells of a side without being asked: spacing is made coarser until the median volume has no more.
USUAL = 64
#: Named windows (low, high): soft tissue in Hounsfield units.
WINDOWS = {"ct": (-175.0, 250.0)}
#: Options of ``--set``: millimetres of a cell, cells of a side, the values that become 0 and 1 ("" leaves it to the
#: rule); whether values are labels of a segmentation, which are kept as they are.
OPTIONS: dict[str, Any] = {"spacing": "", "extent": "", "window": "", "segments": False}


def list_path(path: Path, source: str, *, asked: bool, options: Mapping[str, Any] | None = None,
              like: DataSpec | None = None) -> Listing | None:
    """The volumes at a path, or None when it holds none (an error when volumes were asked for).

    A folder counts as volumes when it holds more NIfTI files (or else more DICOM slices) than images; every folder of
    slices is a volume. A manifest counts when its first file is one.
    """
    found: Listing | None = None
    if path.is_dir():
        manifest = path / "metadata.csv"
        if manifest.is_file() and path_suffixes(manifest) & SUFFIXES:
            found = list_csv(manifest, source)
        else:
            here = walk(path, SUFFIXES | SLICES).files
            files = sum(ending(parts[-1]) in SUFFIXES for parts, _, _ in here)
            if here and (asked or max(files, len(here) - files) > len(walk(path, IMAGES).files)):
                found = (list_folder(path, source, suffixes=SUFFIXES, samples=SAMPLES) if files else
                         list_series(path, source, suffixes=SLICES, samples=SAMPLES))
    elif path.suffix.lower() in (".csv", ".tsv") and (asked or path_suffixes(path) & SUFFIXES):
        found = list_csv(path, source)
    else:
        found = list_archive(path, source, modality="volume", shapes="(N, D, H, W) or (N, C, D, H, W)", asked=asked)
    if found is None and asked:
        raise DataError("The source holds no volume.", where=source, fix="Volumes are a folder of .nii or .nii.gz "
                        "files or of folders of DICOM slices (.dcm), with a subfolder a class, a csv manifest with "
                        "columns path, label, group, split, or arrays (.npy, .npz) of shape (N, D, H, W) or "
                        "(N, C, D, H, W).")
    return None if found is None else replace(found, modality="volume")


def _plan(headers: dict[int, Header], *, size: int | None, like: DataSpec | None, source: str,
          options: Mapping[str, Any]) -> Plan:
    """Channels, spacing, extent and window: as in the data the model was trained on, as asked, or by rule."""
    if size is not None:
        raise UsageError("Volumes have no size in pixels.", where="size", fix="Set spacing or extent instead.")
    channels = Counter(h.channels for h in headers.values()).most_common(1)[0][0] if like is None else like.channels
    rejected = {i: f"has {h.channels} channels where {channels} are wanted" for i, h in headers.items()
                if h.channels != channels}
    kept = [h for i, h in headers.items() if i not in rejected]
    if not kept:
        raise DataError(f"No volume has {channels} channels.", where=source,
                        fix="Give scans of the kind the model was trained on.")
    if like is not None:
        known = dict(like.traits)
        held = "labels" if known.get("segments") else f"window {_window_text(known['window'])}"
        note = (f"volumes: {_by(like.extent)} cells of {_by(known['spacing'])} mm, {held} (rule: as in the data the "
                "model was trained on)")
        return Plan((channels, *like.extent), "uint16", known, rejected, [note])
    notes = list[str]()
    spacing = _spacing(kept, options["spacing"], notes)
    extent = _extent(kept, spacing, options["extent"], notes)
    if options["segments"]:
        if str(options["window"]):
            raise UsageError("Labels have no window.", where="window, segments", fix="Leave one of them out.")
        notes.append("segments: values are labels, of the nearest cell where the spacing changes (as asked)")
        return Plan((channels, *extent), "uint16", {"spacing": spacing, "window": [], "segments": True}, rejected,
                    notes)
    window = _window(options["window"], notes)
    return Plan((channels, *extent), "uint16", {"spacing": spacing, "window": window}, rejected, notes)


def _spacing(headers: list[Header], given: Any, notes: list[str]) -> list[float]:
    """Millimetres of a cell for each side."""
    found = np.array([h.spacing for h in headers])
    asked = numbers(given, "spacing", (1, 3), "Give mm for all sides (1.5) or up, front and right ([3, 1, 1]).")
    if asked is not None:
        if min(asked) <= 0:
            raise UsageError(f"A spacing of {asked} mm is impossible.", where="spacing", fix="Give positive numbers.")
        notes.append(f"spacing: {_by(asked)} mm (as asked)")
        return asked * 3 if len(asked) == 1 else asked
    middle = np.median(found, 0)
    alike = bool((np.abs(found - middle) <= 0.01 * middle).all())
    reach = np.median([np.multiply(h.sides, h.spacing) for h in headers], 0)
    spacing = [float(f"{max(mm, far / USUAL):.6g}") for mm, far in zip(middle, reach, strict=True)]
    coarser = any(new > old * 1.01 for new, old in zip(spacing, middle, strict=True))
    notes.append(f"spacing: {_by(spacing)} mm up, front, right (rule: {'that of all' if alike else 'the median'}"
                 + (f", coarser where the median volume has over {USUAL} cells" if coarser else "") + ")")
    return spacing


def _extent(headers: list[Header], spacing: list[float], given: Any, notes: list[str]) -> tuple[int, ...]:
    """Cells of each side."""
    after = np.array([[sampled(n, have, wanted) for n, have, wanted in zip(h.sides, h.spacing, spacing, strict=True)]
                      for h in headers])
    asked = numbers(given, "extent", (1, 3), "Give cells for all sides (64) or up, front and right ([32, 64, 64]).",
                    whole=True)
    if asked is not None:
        extent, rule = [int(n) for n in (asked * 3 if len(asked) == 1 else asked)], "as asked"
    else:
        middle = np.median(after, 0)
        extent = [max(1, int(np.ceil(n / _tile(n)))) * _tile(n) for n in middle]
        rule = "rule: the median, up to a multiple of 8, below 16 of 2"
    larger, smaller = (float(v.any(1).mean()) for v in (after > extent, after < extent))
    notes.append(f"extent: {_by(extent)} cells ({rule}; {larger:.0%} are cut to their middle, {smaller:.0%} are "
                 "surrounded by the lowest value)")
    return tuple(extent)


def _tile(length: float) -> int:
    return 8 if length >= 16 else 2


def _window(given: Any, notes: list[str]) -> list[float]:
    """The values that become 0 and 1; empty: those of each volume's percentiles."""
    if isinstance(given, str) and given.lower() in WINDOWS:
        found: list[float] | None = list(WINDOWS[given.lower()])
    else:
        found = numbers(given, "window", (2,), "Give low and high ([-175, 250]) or ct.")
    if found is not None and not found[0] < found[1]:
        raise UsageError(f"A window from {found[0]:g} to {found[1]:g} is empty.", where="window",
                         fix="Give low < high.")
    how = "as asked" if found else "rule"
    notes.append(f"window: {_window_text(found or [])} ({how}); kept in {LEVELS + 1:,} steps")
    return found or []


def _window_text(window: list[float]) -> str:
    return f"{window[0]:g} to {window[1]:g}" if window else "the 0.5 to 99.5 percentile of each channel of a volume"


def _by(values: Any) -> str:
    return " x ".join(f"{v:g}" for v in values)


def _convert(payload: Payload, plan: Plan) -> np.ndarray:
    if plan.traits.get("segments"):
        return fit_extent(whole_labels(decode(payload, plan.traits["spacing"], nearest=True)), plan.shape[1:])
    values = scale_window(decode(payload, plan.traits["spacing"]), plan.traits["window"] or None)
    return np.rint(fit_extent(values, plan.shape[1:]) * LEVELS).astype(np.uint16)


def _measure(samples: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    scale = scale_of(samples.dtype)
    return (*measure(samples, scale), scale)


#: Generated sources by name: name -> ``list(split)``.
NAMED = {"phantoms": list_phantoms, "label_maps": list_label_maps}
CODEC = Codec(read_header, _plan, _convert, _measure, OPTIONS, RULES)
