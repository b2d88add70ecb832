"""``osteon adapt``: turn a backbone into a classifier or a regression with an adapter, and leave a small delta."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from osteon.core import registry
from osteon.core.card import Card
from osteon.core.errors import DataError, UsageError, nearest
from osteon.core.licences import stated
from osteon.core.options import Option, coerce, settle
from osteon.core.plain import plain
from osteon.core.provenance import collect
from osteon.core.run import RunFolder
from osteon.core.signature import read_options
from osteon.data import Dataset, find_duplicates, open_source
from osteon.data.codec import modality_options
from osteon.data.targets import in_deviations, need_spread
from osteon.parts.adapter import Adapter
from osteon.parts.intervals import hierarchical_interval, score_intervals
from osteon.parts.metrics import score_all
from osteon.parts.regression import qualities, scale_of, score_numbers, strata_of
from osteon.parts.subsets import nested_subsets
from osteon.parts.types import DataSpec
from osteon.report.adapt_page import write_adapt_report
from osteon.train.loggers import make_loggers
from osteon.train.loop import make_fabric, train
from osteon.train.progress import Progress
from osteon.train.ranks import meet
from osteon.train.settings import WISHES, TrainSettings, resolve_settings
from osteon.verbs import _adapt_objective
from osteon.verbs._adapt_cost import StepCost, measure, table
from osteon.verbs._adapt_objective import AdaptObjective
from osteon.verbs._adapt_store import DELTA, Base, open_public, open_run, save_adapted
from osteon.verbs._arms import answers
from osteon.verbs._model import fit_samples, is_ours, load_trained
from osteon.verbs.pretrain import lasting

#: settings of the data door that ``--set`` may change
DATA_SETTINGS = {"size": None, "limit": None, "max_skipped": 0.01}
RESULT = "adaptation.json"
#: scores of predicted numbers: no shares
NUMBERS = ("r2", "mae", "rmse")
#: largest batch at which costs are measured
MEASURED = 64


def adapt(run: str | Path, *, train: str | Path | Dataset, val: str | Path | Dataset, adapter: str = "lora",
          out: str | Path, steps: int | None = None, epochs: float | None = None, batch_size: int | None = None,
          lr: float | None = None, seed: int | None = None, label_budget: int | str = "all",
          task: str = "auto", target: str | None = None, head_layer: int = 0, keep_head: bool = False,
          settings: Mapping[str, Any] | None = None, loggers: Sequence[str] = ("jsonl",),
          progress: bool = True, report: bool = True) -> Path:
    """Train an adapter and a head on labels; the backbone itself is not written again.

    Args:
        run: run folder, exported folder, folder of transformers, ``timm:NAME`` or ``hf:NAME``.
        train: labelled source.
        val: labelled source the scores are reported on; nothing is fitted on it.
        adapter: name of an adapter (``osteon methods --kind adapter``).
        out: run folder; the same call on an existing one resumes it.
        steps: optimiser steps; give steps or epochs.
        epochs: passes over the training data.
        batch_size: samples an optimiser step.
        lr: peak learning rate.
        seed: key of all randomness.
        label_budget: use so many labelled samples of ``train``, drawn in proportion to the classes; or ``all``.
        task: ``classes``, ``regression`` (labels are numbers to be predicted), or ``auto``, by a rule that is told.
        target: column of the numbers to be predicted, in the place of labels.
        head_layer: let the encoder end behind this layer of the run's projection head (SimCLRv2: 1); 0: before it.
        keep_head: begin with the classifier of ``run``, an adapted run of the same classes, not with a new one.
        settings: any option of the data, the adapter, the augmentation (``augment``, ``flip``, ...) or the training;
            options of a public backbone are written ``backbone.NAME``.
        loggers: ``jsonl``, ``tensorboard``, ``wandb``.
        progress: show what happens.
        report: write ``report.html`` at the end.

    Returns:
        The run folder: ``delta.safetensors`` (with ``peft/`` where PEFT has the method), ``adaptation.json`` with
        scores, intervals and costs, ``report.html``, settings, metrics and provenance.

    Raises:
        UsageError: labels, classes, options or an adapter that do not fit.
    """
    say = _speaker(progress)
    meet()
    card = registry.find("adapter", adapter)
    chosen = sort_settings(dict(settings or {}), card.name)
    wishes = {**chosen["train"], **{k: v for k, v in (("steps", steps), ("epochs", epochs), ("batch_size", batch_size),
                                                      ("lr", lr), ("seed", seed)) if v is not None}}
    key = int(coerce(wishes.get("seed", 0), "int", name="seed", where="--seed"))
    base, train_set, val_set = _open(run, train, val, chosen, key, task=task, target=target,
                                     head_layer=_fitting(head_layer, card))
    registry.need(card, train_set.modality, where="--adapter")
    groups = np.asarray(train_set.labels) if train_set.targets is None else strata_of(train_set.targets)
    train_set = train_set.subset(nested_subsets(groups, [label_budget], key)[0])
    spec = _spec(base, train_set)
    learned = train_set if spec.target is None else in_deviations(train_set, spec.target)
    notes = [*train_set.notes, *base.backbone.notes, *_leaks(train_set, val_set)]
    torch.manual_seed(key)
    made: Adapter = registry.build("adapter", card.name, base.backbone, spec, **chosen["adapter"])
    if keep_head:
        _take_head(made, run, train_set.class_names)
    objective = AdaptObjective(made, spec, **chosen["views"])
    training, automatic = resolve_settings(wishes, made.recipe, len(train_set), kind=base.backbone.kind)
    notes += [*made.notes, *objective.notes, *automatic]
    for note in dict.fromkeys(notes):
        say(note)

    folder = RunFolder(Path(out))
    fabric = make_fabric(training.precision)
    lead = fabric.global_rank == 0
    with folder.lock() if lead else nullcontext():
        if lead:
            folder.create_or_resume({
                "base": base.reference, "train_source": _name(train), "val_source": _name(val),
                **({"keep_head": True} if keep_head else {}),
                "label_budget": len(train_set), "adapter": card.name, "adapter_options": chosen["adapter"],
                "views": chosen["views"], "data": {**DATA_SETTINGS, **chosen["data"]}, "train": asdict(training),
                "fingerprint": train_set.fingerprint})
            changed = folder.write_provenance(collect({
                "data": {"source": _name(train), "fingerprint": train_set.fingerprint,
                         "samples": len(train_set), "license": stated(chosen["data"].get("data_license"))},
                "initial_weights": base.origins or "random", "notes": notes}))
            if changed:
                say(changed)
            folder.write_skipped([(s.id, s.reason) for s in [*train_set.skipped, *val_set.skipped]])
        costs = {} if fabric.world_size > 1 else _costs(made, base, objective, learned, training, fabric,
                                                        chosen["views"])
        _train(objective, learned, folder, training, fabric, loggers if lead else (), progress and lead, say)
        if lead:
            scores = _score(made, val_set, spec, fabric.device)
            save_adapted(folder, made, base, spec, {"name": card.name, "options": chosen["adapter"]}, {
                "objective": {"name": card.name, "options": {"flip": chosen["views"].get("flip") is not False}},
                "class_names": train_set.class_names, "fingerprint": train_set.fingerprint,
                "source": _name(train), "steps": training.steps})
            folder.write_json(RESULT, {
                "adapter": card.name, "base": base.name, "labels": len(train_set), "val_samples": len(val_set),
                "steps": training.steps, "scores": scores, "controls": _controls(train_set, val_set, spec),
                "costs": {k: c.as_dict() for k, c in costs.items()},
                "measured_batch": min(MEASURED, training.batch_size), "trainable": list(made.trainable()),
                "delta_bytes": (folder.path / DELTA).stat().st_size, "class_names": train_set.class_names,
                "notes": notes})
            if report:
                say(f"Report: {write_adapt_report(folder.path)}")
    return folder.path


def summary(folder: str | Path) -> str:
    """The costs beside full fine-tuning and the scores of an adapted run, as text."""
    found = json.loads((Path(folder) / RESULT).read_text(encoding="utf-8"))
    costs = {name: StepCost(**values) for name, values in found["costs"].items()}
    lines = [table(costs, "full"), f"(batch of {found['measured_batch']})", ""] if costs else []
    lines += [f"{name}: {s['value']:.4g} [{s['low']:.4g}, {s['high']:.4g}]" if name in NUMBERS else
              f"{name}: {100 * s['value']:.1f} % [{100 * s['low']:.1f}, {100 * s['high']:.1f}]"
              for name, s in found["scores"]["intervals"].items()]
    return "\n".join([*lines, f"on {found['val_samples']} validation samples, after {found['labels']} labels and "
                              f"{found['steps']} steps"])


def sort_settings(settings: dict[str, Any], adapter: str) -> dict[str, dict[str, Any]]:
    """Hand each ``--set`` key to the one door it belongs to: data, backbone.*, adapter, views or training."""
    views = read_options(Path(_adapt_objective.__file__), "adapt_objective")
    doors: dict[str, list[Option]] = {
        "data": [Option(name, "", value) for name, value in {**DATA_SETTINGS, "data_license": None,
                                                             **modality_options()}.items()],
        "adapter": registry.options(registry.find("adapter", adapter)),
        "views": views, "train": [Option(name, "", None) for name in WISHES]}
    names = {door: {o.name for o in options} - {"backbone", "task", "adapter", "data"}
             for door, options in doors.items()}
    out: dict[str, dict[str, Any]] = {"data": {}, "backbone": {}, "adapter": {}, "views": {}, "train": {}}
    for key, value in settings.items():
        prefix, dot, name = key.partition(".")
        door = prefix if dot else next((d for d, known in names.items() if key in known), "")
        if door != "backbone" and (name or key) not in names.get(door, ()):
            known = sorted(k for group in names.values() for k in group)
            raise UsageError(f"Unknown setting '{key}'.{nearest(name or key, known)}", where="--set",
                             fix=f"'osteon methods {adapter}' lists the options of the adapter.")
        out[door][name or key] = value
    out["views"] = settle([o for o in views if o.name in names["views"]], out["views"], where="views")
    return out


def _name(source: str | Path | Dataset) -> str:
    """The source by a name that holds from any folder."""
    return lasting(source.source if isinstance(source, Dataset) else str(source))


def _take_head(adapter: Adapter, run: str | Path, class_names: Sequence[str]) -> None:
    """Let an adapter begin with the classifier of an adapted run. Raises UsageError where it does not fit."""
    before = load_trained(run) if is_ours(run) else None
    if before is None or before.adapter is None or before.meta["class_names"] != list(class_names):
        raise UsageError(f"{run} holds no classifier of these classes.", where="keep_head",
                         fix="Give an adapted run of the same classes, or leave keep_head out.")
    adapter.head.load_state_dict(before.adapter.head.state_dict())


def _fitting(head_layer: int, card: Card) -> int:
    """The layer of the head, where the adapter reads the backbone's features and not what is inside it."""
    if head_layer < 0:
        raise UsageError(f"Layers of a head are counted from 1, not {head_layer}.", where="--head-layer")
    if head_layer and not cast(type[Adapter], registry.load(card)).mergeable:
        raise UsageError(f"{card.name} works beside the backbone and does not read its head.", where="--head-layer",
                         fix="Use full, linear or an adapter that rewrites weights.")
    return head_layer


