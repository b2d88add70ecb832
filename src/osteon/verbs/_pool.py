"""Several pre-training runs side by side, one process a core, with one progress display."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from osteon.core.errors import OsteonError


@dataclass(frozen=True)
class Job:
    """A pre-training run: its folder, its number of steps, and the arguments of :func:`osteon.pretrain`."""

    folder: Path
    steps: int
    arguments: Mapping[str, Any]


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def call_alone(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Run in a worker: one thread, so that the workers share the cores without fighting."""
    import torch

    torch.set_num_threads(1)
    return function(**arguments)


def _pretrain(**arguments: Any) -> str:
    from osteon.verbs.pretrain import pretrain

    return str(pretrain(**arguments))


@contextlib.contextmanager
def workers(count: int | None = None):  # type: ignore[no-untyped-def]
    """A pool of fresh processes with one thread each; thread settings of math libraries are set before they start."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    before = {n: os.environ.get(n) for n in names}
    os.environ.update({n: "1" for n in names})
    try:
        with _main_not_repeated(), ProcessPoolExecutor(count or cores(), mp_context=get_context("spawn")) as pool:
            yield pool
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _main_not_repeated() -> Iterator[None]:
    """Keep new processes from running the caller's script again: everything sent to them lives in this package.

    Without this, a script that calls a verb outside ``if __name__ == "__main__"`` would start itself over and over.
    """
    main: dict[str, Any] = sys.modules["__main__"].__dict__
    kept: dict[str, Any] = {key: main[key] for key in ("__file__", "__spec__") if key in main}
    main.pop("__file__", None)
    main["__spec__"] = None
    try:
        yield
    finally:
        main.update(kept)


def run_jobs(jobs: Sequence[Job], *, progress: bool = True) -> None:
    """Run every job; a finished one (its folder holds a model) costs nothing, since pre-training resumes.

    Raises:
        OsteonError: the first failure, after the others were given the chance to end.
    """
    with workers(min(cores(), len(jobs))) as pool:
        futures = {pool.submit(call_alone, _pretrain, dict(job.arguments)): job for job in jobs}
        _watch(futures, len(jobs), progress)
        for future, job in futures.items():
            error = future.exception()
            if error is not None:
                if isinstance(error, OsteonError):
                    error.where = error.where or str(job.folder)
                raise error


def _watch(futures: Mapping[Future[Any], Job], total: int, progress: bool) -> None:
    """Show the progress of every run from its metrics until all have ended."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(file=sys.stderr)
    steps = sum(job.steps for job in futures.values())
    lively = console.is_terminal and progress
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"),
               TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[text]}"))
    with Progress(*columns, console=console, disable=not lively) as bar:
        task = bar.add_task("pre-training", total=steps, text="")
        told = 0.0
        while True:
            done = sum(f.done() for f in futures)
            states = [(_last(job), f, job) for f, job in futures.items()]
            reached = sum(job.steps if f.done() else int(last.get("step", 0)) for last, f, job in states)
            active = "  ".join(f"{job.folder.name} loss {last['loss']:.3g}" for last, f, job in states
                               if not f.done() and "loss" in last)
            bar.update(task, completed=reached, text=active)
            if progress and not lively and (time.monotonic() - told > 10 or done == total):
                told = time.monotonic()
                print(f"  pre-training {done}/{total} runs, {100 * reached // max(1, steps)} %  {active}",
                      file=sys.stderr, flush=True)
            if done == total:
                return
            time.sleep(0.3)


def _last(job: Job) -> dict[str, Any]:
    """The newest line of a run's metrics, or nothing."""
    file = job.folder / "metrics.jsonl"
    try:
        with open(file, "rb") as handle:
            handle.seek(max(0, file.stat().st_size - 4096))
            lines = handle.read().decode(errors="replace").strip().splitlines()
        return dict(json.loads(lines[-1]))
    except (OSError, ValueError, IndexError):
        return {}
