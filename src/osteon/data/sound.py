"""Reading sound: folders and manifests of recordings, one rate and one length for all by stated rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from osteon.core.errors import DataError, UsageError
from osteon.data.codec import Codec, Plan
from osteon.data.folders import list_folder, walk
from osteon.data.listing import Listing
from osteon.data.tables import list_csv, path_suffixes
from osteon.modalities import Payload
from osteon.modalities._measure import measure
from osteon.modalities.image import SUFFIXES as IMAGES
from osteon.modalities.sound import (
    HOP,
    MAX_RATE,
    RULES,
    SAMPLES,
    SUFFIXES,
    Header,
    decode,
    encode_wav,
    fit_length,
    log_mel,
    read_header,
)
from osteon.parts.types import DataSpec

#: Highest rate that is kept without being asked, in samples a second: speech needs no more.
USUAL_RATE = 16_000
#: Longest clip without being asked, in seconds.
USUAL_SECONDS = 10.0
#: Frames of a clip are a multiple of this, so that patches tile it.
MULTIPLE = 16
#: Classes of the generated source ``tones``.
TONES = ("rising", "falling", "steady", "vibrato", "tremolo", "chord")
#: Options of ``--set``: samples a second, seconds of a clip, mel bands, and what the network sees.
OPTIONS: dict[str, Any] = {"rate": 0, "seconds": 0.0, "bands": 64, "front": "logmel"}


def list_path(path: Path, source: str, *, asked: bool, options: Mapping[str, Any] | None = None,
              like: DataSpec | None = None) -> Listing | None:
    """The recordings at a path, or None when it holds none (an error when sound was asked for).

    A folder counts as sound when it holds more recordings than images, a manifest when its first file is a recording.
    """
    found: Listing | None = None
    if path.is_dir():
        manifest = path / "metadata.csv"
        if manifest.is_file() and path_suffixes(manifest) & SUFFIXES:
            found = list_csv(manifest, source)
        else:
            here = len(walk(path, SUFFIXES).files)
            if here and (asked or here > len(walk(path, IMAGES).files)):
                found = list_folder(path, source, suffixes=SUFFIXES, samples=SAMPLES)
    elif path.suffix.lower() in (".csv", ".tsv") and path_suffixes(path) & SUFFIXES:
        found = list_csv(path, source)
    if found is None and asked:
        raise DataError("The source holds no recording.", where=source, fix=f"Sound is a folder of {_endings()} files, "
                        "with a subfolder a class, or a csv manifest with columns path, label, group, split.")
    return None if found is None else replace(found, modality="sound")


def list_tones(split: str | None) -> Listing:
    """2,000 generated clips of a quarter of a second: six shapes of a tone at any pitch, under noise.

    Rising, falling, steady, trembling in pitch, trembling in loudness, and a chord; ``train`` (1,400) and ``test``
    (600) are a fixed random split.
    """
    rng = np.random.default_rng(0)
    count, rate = 2000, 4000
    labels = np.arange(count) % len(TONES)
    parts = np.where(rng.permutation(count) < 1400, "train", "test")
    seeds = rng.integers(2**31, size=count)
    listing = Listing("tones", [f"tone-{i:04d}" for i in range(count)],
                      lambda i: encode_wav(_tone(int(labels[i]), int(seeds[i]), rate), rate), "tones-1",
                      labels=[int(v) for v in labels], class_names=list(TONES), split=[str(p) for p in parts],
                      cached=False, modality="sound")
    return listing.only(split) if split else listing


def _tone(kind: int, seed: int, rate: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    t = np.arange(round(0.32 * rate)) / rate
    pitch, depth = 300 * 3 ** rng.random(), 0.3 + 0.4 * rng.random()
    shape = {0: 1 + depth * t / 0.32, 1: 1 + depth * (1 - t / 0.32), 3: 1 + 0.15 * np.sin(2 * np.pi * 16 * t)}
    phase = 2 * np.pi * np.cumsum(pitch * shape.get(kind, np.ones_like(t))) / rate + 2 * np.pi * rng.random()
    sound = np.sin(phase)
    if kind == 4:
        sound = sound * (0.55 + 0.45 * np.sin(2 * np.pi * 16 * t + 2 * np.pi * rng.random()))
    if kind == 5:
        sound = (sound + np.sin(1.26 * phase) + np.sin(1.5 * phase)) / 3
    return 0.3 * sound + 0.1 * rng.standard_normal(len(t))


def _endings() -> str:
    return ", ".join(sorted(SUFFIXES))


def _plan(headers: dict[int, Header], *, size: int | None, like: DataSpec | None, source: str,
          options: Mapping[str, Any]) -> Plan:
    """Rate, length, bands: as in the data the model was trained on, as asked, or by rule."""
    if size is not None:
        raise UsageError("Sound has no size in pixels.", where="size", fix="Set seconds, rate or bands instead.")
    if like is not None:
        known = dict(like.traits)
        return Plan((1, *like.extent), "float32", known,
                    notes=[f"clips: {known['seconds']:g} s at {known['rate']:,} Hz, {known['front']} (rule: as in the "
                           "data the model was trained on)"])
    rates, notes = Counter(h.rate for h in headers.values()), []
    common = rates.most_common(1)[0][0]
    rate = int(options["rate"]) or min(common, USUAL_RATE)
    how = "as asked" if options["rate"] else f"rule: the commonest of the source, at most {USUAL_RATE:,}"
    notes.append(f"rate: {rate:,} Hz ({how}; {len(rates)} rate{'s' * (len(rates) > 1)} found)")
    durations = np.array([h.seconds for h in headers.values()])
    wanted = float(options["seconds"]) or min(float(np.percentile(durations, 95)), USUAL_SECONDS)
    if options["front"] not in ("logmel", "raw"):
        raise UsageError(f"There is no front '{options['front']}'.", where="front", fix="Set logmel or raw.")
    if wanted <= 0 or not 100 <= rate <= MAX_RATE or int(options["bands"]) < 2:
        raise UsageError(f"seconds must be positive, rate 100 to {MAX_RATE:,} and bands at least 2.", where="--set",
                         fix="Leave them out to have them chosen by rule.")
    frames = max(1, -(-int(round(wanted / HOP)) // MULTIPLE)) * MULTIPLE
    seconds = frames * HOP
    how = "as asked" if options["seconds"] else f"rule: 95 % are no longer, at most {USUAL_SECONDS:g}"
    notes.append(f"clips: {seconds:g} s ({how}, in whole {MULTIPLE * HOP:g} s; {(durations > seconds).mean():.0%} are "
                 "cut to their middle)")
    bands = int(options["bands"])
    traits = {"rate": rate, "seconds": seconds, "bands": bands, "front": options["front"]}
    shape = (1, bands, frames) if options["front"] == "logmel" else (1, round(seconds * rate))
    notes.append(f"front: {bands} mel bands, 25 ms windows every 10 ms, natural logarithm" if len(shape) == 3 else
                 f"front: the wave itself, {shape[1]:,} samples")
    return Plan(shape, "float32", traits, notes=notes)


def _convert(payload: Payload, plan: Plan) -> np.ndarray:
    rate = int(plan.traits["rate"])
    wave = fit_length(decode(payload, rate), round(plan.traits["seconds"] * rate))
    if plan.traits["front"] == "raw":
        return wave[None]
    return log_mel(wave, rate, *plan.shape[1:])


def _measure(samples: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    return (*measure(samples, 1.0), 1.0)


#: Generated sources by name: name -> ``list(split)``.
NAMED = {"tones": list_tones}
CODEC = Codec(read_header, _plan, _convert, _measure, OPTIONS, RULES)
