"""A tournament that is killed, or done by two processes at once, ends with the table of an undisturbed one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from osteon.recipes import Recipe
from osteon.verbs.compare import compare
small = {"flip": False, "batch_size": 16, "backbone.depth": 1, "backbone.dim": 16, "backbone.heads": 1}
recipes = [Recipe("simclr", "simclr", "vit_tiny", {**small, "out": 16}, {"lr_scale": (1.0, 0.3)}),
           Recipe("mae", "mae", "vit_tiny", {**small, "decoder_depth": 1})]
folder, out, workers = sys.argv[1:4]
if __name__ == "__main__":
    compare(f"{folder}/source.npz", train=f"{folder}/train.npz", test=f"{folder}/test.npz", recipes=recipes,
            budget="24steps", seeds=2, metrics=("knn",), label_budget=(20,), trials=2, workers=int(workers),
            progress=False, leaks="allow", out=out, settings={"checkpoint_every": 3})
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("data")
    digits = load_digits()
    images = (digits.images / 16 * 255).round().astype(np.uint8)[..., None]
    for name, rows in (("source", slice(0, 150)), ("train", slice(150, 250)), ("test", slice(250, 330))):
        np.savez(folder / f"{name}.npz", image=images[rows], label=digits.target[rows])
    (folder / "script.py").write_text(SCRIPT)
    return folder


def start(folder: Path, out: Path, workers: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OSTEON_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, str(folder / "script.py"), str(folder), str(out), str(workers)],
                            env=environment, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said.decode()


def scores(out: Path) -> dict[str, Any]:
    """All of the table but times and steps paid for by them."""
    result = json.loads((out / "tournament.json").read_text())
    return {"arms": [{k: v for k, v in a.items() if k != "wall_s"} for a in result["arms"]],
            **{k: result[k] for k in ("ranking", "comparisons", "halving", "crashed")},
            "costs": [(c["name"], c["steps"], c["flop"]) for c in result["costs"]],
            "verdict": result["verdict"]["sentence"]}


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("u") / "t"
    finish(start(folder, out, 1))
    return scores(out)


def kill_after(process: subprocess.Popen[bytes], out: Path, jobs: int, delay: float) -> bool:
    """Kill -9 a moment after so many jobs are done; False when the process ended before."""
    while process.poll() is None:
        if len(list((out / "jobs").glob("*.json"))) >= jobs:
            time.sleep(delay)
            break
        time.sleep(0.01)
    ended = process.poll() is not None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return not ended


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "places"), [(1, (0, 5, 10)), (2, (4,))])
def test_killing_at_random_moments_changes_nothing(folder, undisturbed, tmp_path, workers, places):
    rng = np.random.default_rng(workers)
    out = tmp_path / "t"
    killed = sum(kill_after(start(folder, out, workers), out, int(rng.integers(k, k + 4)), float(rng.uniform(0, 0.4)))
                 for k in places)
    assert killed == len(places)
    finish(start(folder, out, workers))
    assert scores(out) == undisturbed


@pytest.mark.slow
def test_two_processes_on_one_study_share_the_work_and_agree(folder, undisturbed, tmp_path):
    out = tmp_path / "t"
    both = [start(folder, out, 1) for _ in range(2)]
    for process in both:
        finish(process)
    assert scores(out) == undisturbed