def _open(run: str | Path, train: str | Path | Dataset, val: str | Path | Dataset,
          chosen: Mapping[str, Mapping[str, Any]], seed: int, *, task: str, target: str | None,
          head_layer: int) -> tuple[Base, Dataset, Dataset]:
    """Base and data, checked against each other before anything is trained."""
    data: dict[str, Any] = {**DATA_SETTINGS, **chosen["data"]}
    stated(data.pop("data_license", None))
    base = open_run(run, head_layer)
    if base is None and head_layer:
        raise UsageError("A public model has no projection head of a run's.", where="--head-layer", fix="Leave it out.")
    if base is not None and chosen["backbone"]:
        raise UsageError("The backbone of a run cannot be changed.", where=f"--set backbone.{min(chosen['backbone'])}",
                         fix="Leave it out.")
    if base is not None and data.pop("size") is not None:
        raise UsageError("The image size is the run's own.", where="--set size", fix="Leave it out.")
    train_set = open_source(train, **data, like=None if base is None else base.spec, task=task, target=target)
    val_set = open_source(val, max_skipped=data["max_skipped"], like=train_set.spec, target=target,
                          task="classes" if train_set.targets is None else "regression")
    for dataset, option in ((train_set, "--train"), (val_set, "--val")):
        need_spread(dataset, option)
        if dataset.labels is None and dataset.targets is None:
            raise UsageError("Adapting needs labels; this source has none.", where=f"{option} {dataset.source}")
    if answers(train_set).ndim != answers(val_set).ndim:
        raise UsageError("Samples have one label in one of --train and --val and several in the other.",
                         where=val_set.source)
    if train_set.class_names != val_set.class_names:
        val_set = val_set.with_classes(train_set.class_names)
    if base is None:
        base = open_public(str(run), channels=train_set.spec.channels, size=train_set.spec.size,
                           options=chosen["backbone"], seed=seed)
    if base.backbone.channels != train_set.spec.channels:
        raise DataError(f"The base takes {base.backbone.channels} channels; this source has "
                        f"{train_set.spec.channels}.", where=train_set.source)
    return base, train_set, val_set


