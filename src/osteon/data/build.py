"""From a listing to decoded samples: headers first, then the plan, then every sample, on several threads in order.

As long as all samples have one header, as those of most data sets of small images do, the plan is known from the first,
and each is decoded from the reading that looks at its header.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np

from osteon.core.errors import DataError, UsageError
from osteon.data.changes import states
from osteon.data.codec import Codec, PlanLike
from osteon.data.listing import Listing, Skipped, shown
from osteon.modalities import Payload, Unlike, Unreadable, find, one_of
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


class Sink(Protocol):
    """Where decoded samples go, in order."""

    def begin(self, shape: tuple[int, ...], dtype: str) -> None:
        """Samples of this shape and type follow; what came before is dropped."""

    def append(self, sample: np.ndarray) -> None:
        """The next sample."""


class _Ahead:
    """Samples that are decoded while their headers are read, as long as all have the header of the first.

    Args:
        codec: how samples are read.
        sink: where they go.
        header: of the first sample.
        plan: what samples with that header become.
    """

    def __init__(self, codec: Codec, sink: Sink, header: Any, plan: PlanLike) -> None:
        self.codec, self.sink, self.header, self.plan = codec, sink, header, plan
        self.alike = self.whole = True
        self.upto, self.failed = 0, dict[int, str]()
        sink.begin(plan.shape, plan.dtype)

    def read(self, payload: Payload) -> tuple[Any, np.ndarray | Unreadable | None]:
        """Header of a sample; and the sample, or why it cannot be decoded, or None where it has to wait."""
        reason: Unreadable | None = None
        if self.alike:
            try:
                return self.header, self.codec.alike(payload, self.plan, self.header)  # type: ignore[misc]
            except Unlike:
                self.alike = False
            except Unreadable as error:
                reason = error
        return self.codec.header(payload), reason

    def take(self, row: int, sample: np.ndarray | Unreadable | None) -> None:
        """What :meth:`read` gave for the next row whose header could be read."""
        self.whole &= sample is not None
        if not self.whole:
            return
        self.upto = row + 1
        if isinstance(sample, Unreadable):
            self.failed[row] = str(sample)
        elif sample is not None:
            self.sink.append(sample)

    def serves(self, plan: PlanLike) -> bool:
        """Whether what was decoded is what the plan of all samples asks for."""
        return not plan.rejected and (plan.shape, plan.dtype) == (self.plan.shape, self.plan.dtype)


def _ahead(listing: Listing, codec: Codec, sink: Sink,
           plan_of: Callable[[dict[int, Any]], PlanLike]) -> _Ahead | None:
    """None where samples have to wait for the headers of all."""
    if codec.alike is None or not listing.ids:
        return None
    ((_, header),) = _each(listing, range(1), codec.header, None, "")
    if isinstance(header, Unreadable):
        return None
    try:
        plan = plan_of({0: header})
    except (DataError, UsageError):  # told when all headers are known
        return None
    return None if plan.rejected else _Ahead(codec, sink, header, plan)


def plan_samples(listing: Listing, codec: Codec, sink: Sink, *, size: int | None, like: DataSpec | None,
                 options: Mapping[str, Any], progress: Progress | None,
                 max_skipped: float) -> tuple[PlanLike, dict[int, str], int]:
    """Read every header, choose one shape and type, and begin the sink with it.

    Stops here, before the rest is decoded, if too many samples fail already.

    Returns:
        The plan, (number -> reason) of what failed, and how many samples, from the first, need not be decoded any more.
    """
    def plan_of(headers: dict[int, Any]) -> PlanLike:
        return _within(codec.plan(headers, size=size, like=like, source=listing.source, options=options),
                       listing.source)

    headers: dict[int, Any] = {}
    failed: dict[int, str] = {}
    known: dict[Any, Any] = {}  # equal headers are one object: most samples of a source are alike
    ahead = _ahead(listing, codec, sink, plan_of)
    read, text = (lambda payload: (codec.header(payload), None), "reading headers") if ahead is None else \
        (ahead.read, "reading")
    for i, result in _each(listing, range(len(listing.ids)), read, progress, text):
        if isinstance(result, Unreadable):
            failed[i] = str(result)
            if ahead is not None and len(failed) > max_skipped * len(listing.ids):
                ahead.alike = False  # too many fail already: their headers say how many
            continue
        headers[i] = _one_object(known, result[0])
        if ahead is not None:
            ahead.take(i, result[1])
    check_skipped([*listing.skipped, *(Skipped(listing.ids[i], reason) for i, reason in failed.items())],
                  len(headers), max_skipped, listing.source, find(listing.modality).SAMPLES)
    plan = plan_of(headers)
    if ahead is not None and ahead.serves(plan):
        return plan, {**failed, **ahead.failed}, ahead.upto
    sink.begin(plan.shape, plan.dtype)
    return plan, {**failed, **plan.rejected}, 0


def _within(plan: PlanLike, source: str) -> PlanLike:
    """The plan, if a sample is not too large."""
    size = math.prod(plan.shape) * np.dtype(plan.dtype).itemsize
    if size > MAX_SAMPLE:
        raise UsageError(f"A sample of shape {' x '.join(map(str, plan.shape))} takes {size / 1e9:,.1f} GB, "
                         f"more than the limit of {MAX_SAMPLE / 1e9:.1f}.", where=source,
                         fix="Ask for a smaller size (or extent, window, length, seconds, points or nodes).")
    return plan


def _one_object(known: dict[Any, Any], header: Any) -> Any:
    try:
        return known.setdefault(header, header)
    except TypeError:  # it holds what has no hash
        return header


def decode_samples(listing: Listing, codec: Codec, plan: PlanLike, failed: dict[int, str],
                   sink: Sink, progress: Progress | None, done: int = 0) -> None:
    """Decode what has not failed, in order, into ``sink``; what fails now is added to ``failed``.

    The first ``done`` samples lie there already.
    """

    def work(payload: Payload) -> np.ndarray:
        return codec.convert(payload, plan)

    wanted: Sequence[int] = range(done, len(listing.ids))
    if failed:
        wanted = np.array([i for i in wanted if i not in failed], np.int64)  # type: ignore[assignment]
    for i, result in _each(listing, wanted, work, progress, "decoding"):
        if isinstance(result, Unreadable):
            failed[i] = str(result)
        else:
            sink.append(result)


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
