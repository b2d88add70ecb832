"""Who does the jobs of a tournament: a pool of processes here, SLURM through submitit, or Ray.

A job is a named function of this package with plain arguments. Its result is a file that appears whole or not at all,
so a finished job costs nothing, a killed one is done again, and processes on one folder share the work: each job is
claimed by a lock that the system frees when its holder ends, however it ends.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from osteon.core import lock
from osteon.core.atomic import write_text
from osteon.core.errors import Interrupted, InUseError, MissingExtra, OsteonError, UsageError, nearest
from osteon.core.plain import plain
from osteon.verbs._pool import call_alone, cores, workers

ENGINES = ("local", "slurm", "ray")
#: seconds between looks at what another process is doing
PAUSE = 0.3


@dataclass(frozen=True)
class Job:
    """One piece of work.

    Args:
        name: file-name-safe and unique in the tournament.
        function: name of a function in :mod:`osteon.verbs._tournament_jobs`, called as ``function(root, **arguments)``.
        arguments: plain values.
    """

    name: str
    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def result_file(root: Path, name: str) -> Path:
    """Where a job's result appears."""
    return root / "jobs" / f"{name}.json"


def result(root: Path, name: str) -> dict[str, Any]:
    """A finished job's result; ``{"error": ...}`` where it failed."""
    return dict(json.loads(result_file(root, name).read_text(encoding="utf-8")))


def perform(root: str, name: str, function: str, arguments: Mapping[str, Any]) -> str:
    """Do a job unless it is done or somebody else is at it.

    What goes wrong inside is the job's result, so that other arms go on; being stopped is not.

    Returns:
        ``"done"`` or ``"busy"``.
    """
    _end_with_parent()
    folder, file = Path(root), result_file(Path(root), name)
    if file.exists():
        return "done"
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = lock.take(file.with_suffix(".lock"))
    except InUseError:
        return "busy"
    try:
        if not file.exists():
            outcome = _call(folder, function, arguments)
            write_text(file, json.dumps(plain(outcome, finite=True), indent=1, allow_nan=False) + "\n")
    finally:
        lock.release(handle)
    return "done"


