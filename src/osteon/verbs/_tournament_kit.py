"""What the jobs of a tournament share: clocks, and files that a crash leaves old or new."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from osteon.core.atomic import atomic_path
from osteon.verbs._arms import Arm

#: steps that are timed when an arm's price is measured, and seconds after which fewer will do
TIMED, ENOUGH = 9, 10.0


def median_seconds(step: Callable[[int], Any]) -> float:
    """Median seconds of a step, after three that warm up."""
    taken: list[float] = []
    begun = time.perf_counter()
    for i in range(3 + TIMED):
        mark = time.perf_counter()
        step(i)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - mark)
        if len(taken) > 3 and time.perf_counter() - begun > ENOUGH:
            break
    return float(np.median(taken[3:]))


def cpu_seconds() -> float:
    """Processor time of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def features_file(root: Path, run: str) -> Path:
    """Where the features of a run lie."""
    return root / "features" / f"{run}.npz"


def save_arrays(file: Path, **arrays: np.ndarray) -> None:
    """Write arrays so that a crash leaves the old file or the new one."""
    with atomic_path(file) as temporary, open(temporary, "wb") as handle:
        np.savez(handle, **arrays)  # type: ignore[arg-type]


def save_arms(file: Path, arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """Write what every test sample got to ``file``; return the rest."""
    held = [{k: v for k, v in vars(arm).items() if isinstance(v, np.ndarray)} for arm in arms]
    save_arrays(file, **{f"{key}_{i}": value for i, arrays in enumerate(held) for key, value in arrays.items()})
    return [{k: v for k, v in vars(arm).items() if k not in arrays} for arm, arrays in zip(arms, held, strict=True)]


def load_arms(file: Path, rows: Sequence[Mapping[str, Any]]) -> list[Arm]:
    """The arms :func:`save_arms` wrote."""
    with np.load(file, allow_pickle=False) as stored:
        return [Arm(**{**row, **{key: stored[f"{key}_{i}"] for key in ("quality", "targets", "absolute")
                                 if f"{key}_{i}" in stored.files}}) for i, row in enumerate(rows)]
