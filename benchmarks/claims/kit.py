"""What the claims share: real data, a record of what was measured, and honest printing."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric

from osteon.backbones import Backbone
from osteon.core import registry
from osteon.data import Dataset, Loader, open_source
from osteon.parts.objective import Objective
from osteon.parts.types import Step
from osteon.train.loop import Engine
from osteon.train.settings import TrainSettings, resolve_settings
from osteon.verbs._arms import Task
from osteon.verbs._model import extract
from osteon.verbs._networks import network_arms

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("OSTEON_DATA", ROOT.parent / "shared" / "data"))


@dataclass
class Record:
    """What a claim's run prints and keeps.

    Args:
        number: the paper's number.
        claim: the paper's claim, in one sentence.
        protocol: data, network, steps, seeds.
        threshold: what must hold, fixed before the run.
    """

    number: int
    claim: str
    protocol: str
    threshold: str
    lines: list[str] = field(default_factory=list)
    checks: list[tuple[str, bool]] = field(default_factory=list)
    begun: float = field(default_factory=time.perf_counter)

    def say(self, text: str) -> None:
        """Print a measured line and keep it."""
        print(text, flush=True)
        self.lines.append(text)

    def check(self, text: str, holds: bool) -> None:
        """Compare with the threshold; a claim that fails is printed as such."""
        self.checks.append((text, bool(holds)))
        self.say(f"{'holds' if holds else 'DOES NOT HOLD'}: {text}")

    def markdown(self) -> str:
        """The page in docs/evidence."""
        holds = all(ok for _, ok in self.checks) and bool(self.checks)
        return "\n".join([
            f"# Claim {self.number}: {'holds' if holds else 'does not hold'} at this scale", "",
            f"Regenerate with `python -m benchmarks.claims {self.number}`.", "", f"**Paper:** {self.claim}", "",
            f"**Protocol:** {self.protocol}", "", f"**Threshold:** {self.threshold}", "", "```",
            *self.lines, f"{time.perf_counter() - self.begun:.0f} seconds, {platform.machine()}, "
            f"{torch.get_num_threads()} threads, torch {torch.__version__}", "```", ""])


def cifar(part: str, limit: int | None = None) -> Dataset:
    """CIFAR-10 ``train`` or ``test``, by choice a fixed random part of it."""
    return open_source(DATA / "cifar10" / f"{part}.parquet", limit=limit)


def fit(method: Objective, dataset: Dataset, *, steps: int = 0, minutes: float = 0.0,
        watch: Callable[[str], None] | None = None, **wishes: object) -> TrainSettings:
    """Train by osteon's engine: for ``steps``, or for as many as ``minutes`` hold by a short probe.

    The probe's weights are thrown away, so that time decides the length of the schedule and nothing else.
    """
    if minutes:
        state = {k: v.clone() for k, v in method.state_dict().items()}
        settings, _ = resolve_settings({**wishes, "steps": 10}, method.recipe, len(dataset), kind=method.backbone.kind)
        began = time.process_time()  # of an otherwise idle machine: what else runs must not decide
        _loop(method, dataset, settings)
        steps = max(10, int(minutes * 60 * torch.get_num_threads() / ((time.process_time() - began) / 10)))
        method.load_state_dict(state)
    settings, _ = resolve_settings({**wishes, "steps": steps}, method.recipe, len(dataset), kind=method.backbone.kind)
    _loop(method, dataset, settings, watch)
    return settings


def _loop(method: Objective, dataset: Dataset, settings: TrainSettings,
          watch: Callable[[str], None] | None = None) -> None:
    engine = Engine(method.train(), settings, Fabric(accelerator="cpu", devices=1))
    batches = Loader(dataset, settings.batch_size, settings.seed).iterate(0, settings.steps)
    for index, batch in enumerate(batches):
        loss, _, _ = engine.run(batch, Step(index, settings.steps, settings.seed))
        if watch and index % max(1, settings.steps // 10) == 0:
            watch(f"  step {index}/{settings.steps} loss {float(loss.total):.3f}")


def knn(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray) -> float:
    """k-NN accuracy in per cent (k = 20, cosine after centring)."""
    scores = registry.build("evaluator", "knn")(train_x, train_y, test_x, classes=int(train_y.max()) + 1)
    return 100 * float((scores.argmax(1) == test_y).mean())


def probe(train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray) -> float:
    """Linear-probe accuracy in per cent."""
    scores = registry.build("evaluator", "linear_probe")(train_x, train_y, test_x, classes=int(train_y.max()) + 1)
    return 100 * float((scores.argmax(1) == test_y).mean())


def features(backbone: Backbone, dataset: Dataset, like: Dataset) -> np.ndarray:
    """Pooled features, normalised by the statistics of the training data."""
    return extract(backbone, dataset, like.spec)


def pixels(dataset: Dataset) -> np.ndarray:
    """Raw inputs as features."""
    x = dataset.batch(np.arange(len(dataset)))["image"].float().numpy()
    return x.reshape(len(x), -1) / dataset.spec.scale


def spread(values: Sequence[float]) -> str:
    """Mean and every seed."""
    return f"{np.mean(values):.1f} ({', '.join(f'{v:.1f}' for v in values)})"


def accuracy(name: str, networks: Mapping[int, Backbone], task: Task, steps: int,
             say: Callable[[str], None]) -> list[float]:
    """Test accuracy in per cent, a seed each, after supervised training of the whole network on the seed's labels."""
    (arm,) = network_arms(name, "control", "from scratch", lambda seed: (networks[seed], task.train.spec), task,
                          steps=steps, say=say)
    return [100 * float(value) for value in arm.quality.mean(1)]
