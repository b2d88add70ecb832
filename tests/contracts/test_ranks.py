"""Two gloo processes give the gradient of one process at the same global batch, for every objective."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from osteon.core.tensorfile import read_tensors
from osteon.parts.types import Step
from tests.contracts.objective_kit import assert_same_gradient, batch, make, pairs
from tests.contracts.test_objectives import engine

ROWS = 16
#: First samples of the batches that are tried. A rectifier whose input is within rounding of zero may open in one
#: process and stay shut in two, which changes the gradient of what lies before it by a per cent or two; another batch
#: has no such input. So every batch must agree roughly, and one of them to rounding; a gradient that is wrong by its
#: formula does neither.
STARTS = (0, 64)


def gradients(name: str, backbone: str, work, data) -> dict[str, torch.Tensor]:
    """Gradient of one step after averaging over ranks."""
    work.gradients(data, Step(1, 6, 3))
    work.average_gradients()
    return {f"{name}/{backbone}/{n}": p.grad.clone() for n, p in work.named if p.grad is not None}


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory) -> dict[str, torch.Tensor]:
    """Gradients of every objective from two processes with half the batch each."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = Path(__file__).parents[2]
    common = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
              "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    children = [subprocess.Popen([sys.executable, "-m", "tests.contracts.rank_worker", str(folder)], cwd=root,
                                 env={**common, "RANK": str(r), "LOCAL_RANK": str(r)}, stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT, text=True) for r in range(2)]
    output = [c.communicate(timeout=600)[0] for c in children]
    assert all(c.returncode == 0 for c in children), output[0][-3000:] + output[1][-3000:]
    return read_tensors(folder / "gradients.safetensors")[0]


@pytest.mark.parametrize(("name", "backbone"), pairs(), ids=lambda v: v)
def test_two_processes_give_the_gradient_of_one(name, backbone, two_ranks):
    for start in STARTS:
        found = {k.removeprefix(f"{start}/"): v for k, v in two_ranks.items() if k.startswith(f"{start}/")}
        alone = gradients(name, backbone, engine(make(name, backbone), batch_size=ROWS), batch(ROWS, start))
        assert_same_gradient(found, alone, share=5e-2)
        try:
            return assert_same_gradient(found, alone)
        except AssertionError:
            if start == STARTS[-1]:
                raise
