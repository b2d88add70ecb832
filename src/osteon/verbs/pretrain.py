"""``osteon pretrain``: grow a backbone from unlabelled data and leave a run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch

from osteon.backbones import Backbone, build_backbone
from osteon.core import registry
from osteon.core.card import Card
from osteon.core.errors import MonitorStop, UsageError
from osteon.core.licences import entry, stated
from osteon.core.options import coerce, settle
from osteon.core.plain import plain
from osteon.core.provenance import collect
from osteon.core.run import RunFolder
from osteon.data import Dataset
from osteon.data.ids import split_ids
from osteon.data.mixture import open_mixed, read_shares
from osteon.data.table_folder import tables_of
from osteon.data.targets import why_unlabelled
from osteon.data.tars import is_pattern
from osteon.modalities import find
from osteon.parts.low_rank import train_low_rank
from osteon.parts.objective import Objective
from osteon.parts.reparam import merged
from osteon.parts.types import DataSpec, Step
from osteon.report.run_page import write_run_report
from osteon.train.curriculum import make_curriculum
from osteon.train.guard import Guard
from osteon.train.loggers import make_loggers
from osteon.train.loop import make_fabric, train
from osteon.train.progress import Progress
from osteon.train.ranks import meet
from osteon.train.settings import TrainSettings, check_seed, resolve_settings
from osteon.verbs._guard import make_guard, settle_continuation
from osteon.verbs._model import extract, is_ours, load_trained, save_head, save_trained
from osteon.verbs._pictures import collect_artefacts, write_arrays
from osteon.verbs._pretrain_settings import ARGUMENTS, DATA_SETTINGS, merge_config, opening, sort_settings
from osteon.verbs._weights import from_file


def pretrain(source: str | Path, *, objective: str | None = None, backbone: str | None = None, out: str | Path,
             steps: int | None = None, epochs: float | None = None, batch_size: int | None = None,
             accumulate: int | None = None, precision: str | None = None, seed: int | None = None,
             settings: Mapping[str, Any] | None = None, config: str | Path | None = None,
             init: str | Path | None = None, loggers: Sequence[str] = ("jsonl",), progress: bool = True,
             report: bool = True, until: int | None = None, guard: str | Path | None = None) -> Path:
    """Pre-train a backbone and leave a run folder; the same call on an existing folder resumes it.

    Args:
        source: folder, manifest, array file, data set name (see the guide "Your own data").
        objective: name of a pre-training objective (``osteon methods --kind objective``); by default the
            configuration's, else ``simclr``.
        backbone: ``vit_tiny``, ``resnet18``, ``timm:NAME``, ``hf:NAME``...; by default the configuration's, else
            ``auto``, which chooses by objective and size.
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
        until: pause after this many steps of the whole schedule, leaving the model as it is then; a later call goes on,
            to the same final weights.
        guard: labelled validation source, watched while going on from ``init``: when the features get worse than they
            were, the run stops and leaves its best checkpoint. By default the labels of the source, where it has any.

    Returns:
        The run folder.

    Raises:
        MonitorStop: a monitor or the guard ended the run; see the guide "Exit codes".
    """
    say = speaker(progress)
    meet()
    made = prepare(source, objective=objective, backbone=backbone, steps=steps, epochs=epochs, batch_size=batch_size,
                   accumulate=accumulate, precision=precision, seed=seed, settings=settings, config=config, init=init,
                   guard=guard, say=say)
    run = RunFolder(Path(out))
    fabric = make_fabric(made.training.precision)
    lead = fabric.global_rank == 0
    with run.lock() if lead else nullcontext():
        if lead:
            run.create_or_resume(made.config)
            changed = run.write_provenance(collect({
                "data": {"source": made.config["source"], "fingerprint": made.dataset.fingerprint,
                         "samples": len(made.dataset), "license": stated(made.config["data"].get("data_license"))},
                "initial_weights": made.origins or "random", "notes": made.notes}))
            if changed:
                say(changed)
            run.write_skipped([(s.id, s.reason) for s in made.dataset.skipped])
        try:
            _train(made, run, fabric, loggers if lead else (), progress and lead, say, until)
        except MonitorStop:
            if lead and made.guard is not None:
                _roll_back(made, run)
            raise
        if lead:
            keep(made, run, min(made.training.steps, until or made.training.steps))
            if report:
                page(made, run, say)
    return run.path


@dataclass
class Prepared:
    """Everything a run consists of, before its first step.

    Args:
        card: of the objective.
        dataset: the source.
        method: the objective with its networks.
        training: resolved settings.
        spec: the data as the network knows it: continued weights keep their statistics.
        config: what ``config.yaml`` is to hold.
        notes: every automatic choice with its rule.
        options: of the objective, as asked for.
        guard: of continued pre-training.
        low_rank: rank of the trained change; 0: all weights train.
        origins: where the initial weights come from, with their licences; empty: they are random.
    """

    card: Card
    dataset: Dataset
    method: Objective
    training: TrainSettings
    spec: DataSpec
    config: dict[str, Any]
    notes: list[str]
    options: dict[str, Any]
    guard: Guard | None = None
    low_rank: int = 0
    origins: list[dict[str, Any]] = field(default_factory=list)

    def exported(self) -> Backbone:
        """The network the run leaves, low-rank changes folded in."""
        network = self.method.exported()
        return cast(Backbone, merged(network)) if self.low_rank else network


def prepare(source: str | Path, *, objective: str | None, backbone: str | None, steps: int | None,
            epochs: float | None, batch_size: int | None, accumulate: int | None, precision: str | None,
            seed: int | None, settings: Mapping[str, Any] | None, config: str | Path | None, init: str | Path | None,
            guard: str | Path | None, say: Callable[[str], None]) -> Prepared:
    """Open the data, build the networks and settle every setting; arguments as in :func:`pretrain`."""
    wishes = merge_config(config, source=str(source), objective=objective, backbone=backbone, init=init,
                           steps=steps, epochs=epochs, batch_size=batch_size, accumulate=accumulate,
                           precision=precision, seed=seed, guard=guard, settings=dict(settings or {}))
    wishes["objective"], wishes["backbone"] = wishes["objective"] or "simclr", wishes["backbone"] or "auto"
    chosen = sort_settings(wishes["settings"], wishes["objective"])
    for key in ARGUMENTS:  # `--set steps=5` means --steps 5, unless that was given too
        value = chosen["train"].pop(key, None)
        wishes[key] = value if wishes[key] is None else wishes[key]
    for key in chosen["data"].keys() & {"mix", "upsample"}:
        shares = read_shares(chosen["data"][key], key)
        chosen["data"][key] = {lasting(name): float(share) for name, share in shares.items()}
    stated(chosen["data"].get("data_license"))
    dataset = open_mixed(wishes["source"], **opening(chosen["data"]))
    for note in dataset.notes:
        say(note)
    card = registry.find("objective", wishes["objective"])
    registry.need(card, dataset.modality, where="--objective")
    if card.labels and dataset.labels is None:
        raise UsageError(f"Objective '{card.name}' learns from labels; {why_unlabelled(dataset)}.", where=str(source))

    going_on = settle_continuation(chosen["continue"], init=wishes["init"], guard_source=wishes["guard"])
    torch.manual_seed(check_seed(coerce(wishes["seed"] or 0, "int", name="seed", where="--seed")))
    known = [o for o in registry.options(card) if o.name not in ("backbone", "data")]
    asked = settle(known, chosen["objective"], where=f"objective {card.name}")
    sides = cast(type[Objective], registry.load(card)).seen(dataset.spec.extent, asked)
    network, before = _backbone(wishes["backbone"], wishes["init"], card.backbones, dataset, sides, chosen["backbone"],
                                say)
    origins = [network.origin] if network.origin else [] if wishes["init"] is None else [entry(wishes["init"])]
    spec = dataset.spec if before is None else replace(dataset.spec, mean=before.mean, std=before.std)
    if going_on["low_rank"]:
        layers, trained = train_low_rank(network, going_on["low_rank"])
        network.notes.append(f"low_rank={going_on['low_rank']}: {trained:,} numbers beside {layers} frozen layers "
                             "train; folded into the weights at the end")
    method: Objective = registry.build("objective", card.name, network, spec, **chosen["objective"])
    training, notes = resolve_settings(
        {**chosen["train"], **{key: wishes[key] for key in ARGUMENTS}}, method.recipe, len(dataset),
        kind=network.kind)
    if dataset.mixture is not None:
        names = [wishes["source"], *dict.fromkeys(n for k in ("mix", "upsample") for n in chosen["data"].get(k, ()))]
        notes += dataset.mixture.notes(names, training.steps, training.batch_size // training.repeats)
        dataset.mixture = dataset.mixture.over(training.steps)
    course = make_curriculum(method, training)
    notes += [] if course is None else course.notes(max(spec.extent), training.steps)
    for note in [*network.notes, *method.notes, *notes]:
        say(note)

    resolved = _resolved(wishes, network, chosen, card, training, dataset)
    made = Prepared(card, dataset, method, training, spec, resolved,
                    [*dataset.notes, *network.notes, *method.notes, *notes], chosen["objective"],
                    low_rank=going_on["low_rank"], origins=origins)
    if wishes["init"] is not None:
        where = None if wishes["guard"] is None else str(wishes["guard"])
        made.config["continue"] = {**going_on, "guard_source": None if where is None else lasting(where)}
        made.guard = make_guard(going_on, where, dataset, card, size=spec.size, steps=training.steps, say=say)
    return made


def keep(made: Prepared, run: RunFolder, steps: int) -> None:
    """Write ``model.safetensors``: the network as it is after so many steps."""
    mixed = [made.config["data"].get(key) or {} for key in ("mix", "upsample")]
    own = tables_of(made.config["source"], made.config["data"].get("names")) or [made.config["source"]]
    sources = list(dict.fromkeys([*own, *(name for shares in mixed for name in shares)]))
    save_trained(run, made.exported(), made.method.exported_data(), {
        "objective": {"name": made.card.name, "options": made.options}, "class_names": made.dataset.class_names,
        "fingerprint": made.dataset.fingerprint, "source": made.config["source"], "steps": steps,
        **({"sources": sources} if sources[1:] else {})})
    save_head(run, made.method)


def page(made: Prepared, run: RunFolder, say: Callable[[str], None]) -> None:
    """Write what the report shows, and the report."""
    _artefacts(made.method, made.dataset, run, made.training)
    say(f"Report: {write_run_report(run.path)}")


def _roll_back(made: Prepared, run: RunFolder) -> None:
    """Leave the best checkpoint's network as the run's model."""
    found = run.best_checkpoint()
    if found is not None:
        step, tensors, _ = found
        made.method.load_state_dict({k.removeprefix("objective."): v for k, v in tensors.items()
                                     if k.startswith("objective.")})
        keep(made, run, step)


def _train(made: Prepared, run: RunFolder, fabric: Any, loggers: Sequence[str], progress: bool, say: Any,
           until: int | None) -> None:
    training = made.training
    logs = make_loggers(loggers, run)

    def log(step: int, values: Mapping[str, float]) -> None:
        for logger in logs:
            logger.log(step, values)

    title = run.path.name
    with Progress(training.steps, title=title, quiet=not progress) as bar:
        def watch(done: int, values: Mapping[str, float]) -> None:
            bar.update(done, loss=values.get("loss"), rank=values.get("rank"), images=training.batch_size)

        try:
            train(made.method, made.dataset, run, training, fabric=fabric, watch=watch, log=log, say=say, until=until,
                  guard=made.guard)
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


def _backbone(name: str, init: str | Path | None, fits: tuple[str, ...], dataset: Dataset, sides: tuple[int, ...],
              options: dict[str, Any], say: Any) -> tuple[Backbone, DataSpec | None]:
    """Build the network for samples of these sides, from a run or checkpoint where one is named."""
    spec = dataset.spec
    if init is not None and (Path(init).is_file() or is_ours(init)):
        trained = from_file(Path(init), name, options, spec) if Path(init).is_file() else load_trained(init)
        made = trained.backbone
        if trained.spec.modality != spec.modality:
            raise UsageError(f"{init} was trained on {trained.spec.modality}, this source holds {spec.modality}.",
                             where="--init", fix="Go on with data of the same kind.")
        if trained.spec.channels != spec.channels:
            raise UsageError(f"{init} was trained on {trained.spec.channels} channels, this source has "
                             f"{spec.channels}.", where="--init")
        _refuse_kind(made, fits, "--init")
        other = [k for k, v in options.items() if plain(made.options.get(k)) != plain(v)]
        if name not in ("auto", made.name) or other:
            raise UsageError(f"The backbone of {init} is {made.name}; "
                             + (f"its {', '.join(other)} cannot be changed." if other else f"{name} is another one."),
                             where="--backbone", fix="Leave the backbone and its options to --init.")
        known = trained.spec is not spec
        say(f"continuing from {init} ({made.name}); " + ("its data statistics are kept" if known else
                                                         "the data statistics are this source's"))
        return made.train(), trained.spec if known else None
    if init is not None:
        name = str(init) if str(init).startswith(("timm:", "hf:")) else f"hf:{init}"
        options = {"pretrained": True, **options}
    if name == "auto" and "towers" in fits and spec.modality == "several":
        name = "towers"
        say("backbone=towers: an encoder a member, which the objective compares")
    elif name == "auto" and "tokens" not in fits and "nodes" in fits:
        name = "gcn_mini"
        say(f"backbone={name}: the objective trains graph networks")
    elif name == "auto" and spec.modality != "image":
        name = "vit_mini"
        say(f"backbone={name}: the Transformer of every modality beside images")
    elif name == "auto":
        name = ("vit_tiny" if spec.size <= 16 else "vit_mini") if "maps" not in fits else (
            "resnet_tiny" if spec.size <= 16 else "resnet_mini" if spec.size <= 64 else "resnet18")
        say(f"backbone={name}: sized to {spec.size}-pixel images and to what the objective can train")
    network = build_backbone(name, channels=spec.channels, size=sides,
                             **{**find(spec.modality).backbone_options(spec), **options})
    _refuse_kind(network, fits, "--backbone" if init is None else "--init")
    return network, None


def _refuse_kind(network: Backbone, fits: tuple[str, ...], where: str) -> None:
    """An objective that cannot train this kind of backbone says so before anything is computed."""
    if network.kind not in fits:
        kinds = {"tokens": "token backbones (ViT)", "maps": "convolutional backbones (ResNet)",
                 "towers": "one encoder a modality (towers)", "nodes": "graph networks (GCN, GIN, GAT)"}
        raise UsageError(f"This objective trains {' or '.join(kinds[k] for k in fits)}; '{network.name}' is not one.",
                         where=where)


def _resolved(wishes: dict[str, Any], network: Backbone, chosen: dict[str, dict[str, Any]], card: Card,
              training: TrainSettings, dataset: Dataset) -> dict[str, Any]:
    """The whole configuration, as ``config.yaml`` stores it; what was not asked for stands there too."""
    usual = {o.name: o.default for o in registry.options(card) if not o.required and o.name not in ("backbone", "data")}
    train_values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(training).items()}
    return {"source": lasting(wishes["source"]), "objective": wishes["objective"], "backbone": network.name,
            "init": None if wishes["init"] is None else str(wishes["init"]),
            "data": {**DATA_SETTINGS, **chosen["data"]}, "backbone_options": dict(network.options),
            "objective_options": {**usual, **chosen["objective"]}, "train": train_values,
            "fingerprint": dataset.fingerprint}


def lasting(source: str) -> str:
    """The source by a name that holds from any folder: an absolute path where it is a path."""
    whole, ids = split_ids(str(source))
    if ids is not None:
        return f"{lasting(whole)}@{ids.resolve()}"
    path, colon, part = source.rpartition(":")
    for name, rest in ((source, ""), (path, colon + part)):
        if name and (Path(name).exists() or is_pattern(name)):
            return str(Path(name).resolve()) + rest
    return source


def speaker(progress: bool) -> Any:
    """What prints a message to the user on the first process, or says nothing."""
    import os
    import sys

    lead = int(os.environ.get("RANK", "0")) == 0
    return (lambda text: print(f"  {text}", file=sys.stderr, flush=True)) if progress and lead else (lambda _text: None)
