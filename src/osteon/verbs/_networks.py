"""Arms that train a whole network on labels, from scratch or from given weights, several at a time."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from osteon.backbones import Backbone, build_backbone
from osteon.core import registry
from osteon.data import Dataset
from osteon.parts.surgery import apply_edits
from osteon.parts.types import DataSpec, Step
from osteon.train.loop import Engine, make_fabric
from osteon.train.settings import resolve_settings
from osteon.verbs._arms import Arm, Task, make_arm
from osteon.verbs._model import recipe_of, resized
from osteon.verbs._pool import call_alone, cores, workers
from osteon.views import normalise

#: least share of an image that a random crop leaves
CROP = 0.6
#: the largest batch of supervised training; smaller label sets are one batch
BATCH = 64


@dataclass
class Work:
    """One supervised training, complete in itself so that another process can do it.

    Args:
        backbone: what builds it: see :func:`osteon.verbs._model.recipe_of`.
        state: initial weights.
        data: what the images look like, with the classes or the scale of the targets.
        images: (N, C, S, S) as stored.
        labels: (N,) or (N, K); or targets (N,), in their own unit.
        exam: file of the images to be scored, as stored, (V + M, C, S, S).
        steps: optimiser steps.
        seed: key of all randomness.
        flip: mirror images at random.
    """

    backbone: dict[str, Any]
    state: dict[str, np.ndarray]
    data: DataSpec
    images: np.ndarray
    labels: np.ndarray
    exam: str
    steps: int
    seed: int
    flip: bool


def network_arms(name: str, kind: str, evaluator: str, make: Callable[[int], tuple[Backbone, DataSpec]], task: Task,
                 *, steps: int, say: Callable[[str], None]) -> list[Arm]:
    """Train networks on the labels of every budget and seed, one process a core.

    Args:
        name: what is shown.
        kind: ``"pretrained"`` or ``"control"``.
        evaluator: ``"from scratch"`` or ``"fine-tuned"``.
        make: seed -> a network with its initial weights, and the statistics it normalises by.
        task: the labelled task.
        steps: optimiser steps of each training.
        say: told what goes on.
    """
    label = name if evaluator == "from scratch" else f"{name} + {evaluator}"
    places = [(b, seed) for b in range(len(task.budgets)) for seed in range(len(task.subsets))]
    with tempfile.TemporaryDirectory(prefix="osteon-") as folder:
        exam = Path(folder) / "exam.npy"
        _, spec = make(0)
        held = task.train.subset(task.held_out)
        np.save(exam, np.concatenate([as_stored(held, spec), as_stored(task.test, spec)]), allow_pickle=False)
        works = {place: _work(make, task, *place, str(exam), steps) for place in places}
        scores, seconds = _do(label, works, task, say)
    return [make_arm(label, kind, name, evaluator, budget, [[scores[b, s]] for s in range(len(task.subsets))], task,
                     time.perf_counter() - sum(seconds[b, s] for s in range(len(task.subsets))))
            for b, budget in enumerate(task.budgets)]


def _work(make: Callable[[int], tuple[Backbone, DataSpec]], task: Task, budget: int, seed: int, exam: str,
          steps: int) -> Work:
    network, spec = make(seed)
    rows = task.subsets[seed][0][budget]
    return Work(recipe_of(network),
                {k: v.detach().cpu().numpy() for k, v in network.state_dict().items()},
                task.spec_of(spec, rows), as_stored(task.train.subset(rows), spec), task.train_y[rows], exam, steps,
                seed, task.flip)


def _do(label: str, works: dict[tuple[int, int], Work], task: Task,
        say: Callable[[str], None]) -> tuple[dict[tuple[int, int], np.ndarray], dict[tuple[int, int], float]]:
    """Do all the work: in this process on a GPU or a single core, else in a pool; the result is the same."""
    scores: dict[tuple[int, int], np.ndarray] = {}
    seconds: dict[tuple[int, int], float] = {}

    def done(place: tuple[int, int], result: tuple[np.ndarray, float]) -> None:
        scores[place], seconds[place] = result
        say(f"{label}: {task.budgets[place[0]]} labels, seed {place[1] + 1} of {len(task.subsets)} "
            f"({len(scores)}/{len(works)}, {result[1]:.0f} s)")

    if torch.cuda.is_available() or cores() == 1 or len(works) == 1:
        for place, work in works.items():
            done(place, train_and_score(work))
        return scores, seconds
    with workers(min(cores(), len(works))) as pool:
        futures = {pool.submit(call_alone, train_and_score, {"work": work}): place for place, work in works.items()}
        for future in as_completed(futures):
            done(futures[future], future.result())
    return scores, seconds


def train_and_score(work: Work) -> tuple[np.ndarray, float]:
    """Supervised training by one plain recipe: scores (V + M, K), or numbers (V + M,), of the exam, and the seconds.

    Views are random crops (and mirrored where allowed), the batch is 64 or all labels if they are fewer. The same
    recipe serves training from scratch and fine-tuning, so that only the initial weights differ.
    """
    begun = time.perf_counter()
    torch.manual_seed(work.seed)
    made = work.backbone
    network = build_backbone(made["name"], channels=made["channels"], size=made["size"], **made["options"])
    apply_edits(network, made.get("edits", []))
    network.load_state_dict({k: torch.from_numpy(v) for k, v in work.state.items()})
    method = registry.build("objective", "supervised", network, work.data, **plain_views(work.data, work.flip))
    count = len(work.images)
    batch = min(BATCH, count)
    settings, _ = resolve_settings({"steps": work.steps, "batch_size": batch, "seed": work.seed, "precision": "32"},
                                   method.recipe, max(2, count), kind=network.kind)
    engine = Engine(method.train(), settings, make_fabric("32"))
    images, (key, labels) = torch.from_numpy(work.images), labels_for(work.labels, work.data)
    for index, rows in enumerate(epochs_of_rows(count, batch, work.steps, work.seed)):
        at = torch.from_numpy(rows)
        sample = {work.data.modality: images[at], key: labels[at], "index": at}
        engine.run({k: v.to(engine.fabric.device) for k, v in sample.items()}, Step(index, work.steps, work.seed))
    method.eval()
    exam = np.load(work.exam, mmap_mode="r", allow_pickle=False)
    out = []
    for start in range(0, len(exam), 512):
        x = normalise(torch.from_numpy(np.array(exam[start:start + 512])).to(engine.fabric.device), work.data)
        out.append(method.predict(x).cpu().numpy())
    return np.concatenate(out), time.perf_counter() - begun


def labels_for(y: np.ndarray, data: DataSpec) -> tuple[str, Tensor]:
    """The name under which a batch holds what is to be learned, and that: classes, or targets (N,) in deviations."""
    if data.target is None:
        return "label", torch.from_numpy(y)
    mean, scale = data.target
    return "target", torch.from_numpy(((y - mean) / scale).astype(np.float32))


def plain_views(spec: DataSpec, flip: bool) -> dict[str, Any]:
    """Options of the views of plain supervised training: random crops, images mirrored where allowed."""
    return {"flip": flip, "crop_min": CROP} if spec.modality == "image" else {}


def epochs_of_rows(count: int, batch: int, steps: int, seed: int) -> Sequence[np.ndarray]:
    """Rows of every step: epochs of shuffled rows, whole batches only."""
    rng = np.random.default_rng(seed)
    batches: list[np.ndarray] = []
    while len(batches) < steps:
        shuffled = rng.permutation(count)
        batches += [shuffled[i:i + batch] for i in range(0, count - batch + 1, batch)]
    return batches[:steps]


def as_stored(dataset: Dataset, spec: DataSpec) -> np.ndarray:
    """Samples of a data set at the model's size and value range, not normalised: views and scoring do that."""
    x: Tensor = resized(dataset.batch(np.arange(len(dataset)))[spec.modality], spec)
    return (x if dataset.spec.scale == spec.scale else x.float() / dataset.spec.scale * spec.scale).numpy()


def fresh(like: Backbone, seed: int) -> Backbone:
    """An untrained network of the same make."""
    torch.manual_seed(10_000 + seed)
    return build_backbone(like.name, channels=like.channels, size=like.size, **like.options)
