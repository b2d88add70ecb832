"""The pieces of work of a tournament, each a function of its folder and plain arguments; the engines call them by name.

None of them decides anything. Files are named after the arm and the seed, so that doing one twice does no harm.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from osteon.backbones import Backbone, build_backbone
from osteon.core import registry
from osteon.core.errors import UsageError
from osteon.core.plain import plain
from osteon.data import Dataset, Loader, open_source
from osteon.modalities import find
from osteon.parts.flops import count_forward, count_step
from osteon.parts.members import spec_from
from osteon.parts.types import DataSpec, Step
from osteon.recipes import LR_SCALE, Recipe
from osteon.train.loop import Engine, make_fabric
from osteon.train.settings import resolve_settings
from osteon.verbs import _tournament_forecast as ahead_jobs
from osteon.verbs._arms import (
    Arm,
    Task,
    feature_arms,
    labelled_arms,
    labelled_controls,
    make_arm,
    make_task,
    quality,
    read,
)
from osteon.verbs._labelled import open_pair
from osteon.verbs._model import Trained, extract, load_trained, public_network
from osteon.verbs._networks import BATCH, Work, as_stored, fresh, labels_for, plain_views, train_and_score
from osteon.verbs._pretrain_settings import DATA_SETTINGS
from osteon.verbs._tournament_ahead import FORECAST, Ahead, open_ahead
from osteon.verbs._tournament_kit import cpu_seconds, features_file, median_seconds, save_arms, save_arrays
from osteon.verbs.pretrain import prepare, pretrain


@dataclass
class Ground:
    """What all arms share, opened once a process.

    Args:
        plan: the tournament as it was asked for.
        recipes: by name.
        source: data of pre-training.
        judged: what networks are judged by.
    """

    plan: dict[str, Any]
    recipes: dict[str, Recipe]
    source: Dataset
    judged: Task | Ahead

    @property
    def task(self) -> Task:
        """The labelled task, of a tournament that has one."""
        assert isinstance(self.judged, Task)
        return self.judged


def ground(root: Path) -> Ground:
    """Open what the tournament in this folder works on."""
    return _ground((root / "plan.json").read_text(encoding="utf-8"))


@lru_cache(maxsize=2)
def _ground(text: str) -> Ground:
    plan = json.loads(text)
    asked = plan["asked"]
    source = open_source(asked["source"], **{**DATA_SETTINGS, **plan["data"]})
    recipes = {r["name"]: Recipe(**r) for r in plan["recipes"]}
    if asked.get("task") == FORECAST:
        return Ground(plan, recipes, source, open_ahead(source, asked["horizon"], asked["seeds"]))
    train, test = open_pair(asked["train"], asked["test"], source.spec, asked.get("task", "auto"), asked.get("target"))
    if plan["test_rows"] is not None:
        test = test.subset(np.asarray(plan["test_rows"], dtype=np.int64))
    task = make_task(train, test, asked["label_budget"], asked["seeds"], flip=plan["flip"])
    return Ground(plan, recipes, source, task)


# -- what an arm costs -------------------------------------------------------------------------------------------------

def probe(root: Path, *, recipe: str) -> dict[str, Any]:
    """Measure what one step of a recipe, of its network's supervised training, and of reading features cost.

    Returns:
        ``backbone`` (name, options; of forecasts also the data it reads), ``lr``, ``batch_size``, and prices
        ``{"flop", "seconds"}``: ``step``, ``image`` (reading features), ``supervised`` (one for each label budget).
    """
    g = ground(root)
    chosen = g.recipes[recipe]
    made = prepare(g.plan["asked"]["source"], objective=chosen.objective, backbone=chosen.backbone, steps=1000,
                   epochs=None, batch_size=None, accumulate=None, precision=None, seed=0, settings=_kept(g, chosen),
                   config=None, init=chosen.init, guard=None, say=_mute)
    method, spec, settings, network = made.method, made.spec, made.training, made.method.backbone
    notes = [n for n in made.notes if n not in g.source.notes and not n.startswith("steps=")]
    if settings.curriculum != "none":
        raise UsageError("A tournament judges runs before their end; a curriculum's steps get dearer and its networks "
                         "see whole images only towards the end.", where=f"recipe {recipe}: curriculum",
                         fix="Compare recipes without it, and let `osteon pretrain --set curriculum=...` follow.")
    fabric = make_fabric(settings.precision)
    method.to(fabric.device)
    engine = Engine(method.train(), settings, fabric)
    batch = {k: v.to(fabric.device) for k, v in Loader(g.source, settings.batch_size, settings.seed).at(0).items()}
    cost = count_step(engine, batch, Step(0, settings.steps, 0))
    out: dict[str, Any] = {
        "backbone": {"name": network.name, "options": network.options, "kind": network.kind},
        "parameters": sum(p.numel() for p in network.parameters()), "lr": settings.lr,
        "batch_size": settings.batch_size, "shares": cost.as_dict(), "notes": notes,
        "step": {"flop": cost.total,
                 "seconds": median_seconds(lambda i: engine.run(batch, Step(i, settings.steps, 0)))}}
    ahead, extent = g.judged if isinstance(g.judged, Ahead) else None, spec.extent
    if ahead is not None:  # objectives that forecast read a part of the window
        read = method.exported_data()
        out["backbone"]["data"], extent = plain(asdict(read)), read.extent
    images = torch.zeros(64, spec.channels, *extent, device=fabric.device)
    network.eval()
    flop = count_forward(network, images[:1])
    with torch.inference_mode():  # operations cannot be counted in here
        out["image"] = {"flop": flop, "seconds": median_seconds(lambda _: network(images)) / len(images)}
    out["supervised"] = [ahead_jobs.price(network, ahead)] if ahead is not None else [
        _supervised_price(g, network, spec, len(g.task.subsets[0][0][b])) for b in range(len(g.task.budgets))]
    return out


def _kept(g: Ground, recipe: Recipe) -> dict[str, Any]:
    """Settings of a recipe that are not searched."""
    settings = {**g.plan["common"][recipe.name], **recipe.settings}
    if recipe.init is not None and not {"guard", "continue.guard"} & settings.keys():
        settings["continue.guard"] = False  # labels of the source play no part in a tournament
    return settings


def _mute(_text: str) -> None:
    """Say nothing."""


def _supervised_price(g: Ground, network: Backbone, spec: DataSpec, labels: int) -> dict[str, float]:
    """What one step of training the network on so many labels costs."""
    batch = min(BATCH, labels)
    copy = fresh(network, 0)
    rows = np.arange(batch)
    data = g.task.spec_of(spec, rows)
    method = registry.build("objective", "supervised", copy, data, **plain_views(data, g.task.flip))
    settings, _ = resolve_settings({"steps": 1000, "batch_size": batch, "seed": 0, "precision": "32"}, method.recipe,
                                   max(2, labels), kind=copy.kind)
    engine = Engine(method.train(), settings, make_fabric("32"))
    method.to(engine.fabric.device)
    key, told = labels_for(g.task.train_y[rows], data)
    sample = {spec.modality: torch.from_numpy(as_stored(g.task.train.subset(rows), spec)),
              "index": torch.arange(batch), key: told}
    sample = {k: v.to(engine.fabric.device) for k, v in sample.items()}
    return {"flop": count_step(engine, sample, Step(0, 1000, 0)).total, "batch": batch,
            "seconds": median_seconds(lambda i: engine.run(sample, Step(i, 1000, 0)))}


# -- pre-training ------------------------------------------------------------------------------------------------------

def advance(root: Path, *, trial: int, seed: int, until: int, steps: int, final: bool) -> dict[str, Any]:
    """Pre-train a trial up to a step of its schedule and score it on the validation part.

    Args:
        root: folder of the tournament.
        trial: number of the trial.
        seed: which seed.
        until: step to pause at.
        steps: length of the whole schedule.
        final: also write the features of all labelled samples, train and test, for the exam.

    Returns:
        ``score``, ``validation`` (by evaluator and label budget), ``label_free``, seconds and steps of this stretch.
    """
    g = ground(root)
    entry = g.plan["trials"][trial]
    recipe = g.recipes[entry["recipe"]]
    options = dict(entry["options"])
    settings = _kept(g, recipe)
    scale = options.pop(LR_SCALE, 1.0)
    if scale != 1.0:
        known = json.loads((root / "jobs" / f"probe-{recipe.name}.json").read_text(encoding="utf-8"))
        settings = {k: v for k, v in settings.items() if k.removeprefix("train.") not in ("lr", "lr_per")}
        settings["train.lr"] = known["lr"] * scale
    run = root / "runs" / f"{entry['name']}-s{seed}"
    before = _steps_done(run)
    begun, cpu = time.perf_counter(), cpu_seconds()
    pretrain(entry.get("source") or g.plan["asked"]["source"], objective=recipe.objective, backbone=recipe.backbone,
             out=run, steps=steps, seed=seed, settings={**settings, **options}, init=recipe.init, progress=False,
             report=False, until=until)
    seconds, spent = time.perf_counter() - begun, cpu_seconds() - cpu
    validation, free, reading = _looked_at(g, load_trained(run), features_file(root, run.name), seed, final)
    return {"score": overall(validation), "validation": validation, "steps": until, "done_here": until - before,
            "wall_s": seconds, "cpu_s": spent, "read_s": reading, "label_free": free}


def _looked_at(g: Ground, model: Trained, file: Path, seed: int,
               final: bool) -> tuple[dict[str, dict[str, float]], dict[str, Any], float]:
    """Validation scores and label-free scores of a network, and in the final the seconds of reading for the exam."""
    mark = time.perf_counter()
    if isinstance(g.judged, Ahead):
        seen = ahead_jobs.look(model.backbone, model.spec, g.judged, ("train", "val", *(("test",) if final else ())))
        if final:
            ahead_jobs.save_features(file, seen)
        reading = time.perf_counter() - mark if final else 0.0
        return ahead_jobs.validate(seen, g.judged), ahead_jobs.label_free(seen), reading
    train_x = extract(model.backbone, g.task.train, model.spec)
    if final:
        save_arrays(file, train=train_x, test=extract(model.backbone, g.task.test, model.spec))
    reading = time.perf_counter() - mark if final else 0.0
    pool = np.setdiff1d(np.arange(len(train_x)), g.task.held_out)
    return (validate(train_x, g.task, g.plan["readers"], seed),
            registry.build("evaluator", "label_free")(train_x[pool]), reading)


def _steps_done(run: Path) -> int:
    names = [f.stem.removeprefix("step_") for f in (run / "checkpoints").glob("step_*.safetensors")]
    return max((int(n) for n in names if n.isdecimal()), default=0)


def validate(features: np.ndarray, task: Task, readers: Sequence[str], seed: int) -> dict[str, dict[str, float]]:
    """Quality on the held-out part of the labelled training data: evaluator -> label budget -> quality.

    Args:
        features: (N, D) of all labelled training samples.
        task: the task; its test part is not touched.
        readers: evaluators.
        seed: whose draws of labels are used.
    """
    held, y = task.held_out, task.train_y[task.held_out]
    out: dict[str, dict[str, float]] = {}
    for name in readers:
        for b, budget in enumerate(task.budgets):
            found = [quality(read(name, task, features, rows, features[held], seed), y).mean()
                     for rows in task.draws(seed, b)]
            out.setdefault(name, {})[str(budget)] = float(np.mean(found))
    return out


def overall(validation: Mapping[str, Mapping[str, float]]) -> float:
    """One number to rank by: the mean over label budgets of what the best evaluator makes of the features."""
    budgets = next(iter(validation.values()))
    return float(np.mean([max(scores[b] for scores in validation.values()) for b in budgets]))


# -- training networks on labels ---------------------------------------------------------------------------------------

def supervise(root: Path, *, name: str, budget: int, seed: int, steps: int, recipe: str,
              run: str | None) -> dict[str, Any]:
    """Train a recipe's network on labels, from scratch or from a run's weights, and keep its scores for the exam.

    Args:
        root: folder of the tournament.
        name: file of the scores.
        budget: number of the label budget.
        seed: which seed.
        steps: optimiser steps.
        recipe: whose network it is.
        run: name of the run whose weights are taken; None = from scratch.
    """
    g = ground(root)
    begun, cpu = time.perf_counter(), cpu_seconds()
    if run is None:
        network, spec = _untrained(root, g, recipe, seed)
    else:
        model = load_trained(root / "runs" / run)
        network, spec = model.backbone, model.spec
    if isinstance(g.judged, Ahead):
        return ahead_jobs.supervise(network, g.judged, root / "scores" / f"{name}.npz", steps=steps, seed=seed)
    rows = g.task.subsets[seed][0][budget]
    exam = root / "scores" / f".exam-{name}-{os.getpid()}.npy"
    exam.parent.mkdir(parents=True, exist_ok=True)
    held = g.task.train.subset(g.task.held_out)
    try:
        np.save(exam, np.concatenate([as_stored(held, spec), as_stored(g.task.test, spec)]), allow_pickle=False)
        scores, seconds = train_and_score(Work(
            {"name": network.name, "channels": network.channels, "size": network.size, "options": network.options},
            {k: v.detach().cpu().numpy() for k, v in network.state_dict().items()},
            g.task.spec_of(spec, rows), as_stored(g.task.train.subset(rows), spec), g.task.train_y[rows], str(exam),
            steps, seed, g.task.flip))
    finally:
        exam.unlink(missing_ok=True)
    save_arrays(root / "scores" / f"{name}.npz", scores=scores)
    return {"wall_s": time.perf_counter() - begun, "train_s": seconds, "cpu_s": cpu_seconds() - cpu, "steps": steps,
            "labels": len(rows)}


def _untrained(root: Path, g: Ground, recipe: str, seed: int) -> tuple[Backbone, DataSpec]:
    """A recipe's network before any training, and the data it reads."""
    made = json.loads((root / "jobs" / f"probe-{recipe}.json").read_text(encoding="utf-8"))["backbone"]
    spec = spec_from(made["data"]) if "data" in made else g.source.spec
    like = build_backbone(made["name"], channels=spec.channels, size=spec.extent, **made["options"])
    return fresh(like, seed), spec