def _spec(base: Base, data: Dataset) -> DataSpec:
    """The base's statistics where it has some, with the classes of these data or the scale of their targets."""
    spec = data.spec if data.targets is None else replace(data.spec, target=scale_of(data.targets))
    return spec if base.spec is None else replace(spec, mean=base.spec.mean, std=base.spec.std)


def _leaks(train: Dataset, val: Dataset) -> list[str]:
    found = len(find_duplicates(train, val, near=False).exact)
    return [f"LEAK: {found} validation samples are copies of training samples; the scores flatter"] if found else []


def _costs(adapter: Adapter, base: Base, objective: AdaptObjective, data: Dataset, training: TrainSettings, fabric: Any,
           views: Mapping[str, Any]) -> dict[str, StepCost]:
    """Cost of a step with this adapter and with full fine-tuning, on copies, where this is the only process."""
    batch = data.batch(np.arange(min(MEASURED, training.batch_size)))
    once = replace(training, batch_size=len(batch["index"]), accumulate=1)
    full = adapter if type(adapter).__module__.endswith(".full") else registry.build(
        "adapter", "full", base.backbone, objective.data)
    arms = {registry_name(adapter): adapter, "full": full}
    return {name: measure(AdaptObjective(copy.deepcopy(arm), objective.data, **views), batch, once, fabric)
            for name, arm in arms.items()}


