"""``osteon prior``: train a network on generated tables, so that it learns from labelled rows in one pass."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from osteon import __version__
from osteon.backbones.pfn import PFN
from osteon.core.errors import UsageError
from osteon.core.tensorfile import write_tensors
from osteon.parts.priors import RandomNetworks
from osteon.verbs._alone import alone_in
from osteon.verbs._learner import load_learner

#: The file a prior's folder holds.
FILE = "pfn.safetensors"
#: Stretches in which a training is told.
TOLD = 10


@alone_in("out")
def prior(*, out: str | Path, features: int = 16, classes: int = 4, steps: int = 3000, batch_size: int = 16,
          points: int = 128, dim: int = 64, depth: int = 4, heads: int = 4, lr: float = 1e-3, seed: int = 0,
          progress: bool = True) -> Path:
    """Train a prior-data fitted network on tasks of random networks; no data of yours are read.

    Args:
        out: folder to write.
        features: most columns the network will read, categories counted by level; wider tables are projected.
        classes: most classes it will tell apart; 0: it predicts numbers.
        steps: optimiser steps.
        batch_size: tasks a step.
        points: rows of a task, labelled or not.
        dim: width of the network.
        depth: its blocks.
        heads: its attention heads.
        lr: peak of the learning rate.
        seed: of weights and tasks.
        progress: tell what goes on.

    Returns:
        The folder, for ``osteon incontext``.

    Raises:
        UsageError: impossible sizes, or the folder holds a network already.
    """
    folder = Path(out)
    if (folder / FILE).exists():
        raise UsageError("There is a network in this folder already.", where=f"--out {out}",
                         fix="Choose another --out.")
    torch.manual_seed(seed)
    network = PFN(features=features, classes=classes, dim=dim, depth=depth, heads=heads)
    tasks = RandomNetworks(features=features, classes=classes)
    begun = time.perf_counter()

    def watch(step: int, recent: list[float]) -> None:
        if progress and step % max(1, steps // TOLD) == 0:
            print(f"  step {step}/{steps}: {np.mean(recent[-max(1, steps // TOLD):]):.3f} nat a row",
                  file=sys.stderr, flush=True)

    losses = network.fit_prior(tasks, steps=steps, batch=batch_size, points=points, lr=lr, seed=seed, watch=watch)
    meta = {"pfn": network.options, "prior": {"name": "random networks", "features": features, "classes": classes,
                                              "hidden": tasks.hidden, "noise": tasks.noise},
            "steps": steps, "batch_size": batch_size, "points": points, "lr": lr, "seed": seed, "osteon": __version__,
            "loss": float(np.mean(losses[-max(1, steps // TOLD):])), "wall_s": time.perf_counter() - begun}
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / FILE, network.state_dict(), meta)
    return folder


def load_prior(folder: str | Path) -> tuple[PFN, dict[str, Any]]:
    """The network of a folder, in evaluation mode, and what was kept beside it.

    Raises:
        UsageError: the folder holds none.
        DataError: its file is damaged.
    """
    return load_learner(Path(folder) / FILE, PFN, "pfn", what="that was trained on a prior", verb="prior")
