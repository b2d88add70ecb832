"""``osteon bandit``: train a Transformer to decide in context, and let it play beside the rules of the field."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from osteon import __version__
from osteon.backbones.dpt import DPT
from osteon.core.atomic import write_text
from osteon.core.errors import UsageError
from osteon.core.plain import plain
from osteon.core.tensorfile import write_tensors
from osteon.parts.bandits import GaussianBandits
from osteon.parts.intervals import bootstrap_interval
from osteon.parts.types import Draws, Step
from osteon.report.bandit_page import write_bandit_report
from osteon.verbs._alone import alone_in
from osteon.verbs._learner import load_learner

#: The file of the network in its folder.
FILE = "dpt.safetensors"
#: The network's name in tables.
NAME = "in context (DPT)"
TOLD = 10


@alone_in("out")
def bandit(*, out: str | Path, arms: int = 5, noise: float = 0.5, rounds: int = 60, steps: int = 3000,
           batch_size: int = 64, dim: int = 32, depth: int = 3, heads: int = 1, lr: float = 1e-3, tasks: int = 300,
           seed: int = 0, progress: bool = True) -> dict[str, Any]:
    """Train on logs of generated bandits, then play new ones; a network that lies in the folder already is played.

    Args:
        out: folder for the network, ``bandit.json`` and ``bandit.html``.
        arms: of every task; their means are uniform in [0, 1].
        noise: deviation of a reward about its arm's mean.
        rounds: of a task.
        steps: optimiser steps.
        batch_size: tasks a step.
        dim: width of the network.
        depth: its blocks.
        heads: its attention heads.
        lr: peak of the learning rate.
        tasks: new tasks that are played.
        seed: of weights and training tasks.
        progress: tell what goes on.

    Returns:
        Regret of the network and of every rule, with intervals over tasks; JSON-ready.

    Raises:
        UsageError: impossible sizes, or another network in the folder.
    """
    if tasks < 2:
        raise UsageError(f"{tasks} tasks give no interval.", where="--tasks", fix="Give 2 or more, e.g. 300.")
    folder, bandits = Path(out), GaussianBandits(arms, noise)
    asked = {"arms": arms, "rounds": rounds, "dim": dim, "depth": depth, "heads": heads}
    if (folder / FILE).exists():
        network, meta = load_dpt(folder)
        if network.options != asked or meta["noise"] != noise or meta["steps"] != steps:
            raise UsageError("There is another network in this folder already.", where=f"--out {out}",
                             fix="Choose another --out.")
    else:
        network, meta = _train(folder, asked, bandits, steps, batch_size, lr, seed, progress)
    regret = play_all(network, bandits, tasks)
    result = plain({"arms": [_row(name, values) for name, values in regret.items()], "rounds": rounds, "tasks": tasks,
                    "noise": noise, "network": meta,
                    "curves": {name: values.mean(0).tolist() for name, values in regret.items()},
                    "notes": [f"{tasks} new tasks of {arms} arms with means uniform in [0, 1] and noise {noise:g}; all "
                              "rules play the same tasks; intervals are bootstrapped over tasks",
                              "Thompson sampling knows the prior's mean and variance and the noise"]}, finite=True)
    write_text(folder / "bandit.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    result["report"] = str(write_bandit_report(result, folder / "bandit.html"))
    return dict(result)


def load_dpt(folder: str | Path) -> tuple[DPT, dict[str, Any]]:
    """The network of a folder, in evaluation mode, and what was kept beside it.

    Raises:
        UsageError: the folder holds none.
        DataError: its file is damaged.
    """
    return load_learner(Path(folder) / FILE, DPT, "dpt", what="for bandits", verb="bandit")


def play_all(network: DPT, bandits: GaussianBandits, tasks: int) -> dict[str, np.ndarray]:
    """Cumulative regret (tasks, T) of the network and of every rule on the same new tasks."""
    draws = Draws(Step(0, 1, 987654321), torch.arange(tasks), tasks, name="new tasks")
    means = bandits.means(draws)
    played = {NAME: network.eval().play(bandits, means, draws)}
    played |= {name: bandits.play(means, rule, network.rounds, draws) for name, rule in bandits.rules().items()}
    return {name: values.numpy() for name, values in played.items()}


def summary(result: Mapping[str, Any]) -> str:
    """Regrets in a few lines, least first."""
    lines = [f"cumulative regret after {result['rounds']} rounds, mean of {result['tasks']} new tasks"]
    lines += [f"  {arm['name']:24} {arm['mean']:6.2f} [{arm['low']:.2f}, {arm['high']:.2f}]"
              for arm in sorted(result["arms"], key=lambda a: a["mean"])]
    return "\n".join(lines)


def _train(folder: Path, options: dict[str, int], bandits: GaussianBandits, steps: int, batch: int, lr: float,
           seed: int, progress: bool) -> tuple[DPT, dict[str, Any]]:
    torch.manual_seed(seed)
    network, begun = DPT(**options), time.perf_counter()

    def watch(step: int, recent: list[float]) -> None:
        if progress and step % max(1, steps // TOLD) == 0:
            print(f"  step {step}/{steps}: {np.mean(recent[-max(1, steps // TOLD):]):.3f} nat",
                  file=sys.stderr, flush=True)

    losses = network.fit(bandits, steps=steps, batch=batch, lr=lr, seed=seed, watch=watch)
    meta = {"dpt": network.options, "noise": bandits.noise, "steps": steps, "batch_size": batch, "lr": lr,
            "seed": seed, "osteon": __version__, "loss": float(np.mean(losses[-max(1, steps // TOLD):])),
            "wall_s": time.perf_counter() - begun}
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / FILE, network.state_dict(), meta)
    return network, meta


def _row(name: str, regret: np.ndarray) -> dict[str, Any]:
    last = bootstrap_interval(regret[:, -1])
    return {"name": name, "kind": "pretrained" if name == NAME else "control", "mean": last.mean, "low": last.low,
            "high": last.high}
