"""Processes of one run over several ranks: how long they wait for each other, and what is said when one is lost.

A rank that died closes its connections, which the others see at once; one that hangs is only seen by waiting. Within a
step nobody should be late by more than :func:`rank_timeout`; while rank 0 works alone (a checkpoint, a look of the
guard), and while data are read, the others wait longer. All meet before any data are read, so that a rank that dies
then is missed as well. torchrun then ends what is left, at the latest 30 seconds later.
"""

from __future__ import annotations

import atexit
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from osteon.core.errors import RankLost, UsageError
from osteon.core.run import RunFolder

#: environment variable with the seconds a rank waits for the others within a step, and its default
VARIABLE, SECONDS = "OSTEON_RANK_TIMEOUT", 20.0
#: seconds the others wait while rank 0 works alone, and seconds for all to have started
ALONE, MEETING = 1800.0, 300.0


def rank_timeout() -> float:
    """Seconds a rank waits for the others within a step.

    Raises:
        UsageError: the environment variable holds no positive number.
    """
    text = os.environ.get(VARIABLE, str(SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise UsageError(f"{VARIABLE}={text!r} is no number of seconds.", where=VARIABLE, fix="Write e.g. 60.")
    return seconds


def meet() -> None:
    """Connect to the other ranks of ``torchrun``; nothing where there are none.

    Raises:
        RankLost: not all of them came.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or dist.is_initialized():
        return
    rank_timeout()  # a wrong one is refused before anything is done
    try:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", rank=int(os.environ["RANK"]),
                                world_size=world, timeout=timedelta(seconds=MEETING))
    except RuntimeError as error:
        raise RankLost(f"The {world} processes of this run did not meet within {MEETING:g} s: {error}",
                       where="torchrun", fix="Start the same command again.") from error
    atexit.register(_part)
    limit_waiting(max(ALONE, rank_timeout()))


def _part() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def all_are_ready() -> None:
    """Wait until every rank has read its data; from here on nobody should be late."""
    dist.barrier()
    limit_waiting(rank_timeout())


def limit_waiting(seconds: float) -> None:
    """From here on, messages between ranks may take so long."""
    wait = timedelta(seconds=seconds)
    if hasattr(dist, "set_timeout"):
        dist.set_timeout(wait)
    else:  # its name in older releases
        dist.distributed_c10d._set_pg_timeout(wait)


@contextmanager
def working_alone(world: int) -> Iterator[None]:
    """While rank 0 does something alone: the others wait for it at the end, and longer than within a step."""
    if world == 1:
        yield
        return
    limit_waiting(max(ALONE, rank_timeout()))
    yield
    dist.barrier()
    limit_waiting(rank_timeout())


@contextmanager
def telling_who_is_lost(run: RunFolder, world: int) -> Iterator[None]:
    """Turn a broken connection into a message that says what is kept and how to go on.

    Raises:
        RankLost: another rank ended or did not answer in time.
    """
    try:
        yield
    except RuntimeError as error:
        if world == 1 or not _is_lost(error):
            raise
        late = "imed out" in str(error) or "imeout" in str(error)
        what = f"did not answer within {rank_timeout():g} s" if late else "ended"
        raise RankLost(f"Another process of this run {what}. {run.kept()}", where=str(run.path),
                       fix="Start the same command again" + (f"; {VARIABLE}=SECONDS waits longer." if late else
                                                             "; what it said is above or in its own output.")
                       ) from error


def _is_lost(error: RuntimeError) -> bool:
    """Whether an error comes from the messages between ranks: gloo raises bare RuntimeErrors."""
    return isinstance(error, getattr(dist, "DistError", ())) or any(
        word in str(error) for word in ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer"))