def registry_name(adapter: Adapter) -> str:
    """The name on an adapter's card."""
    return type(adapter).__module__.rpartition(".")[2]


def _train(objective: AdaptObjective, data: Dataset, run: RunFolder, training: TrainSettings, fabric: Any,
           loggers: Sequence[str], progress: bool, say: Callable[[str], None]) -> None:
    logs = make_loggers(loggers, run)

    def log(step: int, values: Mapping[str, float]) -> None:
        for logger in logs:
            logger.log(step, values)

    with Progress(training.steps, title=run.path.name, quiet=not progress) as bar:
        def watch(done: int, values: Mapping[str, float]) -> None:
            bar.update(done, loss=values.get("loss"), rank=values.get("rank"), images=training.batch_size)

        try:
            train(objective, data, run, training, fabric=fabric, watch=watch, log=log, say=say)
        finally:
            for logger in logs:
                logger.close()


@torch.inference_mode()
def predict(adapter: Adapter, data: Dataset, spec: DataSpec, *, batch_size: int = 256,
            device: torch.device | str = "cpu") -> np.ndarray:
    """Class scores of every sample, (N, K): shares that sum to 1, or one probability a class with several labels.

    Of a regression the predicted numbers, (N,) float64, in the unit of the targets.
    """
    adapter.eval().to(device)
    out = []
    for start in range(0, len(data), batch_size):
        rows = np.arange(start, min(start + batch_size, len(data)))
        logits = adapter(fit_samples(data, spec, rows).to(device)).float()
        if spec.target is not None:
            out.append(logits[:, 0].cpu().double().numpy() * spec.target[1] + spec.target[0])
            continue
        out.append((logits.sigmoid() if spec.multi_label else logits.softmax(-1)).cpu().numpy())
    return np.concatenate(out)


