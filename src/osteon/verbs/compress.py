"""``osteon compress``: make a backbone smaller or faster within a budget, and say what it cost."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from osteon.backbones import Backbone
from osteon.core import registry
from osteon.core.errors import OsteonError, UsageError, nearest
from osteon.core.licences import entry, stated
from osteon.core.options import Option, coerce
from osteon.core.options import settle as settle_options
from osteon.core.provenance import collect
from osteon.core.run import RunFolder
from osteon.data import Dataset, find_duplicates, open_source
from osteon.parts.calibration import Calibration
from osteon.parts.compressor import Budget, Compressor, measure
from osteon.parts.subsets import holdout
from osteon.train.settings import WISHES
from osteon.verbs._compress_program import write_program
from osteon.verbs._compress_report import add_latencies, measure_row, table
from osteon.verbs._compress_train import fitter
from osteon.verbs._model import Trained, fit_samples, load_trained, save_trained
from osteon.verbs.pretrain import lasting

#: settings of the verb itself and of the data that ``--set`` may change
SETTINGS = [Option("limit", "int | None", None), Option("max_skipped", "float", 0.01),
            Option("data_license", "str | None", None), Option("calibration", "int", 512),
            Option("control", "bool", True), Option("held_out", "float", 0.2)]
RESULT = "compression.json"
PROGRAM = "program.pt2"
CONTROL = "random pruning (control)"


def compress(run: str | Path, *, data: str | Path, method: str, budget: str | Budget, out: str | Path,
             val: str | Path | None = None, settings: Mapping[str, Any] | None = None, seed: int = 0,
             progress: bool = True) -> Path:
    """Make the backbone of a run smaller, and measure it before and after, beside random pruning to the same budget.

    Args:
        run: run folder or exported folder.
        data: source to calibrate and, for methods that train, to train on; labels are used to score features.
        method: name of a compressor (``osteon methods --kind compressor``).
        budget: ``params=0.3``, ``flops=50%``, ``latency=5ms``, ``bytes=2MB``: a share of the original, or a cost.
        out: run folder; every other verb takes it, and ``program.pt2`` in it needs nothing but PyTorch.
        val: labelled source the features are scored on; by default a fifth of ``data``, if that has labels.
        settings: options of the method and of its training, and ``calibration`` (samples for statistics), ``control``
            (false: no control), ``held_out`` (share of ``data`` to score on), ``limit``, ``max_skipped``,
            ``data_license`` (recorded).
        seed: key of everything random.
        progress: show what happens.

    Returns:
        The run folder: ``model.safetensors``, ``program.pt2``, ``compression.json`` with costs, scores and intervals.

    Raises:
        UsageError: a budget that cannot be met, saying what can; options that do not fit.
    """
    say = _speaker(progress)
    card = registry.find("compressor", method)
    chosen = sort_settings(dict(settings or {}), card.name)
    wanted = Budget.parse(budget) if isinstance(budget, str) else budget
    trained = load_trained(run)
    registry.need(card, trained.spec.modality, where="--method")
    if trained.backbone.kind not in card.backbones:
        raise UsageError(f"{card.name} takes networks of {' or '.join(card.backbones)}; {trained.backbone.name} is one "
                         f"of {trained.backbone.kind}.", where="--method",
                         fix="`osteon methods --kind compressor --json` lists what each takes (backbones).")
    if trained.adapter is not None and not trained.adapter.mergeable:
        raise UsageError(f"{run} holds an adapter that works beside its backbone: there is no one network to compress.",
                         where=str(run), fix="Compress the run it was made from.")
    stated(chosen["verb"]["data_license"])
    made: Compressor = registry.build("compressor", card.name, **chosen["compressor"])
    parts = _open(trained, data, val, chosen["verb"], seed)
    if trained.adapter is not None:
        parts.calibration.head = trained.adapter.head
    for note in parts.notes:
        say(note)
    folder = RunFolder(Path(out))
    with folder.lock():
        folder.create_or_resume({
            "base": str(Path(run).resolve()), "data_source": lasting(str(data)),
            "val_source": None if val is None else lasting(str(val)), "method": card.name,
            "method_options": chosen["compressor"], "budget": str(wanted), "seed": seed, "verb": chosen["verb"],
            "train": chosen["train"], "fingerprint": parts.train.fingerprint})
        wishes = {**chosen["train"], "seed": seed}
        result = made(trained.backbone, wanted, parts.calibration,
                      fitter(parts.train, folder, wishes, progress=progress, say=say), seed=seed)
        for note in made.notes:
            say(note)
        networks = {"original": trained.backbone, card.name: result}
        notes = [*parts.notes, *made.notes]
        if chosen["verb"]["control"]:
            control, told = _control(trained, result, made, wanted, parts, folder, wishes, seed, say)
            notes += told
            networks |= {} if control is None else {CONTROL: control}
        rows = [measure_row(name, network, parts.labelled, parts.test, trained.spec, seed)
                for name, network in networks.items()]
        add_latencies(rows, list(networks.values()))
        _store(folder, run, trained, result, card.name, chosen, wanted, parts, rows, notes)
    return folder.path


def summary(folder: str | Path) -> str:
    """The table of a compressed run and what it rests on, as text."""
    found = json.loads((Path(folder) / RESULT).read_text(encoding="utf-8"))
    said = (f"features scored on {found['val_samples']} held-out samples, intervals of 95 %" if found["val_samples"]
            else "no labels: accuracy was not measured")
    return "\n".join([table(found["rows"]), "", f"budget {found['budget']}; {said}"])


@dataclass
class _Parts:
    """The data of one compression: what trains or calibrates, what has labels, what scores."""

    train: Dataset
    labelled: Dataset | None
    test: Dataset | None
    calibration: Calibration
    notes: list[str]


def sort_settings(settings: dict[str, Any], method: str) -> dict[str, dict[str, Any]]:
    """Hand each ``--set`` key to the one door it belongs to: the verb, the compressor or its training."""
    options = registry.options(registry.find("compressor", method))
    training = [name for name in WISHES if name != "seed"]
    doors = {"verb": [o.name for o in SETTINGS], "compressor": [o.name for o in options], "train": training}
    out: dict[str, dict[str, Any]] = {door: {} for door in doors}
    for key, value in settings.items():
        door = next((d for d, names in doors.items() if key in names), None)
        if door is None:
            raise UsageError(f"Unknown setting '{key}'.{nearest(key, [n for names in doors.values() for n in names])}",
                             where="--set", fix=f"'osteon methods {method}' lists the options of the method.")
        out[door][key] = value
    out["verb"] = {**{o.name: o.default for o in SETTINGS}, **settle_options(SETTINGS, out["verb"], where="compress")}
    out["compressor"] = settle_options(options, out["compressor"], where=f"compressor {method}")
    if not 0 < coerce(out["verb"]["held_out"], "float", name="held_out", where="--set") < 1:
        raise UsageError("held_out is a share between 0 and 1.", where="--set held_out")
    return out


def _open(trained: Trained, data: str | Path, val: str | Path | None, verb: Mapping[str, Any], seed: int) -> _Parts:
    """The data in the model's size, split so that nothing that scores was seen before."""
    whole = open_source(data, limit=verb["limit"], max_skipped=verb["max_skipped"], like=trained.spec)
    notes = list(whole.notes)
    train, test = whole, None
    if val is not None:
        test = open_source(val, max_skipped=verb["max_skipped"], like=trained.spec)
        if test.labels is None or whole.labels is None:
            raise UsageError("Features are scored by labels, which --data or --val lacks.", where=str(val),
                             fix="Leave --val out, or give labels to both.")
        if test.class_names != whole.class_names:
            test = test.with_classes(whole.class_names)
        found = len(find_duplicates(whole, test, near=False).exact)
        if found:
            notes.append(f"LEAK: {found} samples of --val are copies of samples in --data; the scores flatter")
    elif whole.labels is not None:
        kept, held = holdout(np.asarray(whole.labels), verb["held_out"], seed)
        train, test = whole.subset(np.sort(kept)), whole.subset(np.sort(held))
        notes.append(f"{len(test)} labelled samples are held out: features are scored on them, nothing else sees them")
    some = min(len(train), int(verb["calibration"]))
    rows = np.sort(np.random.default_rng(seed).permutation(len(train))[:some])
    spec = replace(train.spec, mean=trained.spec.mean, std=trained.spec.std)
    subset = train.subset(rows)

    def images(index: np.ndarray) -> Tensor:
        return fit_samples(subset, trained.spec, index)

    calibration = Calibration(images, some, spec, stored=subset.batch,
                              labels=None if subset.labels is None else np.asarray(subset.labels))
    return _Parts(train, train if test is not None else None, test, calibration, notes)


