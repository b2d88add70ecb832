"""The largest batch that fits: memory grows linearly with the batch, and the answer is tried out."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from osteon.core.errors import UsageError
from osteon.verbs._plan_probe import Probe, ProbeKilled, probe

_UNITS = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
          "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
#: share of the limit that an answer may use: what a run holds varies from run to run
SAFE = 0.9
#: steps of a probe for memory: the optimiser's state exists from the second one on
STEPS = 3
#: longest probe worth its time, in seconds; a longer one is left to the reader
PATIENCE = 60.0
#: most probes of one search
PROBES = 5


def read_memory(text: str) -> int:
    """``4GB``, ``512 MiB`` or a number of bytes. Raises UsageError for anything else."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", str(text))
    if found is None or found.group(2).upper() not in _UNITS or float(found.group(1)) <= 0:
        raise UsageError(f"'{text}' is no amount of memory.", where="--memory", fix="Write e.g. 4GB or 512MiB.")
    return int(float(found.group(1)) * _UNITS[found.group(2).upper()])


def largest_batch(arguments: Mapping[str, Any], first: Probe, limit: int, samples: int, say: Callable[[str], None],
                  measure: Callable[..., Probe] = probe) -> dict[str, Any]:
    """Find it by a line through measured points, tried out and corrected.

    Args:
        arguments: of the run.
        first: the probe with the run's own batch.
        limit: most memory, in bytes.
        samples: most that a batch can hold.
        say: told what is tried.
        measure: makes a probe (:func:`osteon.verbs._plan_probe.probe`).

    Returns:
        ``size``: a multiple of the micro-batches, 0 when not even the smallest fits; ``peak``: its memory, measured or
        foretold; ``verified``: whether it was tried; ``per_sample`` and ``base``: bytes; ``why``: what bounds it; and
        ``tried``: (batch, bytes or None) pairs.
    """
    parts = int(first.config["train"]["accumulate"])
    most = samples // parts * parts
    points: dict[int, int] = {first.batch_size: first.memory}
    killed: set[int] = set()
    target = SAFE * limit - first.unread

    def attempt(batch: int) -> bool:
        say(f"trying a batch of {batch}")
        try:
            points[batch] = measure({**arguments, "batch_size": batch}, steps=STEPS, brief=True).memory
        except ProbeKilled:
            killed.add(batch)
            return False
        return points[batch] <= target

    # A second point far enough from the first to show the slope; smaller where that is the only way.
    second = min(most, 2 * first.batch_size) if first.memory <= target else max(parts, first.batch_size // 2)
    if second != first.batch_size:
        attempt(second)
    for _ in range(PROBES):
        base, slope = _line(points)
        low = max((b for b, m in points.items() if m <= target), default=0)
        high = min([*(b for b, m in points.items() if m > target), *killed, most + parts])
        guess = int((target - base) / slope) if slope > 0 else most
        guess = min(max(guess, low), high - 1, most) // parts * parts
        if guess <= low or (low and guess - low < 0.05 * low):
            break
        longest = first.step * guess / max(1, first.batch_size) * (STEPS + 1)
        if longest > PATIENCE:
            return _answer(guess, base + slope * guess, False, points, killed, most, base, slope,
                           f"foretold from smaller batches: trying it takes {longest:.0f} s")
        attempt(guess)
    low = max((b for b, m in points.items() if m <= target), default=0)
    base, slope = _line(points)
    why = ("the source has no more samples" if low >= most else "memory" if low else
           f"without any batch a run takes {base / 1e9:.2f} GB, and a tenth of the limit is kept free")
    return _answer(low, points.get(low, 0), True, points, killed, most, base, slope, why)


def _line(points: Mapping[int, int]) -> tuple[float, float]:
    """Memory of an empty batch, and of one more sample, through the two largest batches."""
    known = sorted(points.items())[-2:]
    if len(known) < 2:
        return float(known[0][1]), 0.0
    (a, low), (b, high) = known
    slope = max(0.0, (high - low) / (b - a))
    return high - slope * b, slope


def _answer(size: int, peak: float, verified: bool, points: Mapping[int, int], killed: set[int], most: int,
            base: float, slope: float, why: str) -> dict[str, Any]:
    tried: list[tuple[int, int | None]] = [*points.items(), *((b, None) for b in killed)]
    return {"size": size, "peak": int(peak), "verified": verified, "per_sample": int(slope), "base": int(base),
            "most": most, "why": why, "tried": sorted(tried, key=lambda pair: pair[0])}