# -- the exam ----------------------------------------------------------------------------------------------------------

def exam(root: Path, *, name: str, kind: str, source: str, features: Sequence[str]) -> dict[str, Any]:
    """Score features by every evaluator at every label budget, on the validation and on the test part.

    Args:
        root: folder of the tournament.
        name: file of what comes out.
        kind: ``"pretrained"`` or ``"control"``.
        source: the arm: a recipe or a control.
        features: runs, one a seed; or a control of the modality, ``labelled:NAME`` of one that reads labels itself,
            ``rule:NAME`` of a forecast, ``untrained:RECIPE``, ``public:NAME``.
    """
    g = ground(root)
    begun, cpu = time.perf_counter(), cpu_seconds()
    if isinstance(g.judged, Ahead):
        forecasts, told = _forecasts(root, g, g.judged, source, kind, features)
        return {"arms": save_arms(root / "scores" / f"{name}.npz", forecasts), "wall_s": time.perf_counter() - begun,
                "cpu_s": cpu_seconds() - cpu, "label_free": told}
    reader = features[0].removeprefix("labelled:")
    if reader != features[0]:  # a control that reads samples and labels, and has no features
        arms = labelled_arms(source, labelled_controls(find(g.source.modality), g.task)[reader], g.task)
        return {"arms": save_arms(root / "scores" / f"{name}.npz", arms), "wall_s": time.perf_counter() - begun,
                "cpu_s": cpu_seconds() - cpu, "label_free": {}}
    pairs = [p for words in features for p in _features(root, g, words)]
    arms = feature_arms(source, kind, pairs, g.task, g.plan["readers"])
    pool = np.setdiff1d(np.arange(len(g.task.train)), g.task.held_out)
    free = [registry.build("evaluator", "label_free")(train[pool]) for train, _ in pairs]
    return {"arms": save_arms(root / "scores" / f"{name}.npz", arms), "wall_s": time.perf_counter() - begun,
            "cpu_s": cpu_seconds() - cpu, "label_free": {k: float(np.mean([f[k] for f in free])) for k in free[0]}}


