"""A few real steps of a run in a process of its own, and what they took. Everything it makes is thrown away."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from osteon.core.errors import OsteonError

#: first steps of a probe, in which caches fill and kernels are chosen: not counted
WARM = 3
#: bytes of a mapped file the system reads around each page that is asked for
READ_AROUND = 65536


@dataclass(frozen=True)
class Probe:
    """What some steps took.

    Args:
        batch_size: samples a step.
        step: seconds a step, after warming up.
        start: seconds before the first step: imports, opening the data, building networks, a guard's first look.
        save: seconds a checkpoint.
        finish: seconds after the last step: the model, the report's pictures, the report.
        look: seconds a look of the guard; 0 where there is none.
        memory: bytes at the peak.
        unread: bytes of mapped image files that the probe did not touch and a whole run will.
        flop: of one step, by share (see :class:`osteon.parts.flops.StepCost`); empty for a short probe.
        config: the resolved settings.
        notes: every automatic choice with its rule.
        facts: what else is known of the run: parameters, device, looks of the guard.
    """

    batch_size: int
    step: float
    start: float
    save: float
    finish: float
    look: float
    memory: int
    unread: int
    flop: dict[str, int]
    config: dict[str, Any]
    notes: list[str]
    facts: dict[str, Any]


class ProbeKilled(OsteonError):
    """The probe's process ended without a word, or ran out of memory: too much for this machine."""

    code = 2


def probe(arguments: Mapping[str, Any], *, steps: int, brief: bool = False) -> Probe:
    """Do some steps of ``osteon pretrain`` in a fresh process.

    Args:
        arguments: of :func:`osteon.verbs.pretrain.prepare`, without ``say``.
        steps: how many.
        brief: only the steps and their memory: no operations, no report.

    Raises:
        ProbeKilled: out of memory.
        OsteonError: what pre-training itself would raise.
    """
    from osteon.verbs._pool import _main_not_repeated

    with _main_not_repeated(), ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, dict(arguments), steps, brief, time.time()).result()
        except BrokenProcessPool as error:
            raise ProbeKilled("The probe's process was ended by the system, most likely because memory ran out.",
                              where=f"batch size {arguments.get('batch_size') or 'as by default'}",
                              fix="Use a smaller --batch-size or backbone.") from error


def _measure(arguments: dict[str, Any], steps: int, brief: bool, asked: float) -> Probe:
    """Runs in the process of the probe."""
    import torch

    try:
        with tempfile.TemporaryDirectory(prefix="osteon-plan-") as folder:
            return _steps(arguments, steps, brief, asked, Path(folder))
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError) and not any(
                words in str(error) for words in ("not enough memory", "can't allocate memory")):
            raise
        batch = arguments.get("batch_size") or "as by default"
        raise ProbeKilled("The probe ran out of memory.", where=f"batch size {batch}",
                          fix="Use a smaller --batch-size or backbone.") from None


def _steps(arguments: dict[str, Any], steps: int, brief: bool, asked: float, folder: Path) -> Probe:
    import torch

    from osteon.core.run import RunFolder
    from osteon.train.loggers import make_loggers
    from osteon.train.loop import make_fabric, train
    from osteon.verbs.pretrain import keep, page, prepare

    made = prepare(**arguments, say=_mute)
    # Of a curriculum the last stage is probed, which is the largest; its time is then scaled by the operations.
    settings, run = replace(made.training, curriculum="none"), RunFolder(folder / "probe")
    fabric = make_fabric(settings.precision)
    steps = min(steps, settings.steps)
    times: list[float] = []
    logs = make_loggers(("jsonl",), run)

    def log(step: int, values: Mapping[str, float]) -> None:
        for logger in logs:
            logger.log(step, values)

    with run.lock():
        run.create_or_resume(made.config)
        begun = time.time()
        train(made.method, made.dataset, run, settings, fabric=fabric, until=steps, say=_mute, guard=made.guard,
              watch=lambda _done, _values: times.append(time.time()), log=log)
        trained = time.time()
        if not brief:
            keep(made, run, steps)
            page(made, run, _mute)
        finished = time.time()
    memory = peak_memory()
    flop, share = ({}, 1.0) if brief else _flop(made, fabric)
    gaps = np.diff([begun, *times])
    look = 0.0 if made.guard is None or not made.guard.looks else made.guard.seconds / made.guard.looks
    facts = {"parameters": sum(p.numel() for p in made.method.backbone.parameters()),
             "trained": sum(p.numel() for p in made.method.parameters() if p.requires_grad),
             "device": str(fabric.device), "threads": torch.get_num_threads(), "samples": len(made.dataset),
             "guard_looks": 0 if made.guard is None else 1 + -(-settings.steps // made.guard.every)}
    return Probe(settings.batch_size, share * _typical(gaps), begun - asked + max(0.0, gaps[0] - _typical(gaps) - look),
                 max(0.0, trained - times[-1]), finished - trained, look, memory,
                 _unread(made.dataset.images, steps * settings.batch_size), flop, made.config, made.notes, facts)


def _flop(made: Any, fabric: Any) -> tuple[dict[str, int], float]:
    """Of the mean step by share, and what it costs in steps of full size: 1 without a curriculum."""
    from osteon.data import Loader
    from osteon.parts.flops import count_run
    from osteon.train.loop import Engine

    settings = made.training
    made.method.train()
    batch = Loader(made.dataset, settings.batch_size, settings.seed).at(0)
    batch = {k: v.to(fabric.device) for k, v in batch.items()}
    cost = count_run(Engine(made.method, settings, fabric), batch, settings.steps, settings.seed)
    if settings.curriculum == "none":
        return cost.as_dict(), 1.0
    full = Engine(made.method, replace(settings, curriculum="none"), fabric)
    return cost.as_dict(), cost.total / count_run(full, batch, settings.steps, settings.seed).total


def _typical(gaps: np.ndarray) -> float:
    """Mean seconds of a step without the first ones; none counts for more than three times the median.

    A mean, since slow steps belong to the run; a bound, since one hiccup among 20 would be taken for a habit.
    """
    warm = gaps[WARM:] if len(gaps) > WARM + 1 else gaps[-1:]
    return float(np.minimum(warm, 3 * np.median(warm)).mean())


def _unread(images: np.ndarray, rows: int) -> int:
    """Bytes of a memory-mapped array that reading so many random rows leaves untouched."""
    base: Any = images
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    if not isinstance(base, np.memmap):
        return 0
    each = images.nbytes / max(1, len(images))
    chance = 1.0 - max(each, READ_AROUND) / max(images.nbytes, READ_AROUND)
    return int(images.nbytes * max(0.0, chance) ** rows)


def peak_memory() -> int:
    """Most memory this process held: of the GPU's allocator where there is one, else resident. In bytes."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    try:
        # Not getrusage: what it gives is inherited from the parent.
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def free_memory() -> tuple[int, str]:
    """Bytes that can be had without swapping, and whose they are: the GPU's, the container's or the machine's."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0]), "free on the GPU"
    found = []
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                found.append((int(line.split()[1]) * 1024, "available on this machine"))
        group = Path("/sys/fs/cgroup")
        most = (group / "memory.max").read_text(encoding="ascii").strip()
        if most != "max":
            used = int((group / "memory.current").read_text(encoding="ascii"))
            found.append((int(most) - used, "left in this container"))
    except (OSError, ValueError):
        pass
    if found:
        return min(found)
    return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) // 2, "half of this machine's"


def _mute(_text: str) -> None:
    """Say nothing."""
