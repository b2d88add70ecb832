"""``osteon pretrain``: grow a backbone from unlabelled data and leave a run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from osteon.backbones import Backbone, build_backbone
from osteon.core import registry
from osteon.core.errors import UsageError, nearest
from osteon.core.options import coerce
from osteon.core.plain import plain
from osteon.core.provenance import collect
from osteon.core.run import RunFolder
from osteon.data import Dataset, open_source
from osteon.parts.objective import Objective
from osteon.parts.types import DataSpec, Step
from osteon.report.run_page import write_run_report
from osteon.train.loggers import make_loggers
from osteon.train.loop import make_fabric, train
from osteon.train.progress import Progress
from osteon.train.settings import TrainSettings, resolve_settings
from osteon.verbs._model import extract, is_ours, load_trained, save_trained
from osteon.verbs._pictures import collect_artefacts, write_arrays

#: settings of the data door that ``--set`` may change
DATA_SETTINGS = {"size": None, "limit": None, "max_skipped": 0.01}
#: training settings that are arguments of their own
ARGUMENTS = ("steps", "epochs", "batch_size", "accumulate", "precision", "seed")


def pretrain(source: str | Path, *, objective: str = "simclr", backbone: str = "auto", out: str | Path,
             steps: int | None = None, epochs: float | None = None, batch_size: int | None = None,
             accumulate: int | None = None, precision: str | None = None, seed: int | None = None,
             settings: Mapping[str, Any] | None = None, config: str | Path | None = None,
             init: str | Path | None = None, loggers: Sequence[str] = ("jsonl",), progress: bool = True,
             report: bool = True) -> Path:
    """Pre-train a backbone and leave a run folder; the same call on an existing folder resumes it.

    Args:
        source: folder, manifest, array file, data set name (see the guide "Your own data").
        objective: name of a pre-training objective (``osteon methods --kind objective``).
        backbone: ``vit_tiny``, ``resnet18``, ``timm:NAME``, ``hf:NAME``...; ``auto`` chooses by objective and size.
        out: run folder.
        steps: optimiser steps; give steps or epochs.
        epochs: passes over the data.
        batch_size: samples an optimiser step.
        accumulate: micro-batches an optimiser step; exact, or refused.
        precision: ``auto``, ``32`` or ``bf16``.
        seed: key of all randomness.
        settings: any option of the data, backbone (``backbone.depth``), objective or training; where the objective and
            training share a name, it is the objective's, and ``train.NAME`` the other.
        config: a ``config.yaml`` a run wrote; what is given explicitly stands above it.
        init: run folder or checkpoint to go on from.
        loggers: ``jsonl``, ``tensorboard``, ``wandb``.
        progress: show what happens.
        report: write ``report.html`` at the end.

    Returns:
        The run folder.
    """
    say = _speaker(progress)
    wishes = _merge_config(config, source=str(source), objective=objective, backbone=backbone, init=init,
                           steps=steps, epochs=epochs, batch_size=batch_size, accumulate=accumulate,
                           precision=precision, seed=seed, settings=dict(settings or {}))
    chosen = _sort_settings(wishes["settings"], wishes["objective"])
    for key in ARGUMENTS:  # `--set steps=5` means --steps 5, unless that was given too
        value = chosen["train"].pop(key, None)
        wishes[key] = value if wishes[key] is None else wishes[key]
    dataset = open_source(wishes["source"], **{**DATA_SETTINGS, **chosen["data"]})
    for note in dataset.notes:
        say(note)
    card = registry.find("objective", wishes["objective"])
    if card.labels and dataset.labels is None:
        raise UsageError(f"Objective '{card.name}' learns from labels; this source has none.", where=str(source))

    torch.manual_seed(coerce(wishes["seed"] or 0, "int", name="seed", where="--seed"))
    network, before = _backbone(wishes["backbone"], wishes["init"], card.backbones, dataset, chosen["backbone"], say)
    spec = dataset.spec if before is None else replace(dataset.spec, mean=before.mean, std=before.std)
    method: Objective = registry.build("objective", card.name, network, spec, **chosen["objective"])
    training, notes = resolve_settings(
        {**chosen["train"], **{key: wishes[key] for key in ARGUMENTS}}, method.recipe, len(dataset),
        kind=network.kind)
    for note in [*network.notes, *method.notes, *notes]:
        say(note)

    run = RunFolder(Path(out))
    resolved = _resolved(wishes, network, chosen, training, dataset)
    fabric = make_fabric(training.precision)
    lead = fabric.global_rank == 0
    with run.lock() if lead else nullcontext():
        if lead:
            run.create_or_resume(resolved)
            run.write_json("provenance.json", collect({
                "data": {"source": lasting(wishes["source"]), "fingerprint": dataset.fingerprint,
                         "samples": len(dataset)},
                "initial_weights": str(wishes["init"] or "random"), "notes": [*dataset.notes, *network.notes, *notes]}))
            run.write_skipped([(s.id, s.reason) for s in dataset.skipped])
        _train(method, dataset, run, training, fabric, loggers if lead else (), progress and lead, say)
        if lead:
            save_trained(run, method.exported(), spec, {
                "objective": {"name": card.name, "options": chosen["objective"]}, "class_names": dataset.class_names,
                "fingerprint": dataset.fingerprint, "source": lasting(wishes["source"]), "steps": training.steps})
            if report:
                _artefacts(method, dataset, run, training)
                say(f"Report: {write_run_report(run.path)}")
    return run.path


def _train(method: Objective, dataset: Dataset, run: RunFolder, training: TrainSettings, fabric: Any,
           loggers: Sequence[str], progress: bool, say: Any) -> None:
    logs = make_loggers(loggers, run)

    def log(step: int, values: Mapping[str, float]) -> None:
        for logger in logs:
            logger.log(step, values)

    title = run.path.name
    with Progress(training.steps, title=title, quiet=not progress) as bar:
        def watch(done: int, values: Mapping[str, float]) -> None:
            bar.update(done, loss=values.get("loss"), rank=values.get("rank"), images=training.batch_size)

        try:
            train(method, dataset, run, training, fabric=fabric, watch=watch, log=log, say=say)
        finally:  # what was logged before a stop is kept too
            for logger in logs:
                logger.close()


def _artefacts(method: Objective, dataset: Dataset, run: RunFolder, training: TrainSettings) -> None:
    """Pictures for the report: neighbours by feature, a map of the features, reconstructions."""
    rng = torch.Generator().manual_seed(training.seed)
    rows = torch.randperm(len(dataset), generator=rng)[:1000].sort().values.numpy()
    sample = dataset.subset(rows)
    method.eval()
    device = next(method.parameters()).device
    features = extract(method.exported(), sample, method.data, device=device)
    batch = {k: v.to(device) for k, v in sample.batch(list(range(min(8, len(sample))))).items()}
    triple = method.reconstruct(batch, Step(0, 1, training.seed))
    write_arrays(run.path / "artefacts.npz", collect_artefacts(sample, features, method.data, triple))


def _backbone(name: str, init: str | Path | None, fits: tuple[str, ...], dataset: Dataset, options: dict[str, Any],
              say: Any) -> tuple[Backbone, DataSpec | None]:
    """Build the network, from a run or checkpoint where one is named."""
    spec = dataset.spec
    if init is not None and is_ours(init):
        trained = load_trained(init)
        made = trained.backbone
        if trained.spec.channels != spec.channels:
            raise UsageError(f"{init} was trained on {trained.spec.channels} channels, this source has "
                             f"{spec.channels}.", where="--init")
        _refuse_kind(made, fits, "--init")
        other = [k for k, v in options.items() if plain(made.options.get(k)) != plain(v)]
        if name not in ("auto", made.name) or other:
            raise UsageError(f"The backbone of {init} is {made.name}; "
                             + (f"its {', '.join(other)} cannot be changed." if other else f"{name} is another one."),
                             where="--backbone", fix="Leave the backbone and its options to --init.")
        say(f"continuing from {init} ({made.name}); its data statistics are kept")
        return made.train(), trained.spec
    if init is not None:
        if Path(init).is_file():
            raise UsageError("Weights are read from a folder, not from a single file.", where=f"--init {init}",
                             fix="Give a run folder, a folder of transformers, timm:NAME or hf:NAME.")
        name = str(init) if str(init).startswith(("timm:", "hf:")) else f"hf:{init}"
        options = {"pretrained": True, **options}
    if name == "auto":
        name = ("vit_tiny" if spec.size <= 16 else "vit_mini") if "maps" not in fits else (
            "resnet_tiny" if spec.size <= 16 else "resnet_mini" if spec.size <= 64 else "resnet18")
        say(f"backbone={name}: sized to {spec.size}-pixel images and to what the objective can train")
    network = build_backbone(name, channels=spec.channels, size=spec.size, **options)
    _refuse_kind(network, fits, "--backbone" if init is None else "--init")
    return network, None


def _refuse_kind(network: Backbone, fits: tuple[str, ...], where: str) -> None:
    """An objective that cannot train this kind of backbone says so before anything is computed."""
    if network.kind not in fits:
        kinds = {"tokens": "token backbones (ViT)", "maps": "convolutional backbones (ResNet)"}
        raise UsageError(f"This objective trains {' or '.join(kinds[k] for k in fits)}; '{network.name}' is not one.",
                         where=where)


def _sort_settings(settings: dict[str, Any], objective: str) -> dict[str, dict[str, Any]]:
    """Hand each ``--set`` key to the one door it belongs to: data, backbone.*, objective or training."""
    card = registry.find("objective", objective)
    doors: dict[str, set[str]] = {
        "data": set(DATA_SETTINGS), "objective": {o.name for o in registry.options(card)} - {"backbone", "data"},
        "train": {f.name for f in fields(TrainSettings)} | {"epochs"}}
    sorted_: dict[str, dict[str, Any]] = {"data": {}, "backbone": {}, "objective": {}, "train": {}}
    for key, value in settings.items():
        prefix, dot, name = key.partition(".")
        door = prefix if dot else next((d for d, names in doors.items() if key in names), "")
        if door == "backbone" or (door in doors and (name or key) in doors[door]):
            sorted_[door][name or key] = value
        else:
            known = [k for names in doors.values() for k in sorted(names)]
            key = name if door in doors else key
            raise UsageError(f"Unknown setting '{key}'.{nearest(key, known)}", where="--set",
                             fix=f"`osteon methods {objective}` lists the options of the objective; options of the "
                                 "backbone are written backbone.NAME.")
    return sorted_


def _merge_config(config: str | Path | None, **given: Any) -> dict[str, Any]:
    """Values of a ``config.yaml``, with what was given explicitly above them."""
    merged = dict(given)
    if config is None:
        return merged
    path = Path(config)
    try:
        stored = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"The configuration cannot be read: {error}", where=str(path)) from error
    if not isinstance(stored, dict):
        raise UsageError("The configuration is not a mapping of names to values.", where=str(path))
    for key in stored:
        if key not in {*given, "data", "backbone_options", "objective_options", "train", "fingerprint"}:
            raise UsageError(f"Unknown key '{key}'.{nearest(key, given)}", where=str(path))
    unasked = {"objective": "simclr", "backbone": "auto"}
    for key in ("objective", "backbone", "init"):
        if given[key] == unasked.get(key) and stored.get(key) is not None:
            merged[key] = stored[key]
    train_settings = dict(stored.get("train") or {})
    for key in ("steps", "batch_size", "accumulate", "precision", "seed"):
        value = train_settings.pop(key, None)
        if given[key] is None and not (key == "steps" and given["epochs"] is not None):
            merged[key] = value
    # By their doors, since an objective and training may share a name (BYOL's momentum and SGD's).
    parts = {"data": stored.get("data"), "objective": stored.get("objective_options"), "train": train_settings,
             "backbone": stored.get("backbone_options")}
    merged["settings"] = {**{f"{door}.{k}": v for door, values in parts.items() for k, v in (values or {}).items()},
                          **given["settings"]}
    return merged


def _resolved(wishes: dict[str, Any], network: Backbone, chosen: dict[str, dict[str, Any]], training: TrainSettings,
              dataset: Dataset) -> dict[str, Any]:
    """The whole configuration, as ``config.yaml`` stores it."""
    train_values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(training).items()}
    return {"source": lasting(wishes["source"]), "objective": wishes["objective"], "backbone": network.name,
            "init": None if wishes["init"] is None else str(wishes["init"]),
            "data": {**DATA_SETTINGS, **chosen["data"]}, "backbone_options": dict(network.options),
            "objective_options": chosen["objective"], "train": train_values, "fingerprint": dataset.fingerprint}


def lasting(source: str) -> str:
    """The source by a name that holds from any folder: an absolute path where it is a path."""
    path, colon, part = source.rpartition(":")
    for name, rest in ((source, ""), (path, colon + part)):
        if name and Path(name).exists():
            return str(Path(name).resolve()) + rest
    return source


def _speaker(progress: bool) -> Any:
    import os
    import sys

    lead = int(os.environ.get("RANK", "0")) == 0
    return (lambda text: print(f"  {text}", file=sys.stderr, flush=True)) if progress and lead else (lambda _text: None)
