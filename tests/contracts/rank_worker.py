"""One of two processes of `test_ranks`: computes every objective's gradient on its half of the batch."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from osteon.core.tensorfile import write_tensors
from osteon.train.loop import Engine, make_fabric
from tests.contracts.objective_kit import batch, make, pairs
from tests.contracts.test_objectives import settings
from tests.contracts.test_ranks import ROWS, STARTS, gradients


def main() -> None:
    """Write the averaged gradients from rank 0."""
    torch.set_num_threads(1)
    fabric = make_fabric("32")
    half = ROWS // 2
    found: dict[str, torch.Tensor] = {}
    for name, backbone in pairs():
        for start in STARTS:
            method = make(name, backbone).train()
            work = Engine(method, settings(method, batch_size=ROWS), fabric)
            part = gradients(name, backbone, work, batch(half, start + fabric.global_rank * half))
            found |= {f"{start}/{key}": value for key, value in part.items()}
    if fabric.global_rank == 0:
        write_tensors(Path(sys.argv[1]) / "gradients.safetensors", found, {})
    torch.distributed.barrier()


if __name__ == "__main__":
    main()