def _call(root: Path, function: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    try:
        jobs = importlib.import_module("osteon.verbs._tournament_jobs")
        return dict(getattr(jobs, function)(root, **arguments))
    except Interrupted:
        raise
    except OsteonError as error:
        return {"error": {"type": type(error).__name__, "what": str(error)}}
    except Exception as error:  # any defect of one arm must not cost the others
        return {"error": {"type": type(error).__name__, "what": str(error)[:2000]}}


_watched = False


def _end_with_parent() -> None:
    """In a worker: end when the process that started it is gone, rather than wait for work for ever."""
    global _watched
    parent = multiprocessing.parent_process()
    if parent is None or _watched:
        return
    _watched = True

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Engine(Protocol):
    """Anything that can do jobs."""

    def map(self, jobs: Sequence[Job], told: Callable[[Job], None]) -> None:
        """Return when every job has a result; ``told`` is called with each as it appears."""

    def close(self) -> None:
        """Let go of processes and connections."""


class _Polling:
    """What the engines share: rounds over the jobs without a result until there is none."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def map(self, jobs: Sequence[Job], told: Callable[[Job], None]) -> None:
        """Return when every job has a result."""
        left = [job for job in jobs if not result_file(self.root, job.name).exists()]
        seen = {job.name for job in left}

        def tell() -> None:
            for job in jobs:
                if job.name in seen and result_file(self.root, job.name).exists():
                    seen.discard(job.name)
                    told(job)

        while left:
            self.round(left, tell)
            tell()
            left = [job for job in left if not result_file(self.root, job.name).exists()]
            if left:
                time.sleep(PAUSE)

    def round(self, jobs: Sequence[Job], tell: Callable[[], None]) -> None:
        """Try every job once."""
        for job in jobs:
            perform(str(self.root), job.name, job.function, job.arguments)
            tell()

    def close(self) -> None:
        """Nothing is held."""

    def _fail(self, job: Job, why: str) -> None:
        write_text(result_file(self.root, job.name), json.dumps({"error": {"type": "ProcessDied", "what": why}}) + "\n")


class LocalEngine(_Polling):
    """Processes on this machine, one thread each; with one worker the work is done in this process.

    Args:
        root: folder of the tournament.
        count: number of processes; by default one a core, and one where there is a GPU.
    """

    def __init__(self, root: Path, count: int | None = None) -> None:
        super().__init__(root)
        if count is None:
            import torch

            count = 1 if torch.cuda.is_available() else cores()
        self.count = count
        self._stack, self._pool = ExitStack(), None

    def round(self, jobs: Sequence[Job], tell: Callable[[], None]) -> None:
        """Hand out the jobs; a process that dies takes none of the other jobs with it."""
        if self.count == 1:
            super().round(jobs, tell)
            return
        try:
            self._in_pool(jobs, tell)
        except BrokenProcessPool:
            self.close()
            # One died and the pool with it. Which job did it is found by trying those it may have been one by one.
            for job in [j for j in jobs if self._was_begun(j)]:
                self._alone(job)

    def _in_pool(self, jobs: Sequence[Job], tell: Callable[[], None]) -> None:
        if self._pool is None:
            self._pool = self._stack.enter_context(workers(self.count))
        pool: Any = self._pool
        left: set[Future[str]] = {pool.submit(call_alone, perform, self._arguments(job)) for job in jobs}
        try:
            while left:
                done, left = wait(left, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                tell()
        except BaseException:
            self._stop()
            raise

    def _arguments(self, job: Job) -> dict[str, Any]:
        return {"root": str(self.root), "name": job.name, "function": job.function, "arguments": dict(job.arguments)}

    def _was_begun(self, job: Job) -> bool:
        """Whether its lock was left by a process that did not live to free it."""
        file = result_file(self.root, job.name)
        held = file.with_suffix(".lock")
        return not file.exists() and held.exists() and held.stat().st_size > 0

    def _alone(self, job: Job) -> None:
        try:
            with workers(1) as pool:
                pool.submit(call_alone, perform, self._arguments(job)).result()
        except BrokenProcessPool:
            self._fail(job, "The process that did it died twice; the system may have run out of memory.")

    def _stop(self) -> None:
        """Have running jobs save what they have and end, rather than wait for them."""
        if self._pool is not None:
            processes = dict(getattr(self._pool, "_processes", None) or {})
            self._pool.shutdown(wait=False, cancel_futures=True)
            for process in processes.values():
                process.terminate()

    def close(self) -> None:
        """End the processes."""
        self._stack.close()
        self._stack, self._pool = ExitStack(), None


class SlurmEngine(_Polling):
    """Jobs on a cluster through submitit; the folder of the tournament must be visible to its nodes.

    Args:
        root: folder of the tournament.
        count: most jobs at once.
        minutes: time limit of one job; a job cut short is resumed by the next round.
    """

    def __init__(self, root: Path, count: int | None = None, minutes: int = 24 * 60) -> None:
        super().__init__(root)
        try:
            import submitit
        except ImportError as error:
            raise MissingExtra("submitit", "slurm", why="--engine slurm") from error
        # Without SLURM, submitit starts its jobs as processes of this machine.
        self._executor = submitit.AutoExecutor(folder=root / "slurm")
        self._executor.update_parameters(name="osteon", timeout_min=minutes, cpus_per_task=1)
        if count is not None and self._executor.cluster == "slurm":
            self._executor.update_parameters(slurm_array_parallelism=count)
        self._deaths: dict[str, int] = {}

    def round(self, jobs: Sequence[Job], tell: Callable[[], None]) -> None:
        """Submit every job and wait for all."""
        with self._executor.batch():
            sent = [self._executor.submit(perform, str(self.root), j.name, j.function, dict(j.arguments)) for j in jobs]
        while not all(s.done() for s in sent):
            tell()
            time.sleep(PAUSE)
        for job, s in zip(jobs, sent, strict=True):
            if s.exception() is not None:
                self._deaths[job.name] = self._deaths.get(job.name, 0) + 1
                if self._deaths[job.name] > 1 and not result_file(self.root, job.name).exists():
                    self._fail(job, f"The job ended without a result, twice: {str(s.exception())[-500:]}")


class RayEngine(_Polling):
    """Jobs on a Ray cluster, or on a local one that it starts.

    Args:
        root: folder of the tournament, visible to every node.
        count: most jobs at once on a cluster started here.
    """

    def __init__(self, root: Path, count: int | None = None) -> None:
        super().__init__(root)
        try:
            import ray
        except ImportError as error:
            raise MissingExtra("ray", "ray", why="--engine ray") from error
        self._ray = ray
        if not ray.is_initialized():
            ray.init(num_cpus=count, include_dashboard=False, log_to_driver=False)
        self._remote = ray.remote(num_cpus=1, max_retries=1)(perform)

    def round(self, jobs: Sequence[Job], tell: Callable[[], None]) -> None:
        """Submit every job and wait for all."""
        names = {self._remote.remote(str(self.root), j.name, j.function, dict(j.arguments)): j for j in jobs}
        left = list(names)
        while left:
            done, left = self._ray.wait(left, num_returns=1, timeout=1.0)
            for reference in done:
                try:
                    self._ray.get(reference)
                except self._ray.exceptions.WorkerCrashedError as error:
                    self._fail(names[reference], f"The process that did it died twice: {error}")
            tell()

    def close(self) -> None:
        """Leave the cluster."""
        self._ray.shutdown()


def make_engine(name: str, root: Path, count: int | None) -> Engine:
    """The engine of a name. Raises UsageError for an unknown one, MissingExtra where its package is not installed."""
    if count is not None and count < 1:
        raise UsageError(f"{count} workers do no work.", where="--workers")
    if name == "local":
        return LocalEngine(root, count)
    if name == "slurm":
        return SlurmEngine(root, count)
    if name == "ray":
        return RayEngine(root, count)
    raise UsageError(f"There is no engine '{name}'.{nearest(name, ENGINES)}", where="--engine",
                     fix=f"Engines: {', '.join(ENGINES)}.")
