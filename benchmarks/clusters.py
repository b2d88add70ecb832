"""One tournament on every engine there is: ``python -m benchmarks.clusters [ENGINE ...]``.

The same small ``osteon compare`` on scikit-learn's digits by processes of this machine, by SLURM where ``sbatch`` is
found, and by Ray where it is installed. On a cluster it is run undisturbed, with a job killed while it runs, and with
the command itself killed and the folder continued by local processes. The table must be that of the local engine every
time, to the last digit; times are left out.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.claims.kit import ROOT

#: seconds after which a tournament that should take one minute is given up
PATIENCE = 600
#: where jobs of this benchmark are looked for
RUNNING: dict[str, list[str]] = {"slurm": ["squeue", "--noheader", "--states=RUNNING", "--name=osteon", "--format=%i"],
                                 "ray": ["pgrep", "-f", "^ray::perform"]}


def sources(folder: Path) -> list[str]:
    """Digits in three disjoint parts: 1,000 without use of their labels, 300 with, 497 to test on."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images * 15).astype(np.uint8)[..., None]
    parts = {"source": slice(0, 1000), "train": slice(1000, 1300), "test": slice(1300, None)}
    for name, rows in parts.items():
        np.savez(folder / f"{name}.npz", image=images[rows], label=digits.target[rows])
    return [str(folder / "source.npz"), "--train", str(folder / "train.npz"), "--test", str(folder / "test.npz")]


def start(data: list[str], out: Path, engine: str) -> subprocess.Popen[bytes]:
    """Begin the tournament, or go on with it."""
    return subprocess.Popen([sys.executable, "-m", "osteon", "compare", *data, "--recipes", "simclr,mae", "--budget",
                             "30steps", "--trials", "1", "--seeds", "2", "--label-budget", "50,all", "--out", str(out),
                             "--engine", engine, "--workers", "2"],
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})


def outcome(out: Path) -> dict[str, Any]:
    """What the tournament found, without times."""
    found = json.loads((out / "tournament.json").read_text(encoding="utf-8"))
    arms = [{k: v for k, v in arm.items() if not k.endswith("_s")} for arm in found["arms"]]
    return {"arms": arms, "verdict": found["verdict"]["numbers"], "ranking": found["ranking"],
            "crashed": found["crashed"]}


def kill_a_job(engine: str, command: subprocess.Popen[bytes]) -> str:
    """SIGKILL to the first job that has been running for a moment."""
    seen = ""
    while command.poll() is None:
        listed = subprocess.run(RUNNING[engine], capture_output=True, text=True).stdout.split()
        if seen and seen in listed:
            if engine == "slurm":
                subprocess.run(["scancel", "--signal=KILL", "--full", seen], check=True)
            else:
                os.kill(int(seen), signal.SIGKILL)
            return f"job {seen}"
        seen = listed[0] if listed else ""
        time.sleep(0.5)
    return "NOTHING: no job was seen in time"


def kill_the_command(engine: str, command: subprocess.Popen[bytes], out: Path) -> str:
    """SIGKILL to the command once some jobs have results."""
    while command.poll() is None:
        if len(list((out / "jobs").glob("*.json"))) >= 4:
            command.kill()
            command.wait()
            return "the command"
        time.sleep(0.2)
    return "NOTHING: the command was quicker"


def attempt(what: str, engine: str, data: list[str], out: Path, expected: dict[str, Any]) -> tuple[str, bool]:
    """One tournament, disturbed or not; a row of the table, and whether it was as expected."""
    begun = time.perf_counter()
    command, killed = start(data, out, engine), "nothing"
    try:
        if what == "job killed":
            killed = kill_a_job(engine, command)
        elif what == "command killed, continued locally":
            killed = kill_the_command(engine, command, out)
            command = start(data, out, "local")
        code = command.wait(timeout=PATIENCE)
        same = code == 0 and outcome(out) == expected and not killed.startswith("NOTHING")
    except subprocess.TimeoutExpired:
        code, same = -1, False
    finally:
        command.kill()
    return (f"{engine:6} {what:36} killed: {killed:12} exit {code}, {time.perf_counter() - begun:4.0f} s, "
            f"{'the same table' if same else 'ANOTHER TABLE'}"), same


def main(names: list[str]) -> int:
    """Run what was asked for, or what there is, and write docs/evidence/clusters.md."""
    there: dict[str, Callable[[], bool]] = {"slurm": lambda: shutil.which("sbatch") is not None,
                                            "ray": lambda: find_spec("ray") is not None}
    engines = names or [name for name, check in there.items() if check()]
    absent = [f"{name}: not found here, not run" for name in there if name not in engines]
    lines, good = list(absent), True
    with tempfile.TemporaryDirectory(prefix="osteon-") as scratch:
        folder = Path(scratch)
        data = sources(folder)
        if start(data, folder / "local", "local").wait(timeout=PATIENCE):
            raise SystemExit("The tournament fails on the local engine already.")
        expected = outcome(folder / "local")
        for engine in engines:
            for what in ("undisturbed", "job killed", "command killed, continued locally"):
                line, same = attempt(what, engine, data, folder / f"{engine}-{what[:3]}", expected)
                lines.append(line)
                good &= same
                print(line, flush=True)
    page = ["# Tournaments on clusters", "", "Regenerate with `python -m benchmarks.clusters`.", "",
            "One small `osteon compare` on scikit-learn's digits: two recipes, two seeds, two label budgets. Each row",
            "is compared with the table of the local engine, to the last digit, times left out.", "", "```", *lines,
            "```", "", f"{platform.machine()}, one machine as the whole cluster", ""]
    if not names:
        (ROOT / "docs" / "evidence" / "clusters.md").write_text("\n".join(page), encoding="utf-8")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
