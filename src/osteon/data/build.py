"""From a listing to decoded samples: headers first, then the plan, then every sample, on several threads in order."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from osteon.core.errors import DataError, UsageError
from osteon.data.changes import states
from osteon.data.codec import Codec, PlanLike
from osteon.data.listing import Listing, Skipped, shown
from osteon.modalities import Payload, Unreadable, find, one_of
from osteon.modalities.image import strict_pillow
from osteon.parts.types import DataSpec

#: Called as ``(done, total, text)`` while a source is opened.
Progress = Callable[[int, int, str], None]
Result = TypeVar("Result")
_CHUNK = 64
#: Bytes of the largest sample that is made.
MAX_SAMPLE = 2**30


def workers() -> int:
    """Threads for decoding: the processors this process may use, at most 16 (each may hold a large image)."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(16, usable))


def plan_samples(listing: Listing, codec: Codec, *, size: int | None, like: DataSpec | None,
                 options: Mapping[str, Any], progress: Progress | None,
                 max_skipped: float) -> tuple[PlanLike, dict[int, str]]:
    """Read every header and choose one shape and type. Returns the plan and (number -> reason) of what failed.

    Stops here, before anything is decoded, if too many samples fail already.
    """
    headers: dict[int, Any] = {}
    failed: dict[int, str] = {}
    known: dict[Any, Any] = {}  # equal headers are one object: most samples of a source are alike
    for i, result in _each(listing, range(len(listing.ids)), codec.header, progress, "reading headers"):
        if isinstance(result, Unreadable):
            failed[i] = str(result)
        else:
            headers[i] = _one_object(known, result)
    check_skipped([*listing.skipped, *(Skipped(listing.ids[i], reason) for i, reason in failed.items())],
                  len(headers), max_skipped, listing.source, find(listing.modality).SAMPLES)
    plan = codec.plan(headers, size=size, like=like, source=listing.source, options=options)
    failed.update(plan.rejected)
    size_of_one = math.prod(plan.shape) * np.dtype(plan.dtype).itemsize
    if size_of_one > MAX_SAMPLE:
        raise UsageError(f"A sample of shape {' x '.join(map(str, plan.shape))} takes {size_of_one / 1e9:,.1f} GB, "
                         f"more than the limit of {MAX_SAMPLE / 1e9:.1f}.", where=listing.source,
                         fix="Ask for a smaller size (or extent, window, length, seconds, points or nodes).")
    return plan, failed


def _one_object(known: dict[Any, Any], header: Any) -> Any:
    try:
        return known.setdefault(header, header)
    except TypeError:  # it holds what has no hash
        return header


def decode_samples(listing: Listing, codec: Codec, plan: PlanLike, failed: dict[int, str],
                   sink: Callable[[np.ndarray], None], progress: Progress | None) -> None:
    """Decode what has not failed, in order, into ``sink``; what fails now is added to ``failed``."""

    def work(payload: Payload) -> np.ndarray:
        return codec.convert(payload, plan)

    wanted: Sequence[int] = range(len(listing.ids))
    if failed:
        wanted = np.array([i for i in wanted if i not in failed], np.int64)  # type: ignore[assignment]
    for i, result in _each(listing, wanted, work, progress, "decoding"):
        if isinstance(result, Unreadable):
            failed[i] = str(result)
        else:
            sink(result)


def check_skipped(skipped: Sequence[Skipped], kept: int, max_skipped: float, source: str,
                  samples: str = "images") -> None:
    """Raise DataError when nothing is left or more than the share ``max_skipped`` could not be used."""
    if not skipped:
        return
    first = "; ".join(f"{shown(item.id)} {shown(item.reason, 400)}" for item in skipped[:3])
    if kept == 0:
        raise DataError(f"No readable {one_of(samples)}: {first}.", where=source,
                        fix=f"Check that these are {samples}.")
    share = len(skipped) / (kept + len(skipped))
    if share > max_skipped:
        raise DataError(f"{len(skipped):,} of {kept + len(skipped):,} {samples} ({share:.1%}) cannot be used, more "
                        f"than the {max_skipped:.1%} allowed: {first}.", where=source,
                        fix=f"Repair or remove them, or allow it with --set max_skipped={min(1.0, share + 0.005):.2f}.")


def _tried(work: Callable[[Payload], Result], payload: Payload) -> Result | Unreadable:
    try:
        return work(payload)
    except Unreadable as reason:
        return reason


def _each(listing: Listing, rows: Sequence[int], work: Callable[[Payload], Result], progress: Progress | None,
          text: str) -> Iterator[tuple[int, Result | Unreadable]]:
    """(number, result or the reason it failed) for every row, in order; payloads are fetched by this thread alone."""

    def attempt(payload: Payload) -> Result | Unreadable:
        for _ in range(2):
            before, result = states(payload), _tried(work, payload)
            if states(payload) == before:
                return result
        return Unreadable("changed while it was read, twice")

    def run(payloads: list[Payload]) -> list[Any]:
        return [attempt(payload) for payload in payloads]

    chunks = ([int(i) for i in rows[start:start + _CHUNK]] for start in range(0, len(rows), _CHUNK))
    pending: deque[tuple[list[int], Future[list[Any]]]] = deque()
    threads, done = workers(), 0
    with strict_pillow(), ThreadPoolExecutor(threads, thread_name_prefix="osteon-decode") as pool:
        try:
            while True:
                for chunk in islice(chunks, max(0, 2 * threads - len(pending))):
                    pending.append((chunk, pool.submit(run, [listing.payload(i) for i in chunk])))
                if not pending:
                    return
                chunk, future = pending.popleft()
                yield from zip(chunk, future.result(), strict=True)
                done += len(chunk)
                if progress is not None:
                    progress(done, len(rows), text)
        finally:
            for _, future in pending:  # on an error there is no point in decoding the rest
                future.cancel()
