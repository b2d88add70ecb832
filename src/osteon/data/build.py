"""From a listing to decoded images: headers first, then the plan, then every image, on several threads in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from osteon.core.errors import DataError
from osteon.data.listing import Listing, Skipped
from osteon.data.policy import Plan, make_plan
from osteon.modalities.image import (
    Header,
    Payload,
    Unreadable,
    decode,
    read_header,
    square,
    strict_pillow,
    to_channels,
    to_depth,
)
from osteon.parts.types import DataSpec

#: Called as ``(done, total, text)`` while a source is opened.
Progress = Callable[[int, int, str], None]
Result = TypeVar("Result")
_CHUNK = 64


def workers() -> int:
    """Threads for decoding: the processors this process may use, at most 16 (each may hold a large image)."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(16, usable))


def plan_images(listing: Listing, *, size: int | None, like: DataSpec | None, progress: Progress | None,
                max_skipped: float) -> tuple[Plan, dict[int, str]]:
    """Read every header and choose size, channels and depth. Returns the plan and (number -> reason) of what failed.

    Stops here, before anything is decoded, if too many images fail already.
    """
    headers: dict[int, Header] = {}
    failed: dict[int, str] = {}
    for i, result in _each(listing, range(len(listing.ids)), read_header, progress, "reading headers"):
        if isinstance(result, Unreadable):
            failed[i] = str(result)
        else:
            headers[i] = result
    check_skipped([*listing.skipped, *(Skipped(listing.ids[i], reason) for i, reason in failed.items())],
                  len(headers), max_skipped, listing.source)
    plan = make_plan(headers, size=size, like=like, source=listing.source)
    failed.update(plan.rejected)
    return plan, failed


def decode_images(listing: Listing, plan: Plan, failed: dict[int, str], sink: Callable[[np.ndarray], None],
                  progress: Progress | None) -> None:
    """Decode what has not failed, in order, into ``sink``; what fails now is added to ``failed``."""

    def work(payload: Payload) -> np.ndarray:
        return to_depth(to_channels(square(decode(payload), plan.size), plan.channels), plan.dtype)

    wanted = [i for i in range(len(listing.ids)) if i not in failed]
    for i, result in _each(listing, wanted, work, progress, "decoding"):
        if isinstance(result, Unreadable):
            failed[i] = str(result)
        else:
            sink(result)


def check_skipped(skipped: Sequence[Skipped], kept: int, max_skipped: float, source: str) -> None:
    """Raise DataError when nothing is left or more than the share ``max_skipped`` could not be used."""
    if not skipped:
        return
    first = "; ".join(f"{item.id} {item.reason}" for item in skipped[:3])
    if kept == 0:
        raise DataError(f"No readable image: {first}.", where=source, fix="Check that these are images.")
    share = len(skipped) / (kept + len(skipped))
    if share > max_skipped:
        raise DataError(f"{len(skipped):,} of {kept + len(skipped):,} images ({share:.1%}) cannot be used, more than "
                        f"the {max_skipped:.1%} allowed: {first}.", where=source,
                        fix=f"Repair or remove them, or allow it with --set max_skipped={min(1.0, share + 0.005):.2f}.")


def _each(listing: Listing, rows: Sequence[int], work: Callable[[Payload], Result], progress: Progress | None,
          text: str) -> Iterator[tuple[int, Result | Unreadable]]:
    """(number, result or the reason it failed) for every row, in order; payloads are fetched by this thread alone."""

    def attempt(payload: Payload) -> Result | Unreadable:
        try:
            return work(payload)
        except Unreadable as reason:
            return reason

    def run(payloads: list[Payload]) -> list[Any]:
        return [attempt(payload) for payload in payloads]

    chunks = (list(rows[start:start + _CHUNK]) for start in range(0, len(rows), _CHUNK))
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