def _forecasts(root: Path, g: Ground, ahead: Ahead, source: str, kind: str,
               features: Sequence[str]) -> tuple[list[Arm], dict[str, float]]:
    """Arms of a forecast, and the mean of its features' label-free scores over seeds."""
    word, _, name = features[0].partition(":")
    if word == "rule":
        return [ahead_jobs.control_arm(source, name, ahead)], {}
    if word == "untrained":
        seen = [ahead_jobs.look(*_untrained(root, g, name, seed), ahead) for seed in range(ahead.seeds)]
    else:
        seen = [ahead_jobs.load_features(features_file(root, run)) for run in features]
    free = [ahead_jobs.label_free(one) for one in seen]
    return (ahead_jobs.feature_arms(source, kind, seen, ahead),
            {k: float(np.mean([f[k] for f in free])) for k in free[0]})


def _features(root: Path, g: Ground, words: str) -> list[tuple[np.ndarray, np.ndarray]]:
    known = find(g.source.modality).CONTROLS
    if words in known:
        return [known[words](g.task.train.images, g.task.test.images, g.task.train.spec)]
    kind, colon, name = words.partition(":")
    if colon and kind == "untrained":
        return [_extracted(*_untrained(root, g, name, seed), g.task) for seed in range(len(g.task.subsets))]
    if colon and kind == "public":
        return [_extracted(*public_network(name, g.source.spec), g.task)]
    with np.load(features_file(root, words), allow_pickle=False) as stored:
        return [(stored["train"], stored["test"])]


def _extracted(backbone: Backbone, spec: DataSpec, task: Task) -> tuple[np.ndarray, np.ndarray]:
    return extract(backbone, task.train, spec), extract(backbone, task.test, spec)


def trained_arm(root: Path, label: str, kind: str, source: str, evaluator: str, budget: int,
                names: Sequence[str], task: Task | Ahead) -> Arm:
    """An arm of networks trained on labels, one a seed, from the scores they left."""
    if isinstance(task, Ahead):
        return ahead_jobs.trained([root / "scores" / f"{name}.npz" for name in names], task, name=label, kind=kind,
                                  source=source, evaluator=evaluator)
    scores = []
    for name in names:
        with np.load(root / "scores" / f"{name}.npz", allow_pickle=False) as stored:
            scores.append([stored["scores"]])
    return make_arm(label, kind, source, evaluator, task.budgets[budget], scores, task, time.perf_counter())
