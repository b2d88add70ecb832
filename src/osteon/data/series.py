"""Reading series: one long series cut into windows and split by time, or labelled series, one a sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from osteon.core.errors import DataError, UsageError
from osteon.data._series_files import looks_like_series
from osteon.data._series_samples import KINDS, list_labelled
from osteon.data._series_windows import LongSeries, _whole, read_long, window_listing
from osteon.data.changes import steadily, watch
from osteon.data.codec import Codec, Plan, check_options
from osteon.data.listing import Listing
from osteon.modalities._measure import measure
from osteon.modalities.series import FITS, NORMS, RULES, Header, choice, decode, read_header
from osteon.parts.types import DataSpec

__all__ = ["CODEC", "NAMED", "LongSeries", "list_path", "list_waves", "open_long"]

#: Classes of the generated source ``waves``.
WAVES = ("sine", "square", "saw", "chirp", "damped", "two tones")
#: Options of ``--set``: of a long series the steps of a window and from one to the next, its parts by time, and whether
#: each channel is a sample of its own; of labelled series one length and how it is reached; how values are normalised.
OPTIONS: dict[str, Any] = {"window": 0, "hop": 0, "split": "", "independent": False, "length": 0, "fit": "", "norm": ""}


def list_path(path: Path, source: str, *, asked: bool, options: Mapping[str, Any] | None = None,
              like: DataSpec | None = None) -> Listing | None:
    """The series at a path, or None when it holds none (an error when series were asked for).

    Args:
        path: file or folder.
        source: its name, for messages.
        asked: whether the modality was named. A csv is taken for a series without that only when its first column holds
            times that increase and all others numbers.
        options: of reading, those of :data:`OPTIONS` that were given.
        like: read as the data of this spec.
    """
    if asked:
        check_options("series", options or {})
    found = list_labelled(path, source, asked=asked, like=like)
    if found is not None:
        return found
    table = path.suffix.lower() in (".csv", ".tsv", ".parquet") and path.is_file()
    if table and (asked or looks_like_series(path)):
        chosen = check_options("series", options or {})
        return window_listing(read_long(path, source, chosen, like), source, chosen, like)
    if asked:
        raise DataError("The source holds no series.", where=source, fix="A series is a csv or parquet file with a "
                        f"column of time and a column of numbers a channel; labelled series are {KINDS}.")
    return None


def open_long(path: str | Path, *, like: DataSpec | None = None, **given: Any) -> LongSeries:
    """A long series with its parts by time, not cut: what forecasting needs.

    Args:
        path: csv, tsv or parquet file.
        like: channels, parts and scale as in these data.
        given: options of reading, see :data:`OPTIONS`.
    """
    where = Path(path).expanduser()
    if not where.is_file() or where.suffix.lower() not in (".csv", ".tsv", ".parquet"):
        raise DataError("There is no long series here.", where=str(path),
                        fix="Give a csv, tsv or parquet file with a column of time and a column of numbers a channel.")
    chosen = check_options("series", given)

    def read() -> LongSeries:
        watch(where)
        return read_long(where, str(path), chosen, like)

    return steadily(read)


def list_waves(split: str | None) -> Listing:
    """2,000 generated series of 2 channels and 128 steps: six shapes of an oscillation, at any phase, under noise.

    Sine, square, saw, a rising tone, a dying tone, and two tones; the second channel lags behind the first by a random
    phase. ``train`` (1,400) and ``test`` (600) are a fixed random split.
    """
    rng = np.random.default_rng(0)
    count = 2000
    labels = np.arange(count) % len(WAVES)
    parts = np.where(rng.permutation(count) < 1400, "train", "test")
    seeds = rng.integers(2**31, size=count)
    listing = Listing("waves", [f"wave-{i:04d}" for i in range(count)],
                      lambda i: _wave(int(labels[i]), int(seeds[i])), "waves-1", labels=[int(v) for v in labels],
                      class_names=list(WAVES), split=[str(p) for p in parts], cached=False, encoded=False,
                      modality="series", traits={"kind": "samples"})
    return listing.only(split) if split else listing


def _wave(kind: int, seed: int) -> np.ndarray:
    """One sample (2, 128): 3 to 8 turns of a shape between -1 and 1 times a random size, and noise of deviation 0.4."""
    rng = np.random.default_rng(seed)
    t = np.arange(128) / 128
    turns, phase, lag = 3 + 5 * rng.random(), rng.random(), 0.5 * rng.random()
    size, second = 0.7 + 0.6 * rng.random(2), 1.3 + rng.random()
    out = []
    for shift in (0.0, lag):
        place = turns * (t * (0.6 + 0.8 * t) if kind == 3 else t) + phase + shift
        sine = np.sin(2 * np.pi * place)
        shapes = {1: np.sign(sine), 2: 2 * (place % 1) - 1, 4: 1.6 * sine * np.exp(-2.5 * t),
                  5: (sine + np.sin(2 * np.pi * second * place)) / 1.4}
        out.append(shapes.get(kind, sine))
    return size[:, None] * np.stack(out) + 0.4 * rng.standard_normal((2, 128))


def _plan(headers: dict[int, Header], *, size: int | None, like: DataSpec | None, source: str,
          options: Mapping[str, Any]) -> Plan:
    """Channels, length and normalisation: as in the data the model was trained on, as asked, or by rule."""
    if size is not None:
        raise UsageError("Series have no size in pixels.", where="size", fix="Set window or length instead.")
    notes, rejected = list[str](), dict[int, str]()
    channels = Counter(h.channels for h in headers.values()).most_common(1)[0][0]
    rejected = {i: f"has {h.channels} channels, the others have {channels}" for i, h in headers.items()
                if h.channels != channels}
    if like is not None:
        known = {key: like.traits.get(key, usual) for key, usual in (("fit", "resample"), ("norm", "series"))}
        length = like.extent[0]
        notes.append(f"series: {length} steps, normalised by {known['norm']} (rule: as in the data the model was "
                     "trained on)")
    else:
        known = {"fit": choice(options["fit"] or "resample", FITS, "fit"),
                 "norm": choice(options["norm"] or ("window" if options["independent"] else "series"), NORMS, "norm")}
        length = _length(headers, options, known["fit"], notes)
        rule = "as asked" if options["norm"] else "rule: independent channels by window, others by series"
        notes.append("normalisation: " + ("each series by its own mean and deviation" if known["norm"] == "window" else
                                          "each channel by its mean and deviation in training") + f" ({rule})")
    gaps = sum(h.missing for h in headers.values())
    if gaps:
        cells = sum(h.channels * h.length for h in headers.values())
        notes.append(f"missing: {gaps:,} values ({gaps / cells:.2%}) in "
                     f"{sum(h.missing > 0 for h in headers.values()):,} series, filled")
    return Plan((channels, length), "float32", known, rejected, notes)


def _length(headers: dict[int, Header], options: Mapping[str, Any], fit: str, notes: list[str]) -> int:
    """One length for all, such that patches of a power of two that leave at most 64 tokens tile it."""
    lengths = np.array([h.length for h in headers.values()])
    equal = len(set(lengths.tolist())) == 1
    asked = _whole(options["length"], "length")
    if equal and not asked and lengths[0] == _whole(options["window"], "window"):
        return int(lengths[0])
    length, rule = asked or int(np.median(lengths)), "as asked" if asked else "rule: the median length"
    patch = int(2 ** np.ceil(np.log2(max(1.0, length / 64))))
    if not asked and length % patch:
        length = -(-length // patch) * patch
        rule += f", up to a multiple of {patch}"
    if not equal or length != lengths[0]:
        how = "stretched by linear interpolation" if fit == "resample" else "followed by their last value, or cut"
        notes.append(f"length: {length} steps ({rule}; the series have {lengths.min()} to {lengths.max()}), others are "
                     f"{how} ({'as asked' if options['fit'] else 'rule'})")
    return length


def _convert(payload: Any, plan: Plan) -> np.ndarray:
    return decode(payload, plan.shape[1], plan.traits["fit"], plan.traits["norm"])


def _measure(samples: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...], float]:
    return (*measure(samples, 1.0), 1.0)


#: Generated sources by name: name -> ``list(split)``.
NAMED = {"waves": list_waves}
CODEC = Codec(read_header, _plan, _convert, _measure, OPTIONS, RULES)
