"""Where a run came from: software, hardware, code, data and initial weights, to be kept beside the weights."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from osteon.core.plain import changes

#: Packages whose version is recorded where they are installed.
PACKAGES = ("osteon", "torch", "torchvision", "numpy", "lightning-fabric", "safetensors", "pillow", "scikit-learn",
            "scipy", "pyarrow", "timm", "transformers", "datasets")


def collect(extra: Mapping[str, Any] | None = None, *, data_fingerprint: str | None = None,
            initial_weights: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """What is needed to understand, and repeat, a run.

    Args:
        extra: further entries; they win over the collected ones.
        data_fingerprint: fingerprint of the data set.
        initial_weights: one entry a source of weights the run starts from: ``name``, ``license``, ...

    Returns:
        JSON-ready dict: ``time`` (UTC), ``command``, ``versions``, ``platform``, ``cpu``, ``threads``, ``ranks``,
        ``accelerators``, ``git``, ``data_fingerprint``, ``initial_weights``.
    """
    weights = [{"license": "unknown", **entry} for entry in initial_weights]
    return {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": shlex.join([Path(sys.argv[0]).name or "python", *sys.argv[1:]]),
            "versions": versions(),
            "platform": platform.platform(),
            "cpu": {"name": cpu_name(), "count": os.cpu_count(), "usable": _usable()},
            "threads": _threads(),
            "ranks": int(os.environ.get("WORLD_SIZE", "1")),
            "accelerators": _accelerators(),
            "git": git_state(),
            "data_fingerprint": data_fingerprint,
            "initial_weights": weights,
            **(extra or {})}


#: entries that may differ between two runs of equal bits
_FREE = frozenset({"time", "command", "notes", "resumed", "usable"})


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """What may explain that two runs of one seed differ: ``(entry, first's, second's)``, nested names with dots.

    Args:
        first, second: what :func:`collect` gave, or ``provenance.json`` holds.
    """
    return [(name, old, new) for name, old, new in changes(dict(first), dict(second), free=frozenset())
            if not _FREE & set(name.split("."))]


def compare_runs(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> list[tuple[str, Any, Any]]:
    """How two run folders differ: settings first, then versions, machine, code, data and initial weights.

    Raises:
        DataError: one of them is no run folder.
    """
    from osteon.core.run import RunFolder

    runs = [RunFolder(first), RunFolder(second)]
    return [*changes(runs[0].config(), runs[1].config()), *differences(*(run.provenance() for run in runs))]


def told(different: Sequence[tuple[str, Any, Any]]) -> str:
    """Differences in words, most telling first: at most eight."""
    shown = [f"{name} {old} -> {new}" for name, old, new in different[:8]]
    return ", ".join(shown) + (f" and {len(different) - 8} more" if len(different) > 8 else "")


def versions() -> dict[str, str]:
    """Version of Python and of every installed package of :data:`PACKAGES`, without importing any."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip().lower() in ("model name", "hardware") and value.strip():
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _threads() -> int | None:
    """Threads that share a sum: another number rounds otherwise; None when torch was not needed so far."""
    torch = sys.modules.get("torch")
    return None if torch is None else int(torch.get_num_threads())


def _usable() -> int:
    """Cores this process may run on (a container often has fewer than the machine)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _accelerators() -> list[str]:
    """Names of the GPUs; empty when torch was not needed so far."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def git_state(folder: str | os.PathLike[str] = ".") -> dict[str, Any] | None:
    """Commit of a folder's repository and whether files differ from it; None outside of any."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "modified": None if changes is None else bool(changes)}


def _git(folder: str | os.PathLike[str], *words: str) -> str | None:
    # Without optional locks, looking at a repository never disturbs somebody working in it.
    env = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(["git", "-C", os.fspath(folder), *words], capture_output=True, text=True, timeout=5,
                              check=False, env=env, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