def _score(adapter: Adapter, val: Dataset, spec: DataSpec, device: torch.device) -> dict[str, Any]:
    """Every metric on the validation samples, the main ones with intervals over samples."""
    return _judged(predict(adapter, val, spec, device=device), val, spec)


def _controls(train: Dataset, val: Dataset, spec: DataSpec) -> dict[str, Any]:
    """What is reached without looking at a sample: the shares of the classes, or the mean, of the training labels."""
    if train.targets is not None:
        told = np.full(len(val), train.targets.mean())
        return {"mean of the training targets": _judged(told, val, spec)["intervals"]}
    y = np.asarray(train.labels)
    shares = y.mean(0) if y.ndim == 2 else np.bincount(y, minlength=spec.num_classes) / len(y)
    found = _judged(np.tile(shares, (len(val), 1)), val, spec)
    return {"most frequent class" if y.ndim == 1 else "shares of the classes": found["intervals"]}


def _judged(scores: np.ndarray, val: Dataset, spec: DataSpec) -> dict[str, Any]:
    """Every metric of class scores (N, K), or of predicted numbers (N,), the main ones with intervals."""
    if val.targets is not None:
        return dict(plain({"values": score_numbers(scores, val.targets), "intervals": _errors(scores, val.targets)},
                          finite=True))
    y, k = np.asarray(val.labels), spec.num_classes
    values = score_all(scores, y, k)
    intervals = score_intervals([scores], y, k)
    main = ["mean_average_precision"] if spec.multi_label else ["accuracy", "balanced_accuracy"]
    return plain({"values": values, "intervals": {name: {
        "value": values[name], "low": intervals[name].low, "high": intervals[name].high} for name in main}},
        finite=True)


def _errors(told: np.ndarray, y: np.ndarray) -> dict[str, dict[str, float]]:
    """R2 and errors of predicted numbers (M,), each with its interval over samples."""
    error, values = (told - y)[None], score_numbers(told, y)
    r2 = hierarchical_interval(qualities(error**2, y), targets=y)
    mae, mse = hierarchical_interval(np.abs(error)), hierarchical_interval(error**2)
    ends = {"r2": (r2.low, r2.high), "mae": (mae.low, mae.high), "rmse": (mse.low**0.5, mse.high**0.5)}
    return {name: {"value": values[name], "low": low, "high": high} for name, (low, high) in ends.items()}


def _speaker(progress: bool) -> Callable[[str], None]:
    if not progress:
        return lambda _text: None
    return lambda text: print(f"  {text}", file=sys.stderr, flush=True)