def _control(trained: Trained, result: Backbone, made: Compressor, budget: Budget, parts: _Parts, folder: RunFolder,
             wishes: Mapping[str, Any], seed: int, say: Callable[[str], None]) -> tuple[Backbone | None, list[str]]:
    """Random structured pruning to what the result costs, with as much training; or why there is none."""
    trains = bool(made.recipe) and (folder.path / "checkpoints").is_dir()
    spent = measure(result, latency=budget.unit == "latency")
    aim = Budget(budget.unit, float(getattr(spent, budget.unit)), share=False)
    try:
        control: Compressor = registry.build("compressor", "structured_pruning", importance="random", recover=trains)
        place = RunFolder(folder.path / "control")
        with place.lock():
            steps = {} if {"steps", "epochs"} & set(wishes) else {"steps": made.recipe.get("steps")}
            fit = fitter(parts.train, place, {**wishes, **steps}, progress=False, say=lambda _text: None)
            return control(trained.backbone, aim, parts.calibration, fit, seed=seed), []
    except OsteonError as error:
        note = f"no random pruning as a control: {error.what}"
        say(note)
        return None, [note]


def _store(folder: RunFolder, base: str | Path, trained: Trained, result: Backbone, method: str,
           chosen: Mapping[str, Any], budget: Budget, parts: _Parts, rows: list[dict[str, Any]],
           notes: list[str]) -> None:
    inherited = {k: v for k, v in trained.meta.items() if k not in ("backbone", "data", "adapter", "base")}
    step = {"method": method, "options": chosen["compressor"], "budget": str(budget)}
    save_trained(folder, result, trained.spec, {
        **inherited, "compressed": [*trained.meta.get("compressed", []), step]})
    write_program(folder.path / PROGRAM, result)
    folder.write_json("provenance.json", collect({
        "data": {"source": lasting(str(parts.train.source)), "fingerprint": parts.train.fingerprint,
                 "samples": len(parts.train), "license": stated(chosen["verb"]["data_license"])},
        "initial_weights": [entry(base)], "notes": notes}))
    folder.write_skipped([(s.id, s.reason) for s in parts.train.skipped])
    folder.write_json(RESULT, {"method": method, "options": chosen["compressor"], "budget": str(budget), "rows": rows,
                               "val_samples": 0 if parts.test is None else len(parts.test), "notes": notes})


def _speaker(progress: bool) -> Callable[[str], None]:
    if not progress:
        return lambda _text: None
    return lambda text: print(f"  {text}", file=sys.stderr, flush=True)
