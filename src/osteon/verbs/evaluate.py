"""``osteon evaluate``: score a backbone on labels, always beside its controls, and say whether pre-training paid."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from osteon.backbones import Backbone
from osteon.core import registry
from osteon.core.atomic import write_text
from osteon.core.errors import DataError, UsageError
from osteon.core.plain import plain
from osteon.core.provenance import collect
from osteon.core.run import RunFolder
from osteon.data import Dataset, find_duplicates, open_source
from osteon.data.leaks import TRANSDUCTIVE, transductive
from osteon.modalities import find
from osteon.parts.cells import by_names
from osteon.parts.regression import R2
from osteon.parts.surgery import apply_edits, edits_of
from osteon.parts.types import DataSpec
from osteon.report.compare_page import write_evaluation_report
from osteon.verbs._alone import alone_in
from osteon.verbs._arms import (
    Arm,
    Task,
    errors_of,
    feature_arms,
    interval_of,
    labelled_arms,
    labelled_controls,
    make_task,
)
from osteon.verbs._held_out import held_out, lines, overall
from osteon.verbs._labelled import fitting, open_pair, spread_of
from osteon.verbs._model import Trained, behind_head, extract, load_trained
from osteon.verbs._networks import fresh, network_arms
from osteon.verbs._pictures import collect_artefacts
from osteon.verbs._verdict import judge

#: ways to treat test samples that were seen in training
LEAKS = ("error", "drop", "allow")
#: uses of labels that train the whole network rather than read features
WHOLE = "fine_tune"


@alone_in("out", "run")
def evaluate(run: str | Path | Sequence[str | Path], *, train: str | Path, test: str | Path,
             metrics: Sequence[str] = ("knn", "ncm", "linear_probe"), label_budget: Sequence[int | str] = ("all",),
             seeds: int = 3, scratch_steps: int | None = None, leaks: str = "error", task: str = "auto",
             target: str | None = None, head_layer: int = 0, out: str | Path | None = None,
             progress: bool = True) -> dict[str, Any]:
    """Score one run, or several seeds of several recipes, beside raw inputs, the untrained network and scratch.

    Args:
        run: run folder, or several; runs of one objective and backbone are taken as seeds of one recipe.
        train: labelled source; its labels are classes, or numbers to be predicted. Unlabelled for ``held_out`` alone.
        test: source of the same kind, disjoint from ``train`` and from the data of pre-training.
        metrics: evaluators (``osteon methods --kind evaluator``) and ``fine_tune``; those that need no labels describe
            the test features under ``label_free``; ``held_out`` is what each run's own task costs on ``test``
            (perplexity, Chamfer distance, errors of what was hidden) beside controls that are fitted on ``train``.
        label_budget: numbers of labels, or ``all``.
        seeds: subsets of labels (and initialisations) over which intervals are taken.
        scratch_steps: optimiser steps of training from scratch and of fine-tuning; by default as many as the
            pre-training took; 0 leaves the from-scratch control out.
        leaks: what to do when copies of test samples lie in the training or pre-training data: ``error``, ``drop`` the
            test samples concerned, or ``allow``.
        task: ``classes``, ``regression`` (labels are numbers to be predicted), or ``auto``: regression where they are
            more than 20 distinct numbers, not all of them whole.
        target: column of the numbers to be predicted, in the place of labels.
        head_layer: read features behind this layer of each run's projection head (SimCLRv2: 1); 0: before it.
        out: folder for ``evaluation.json`` and ``report.html``; by default the (first) run's own.
        progress: tell what goes on.

    Returns:
        Verdict, every arm at every budget with its interval, controls included, and what was automatic.
    """
    readers, describers, tasks = _sort_metrics(_listed(metrics), scratch_steps)
    label_budget = _listed(label_budget)
    if seeds < 1 or not label_budget:
        raise UsageError("At least one seed and one label budget are needed.", where="--seeds, --label-budget")
    say = _speaker(progress)
    runs = [Path(r) for r in ([run] if isinstance(run, str | Path) else run)]
    models = [load_trained(r) for r in runs]
    for model, path in zip(models, runs, strict=True):
        behind_head(path, model, head_layer)
    if leaks not in LEAKS:
        raise UsageError(f"'{leaks}' is no way to treat leaks.", where="--leaks", fix=f"Use {', '.join(LEAKS)}.")
    train_set, test_set = open_pair(train, test, models[0].spec, task, target)
    notes = [*train_set.notes, *(n for n in test_set.notes if n not in train_set.notes)]
    test_set, found = check_leaks(models, train_set, test_set, leaks)
    notes += found
    own = held_out(models, runs, train_set, test_set, say) if tasks else {}
    if not readers and WHOLE not in _listed(metrics):
        first = next(iter(own.values()))
        result: dict[str, Any] = {"verdict": overall(own), "metric": first["unit"], "budgets": [], "arms": [],
                                  "test_samples": len(test_set), "notes": notes}
        return _written(result, own, models, runs, train_set, test_set, out)
    flips = [m.meta.get("objective", {}).get("options", {}).get("flip") is not False for m in models]
    if head_layer:
        notes.append(f"features are read behind layer {head_layer} of the projection head; the controls have none")
    judged = make_task(train_set, test_set, [_budget(b) for b in label_budget], seeds, flip=all(flips))
    readers, left = fitting(readers, judged, whole=WHOLE in _listed(metrics) and scratch_steps != 0)
    notes += left
    notes.append(f"{len(judged.held_out)} labelled samples of --train are held out: recipes and controls are chosen on "
                 "them, they train nothing")
    most = max(len(group) for group in _recipes(models).values())
    if most > seeds:
        notes.append(f"{most} runs of one recipe were given; with --seeds {seeds}, the first {seeds} are scored")
    arms = _all_arms(models, judged, readers, WHOLE in _listed(metrics), scratch_steps, say)
    result = {"verdict": judge(arms, judged.unit), "metric": judged.unit, "budgets": judged.budgets,
              "arms": [_row(a) for a in arms], "support": _support(judged), "classes": judged.classes,
              "test_samples": len(test_set), "seeds": seeds, "notes": notes}
    if describers:
        result["label_free"] = {m.name: _describe(m, test_set, describers) for m in models}
    if judged.regression:
        result["target"] = spread_of(judged.test_y)
    return _written(result, own, models, runs, train_set, test_set, out)


def _written(result: dict[str, Any], own: Mapping[str, Any], models: Sequence[Trained], runs: Sequence[Path],
             train: Dataset, test: Dataset, out: str | Path | None) -> dict[str, Any]:
    """Write ``evaluation.json`` and the page; the result, complete."""
    result["runs"] = [_about(m, r) for m, r in zip(models, runs, strict=True)]
    result = plain({**result, "held_out": own} if own else result, finite=True)  # undefined scores are null: JSON
    folder = Path(out) if out is not None else runs[0]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "evaluation.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    page = write_evaluation_report(
        {**result, "title": "Did pre-training pay?", "curves": _curves(runs), "environment": collect({}),
         "skipped": [(s.id, s.reason) for s in [*train.skipped, *test.skipped]],
         "artefacts": _artefacts(models[0], test)}, folder / ("evaluation.html" if out is None else "report.html"),
        runs=result["runs"])
    result["report"] = str(page)
    return result


def _describe(model: Trained, test: Dataset, names: Sequence[str]) -> dict[str, Any]:
    """What evaluators that need no labels say of the test features."""
    features = extract(model.backbone, test, model.spec)
    return {name: registry.build("evaluator", name)(features) for name in names}


def _listed(words: Sequence[Any] | str) -> list[Any]:
    """The items of a sequence, or of a comma-separated text, without repeats."""
    return list(dict.fromkeys([w.strip() for w in words.split(",") if w.strip()] if isinstance(words, str) else words))


def _sort_metrics(metrics: Sequence[str], scratch_steps: int | None) -> tuple[list[str], list[str], list[str]]:
    """Names of evaluators that read labels, of those that describe features without labels, and of tasks of a run."""
    names = [m for m in metrics if m != WHOLE]
    describers, tasks = ([m for m in names if _needs(m) == kind] for kind in ("features", "objective"))
    readers = [m for m in names if m not in describers and m not in tasks]
    if not readers and (WHOLE not in metrics or scratch_steps == 0) and (describers or WHOLE in metrics or not tasks):
        raise UsageError("These metrics leave nothing to compare with the controls.", where="--metrics",
                         fix=f"Add one that reads labels, e.g. knn, or {WHOLE} with training from scratch.")
    return readers, describers, tasks


def _needs(name: str) -> str:
    return str(getattr(registry.load(registry.find("evaluator", name)), "needs", "labels"))


def _recipes(models: Sequence[Trained]) -> dict[str, list[Trained]]:
    """Runs of one objective and backbone are seeds of one recipe."""
    recipes: dict[str, list[Trained]] = {}
    for model in models:
        objective = model.meta.get("objective", {}).get("name", model.name)
        recipes.setdefault(f"{objective} ({model.backbone.name})", []).append(model)
    return recipes


def _all_arms(models: Sequence[Trained], task: Task, readers: Sequence[str], fine_tune: bool,
              scratch_steps: int | None, say: Callable[[str], None]) -> list[Arm]:
    """Pre-trained arms and controls."""
    recipes = {name: group[:len(task.subsets)] for name, group in _recipes(models).items()}
    short = {name: name.split(" (")[0] for name in recipes}
    if len(set(short.values())) < len(short):
        short = {name: name for name in recipes}
    arms: list[Arm] = []
    networks: dict[str, Trained] = {}
    for name, group in recipes.items():
        say(f"{short[name]}: features of {len(group)} run(s)")
        pairs = [_features(m.backbone, m.spec, task) for m in group]
        arms += feature_arms(short[name], "pretrained", pairs, task, readers)
        network = group[0].backbone
        if not any(m.backbone.name == network.name and m.backbone.options == network.options
                   for m in networks.values()):
            networks[network.name if network.name not in networks else f"{network.name} ({short[name]}'s)"] = group[0]
        if fine_tune:
            arms += network_arms(short[name], "pretrained", "fine-tuned", _reloader(group), task,
                                 steps=_steps(scratch_steps, group[0]), say=say)
    controls = find(task.train.modality).CONTROLS
    say(f"controls: {', '.join(controls)}")
    for name, control in controls.items():
        arms += feature_arms(name, "control", [control(task.train.images, task.test.images, task.train.spec)], task,
                             readers)
    for name, fit in labelled_controls(find(task.train.modality), task).items():
        say(f"control: {name}")
        arms += labelled_arms(name, fit, task)
    for name, model in networks.items():
        say(f"control: untrained {name}")
        pairs = [_features(fresh(model.backbone, seed), model.spec, task) for seed in range(len(task.subsets))]
        arms += feature_arms(f"untrained {name}", "control", pairs, task, readers)
        if scratch_steps != 0:
            arms += network_arms(f"{name} from scratch", "control", "from scratch", _untrained(model), task,
                                 steps=_steps(scratch_steps, model), say=say)
    return arms


def _untrained(model: Trained) -> Callable[[int], tuple[Backbone, DataSpec]]:
    return lambda seed: (fresh(model.backbone, seed), model.spec)


def _reloader(group: Sequence[Trained]) -> Callable[[int], tuple[Backbone, DataSpec]]:
    def make(seed: int) -> tuple[Backbone, DataSpec]:
        model = group[seed % len(group)]
        copy = fresh(model.backbone, seed)
        apply_edits(copy, edits_of(model.backbone))
        copy.load_state_dict(model.backbone.state_dict())
        return copy, model.spec

    return make


def _steps(asked: int | None, model: Trained) -> int:
    return int(asked if asked else model.meta.get("steps") or 200)


def _features(backbone: Backbone, spec: DataSpec, task: Task) -> tuple[np.ndarray, np.ndarray]:
    return extract(backbone, task.train, spec), extract(backbone, task.test, spec)


def check_leaks(models: Sequence[Trained], train: Dataset, test: Dataset, leaks: str) -> tuple[Dataset, list[str]]:
    """Look for test samples, or copies of them, in the labelled training data and in the data of pre-training.

    Args:
        models: what was pre-trained; each remembers its source.
        train: labelled training data.
        test: labelled test data.
        leaks: ``error``, ``drop`` or ``allow``.

    Returns:
        The test data, without what leaked when dropped, and lines to be printed.

    Raises:
        DataError: when any is found and leaks are an error.
    """
    notes: list[str] = []
    leaked: set[str] = set()
    pools = [("--train", train)]
    unlabelled = transductive(test.spec) and not any(_reads_labels(m) for m in models)
    notes += [TRANSDUCTIVE] if unlabelled and models else []
    for source in sorted({str(s) for m in models for s in m.meta.get("sources") or [m.meta.get("source")] if s}):
        if unlabelled:
            break
        try:
            pool = open_source(source, like=test.spec if by_names(test.spec) else models[0].spec)
        except (UsageError, DataError) as error:
            notes.append(f"leak check: the pre-training data {source} could not be opened ({error.what}); unchecked")
            continue
        if pool.fingerprint != train.fingerprint:
            pools.append((f"the pre-training data {source}", pool))
    for name, pool in pools:
        shared = {g for g in pool.groups or () if g} & {g for g in test.groups or () if g}
        if shared:
            _leak(f"{len(shared)} groups lie in both {name} and --test, e.g. '{min(shared)}'.", test.source, leaks,
                  notes)
            leaked |= {i for i, g in zip(test.ids, test.groups or (), strict=True) if g in shared}
        copies = find_duplicates(pool, test)
        notes += [n for n in copies.notes if n not in notes]
        notes.append(f"leak check: {len(copies.exact)} exact and {len(copies.near)} near copies between {name} and "
                     "the test data")
        if copies.exact or copies.near:
            a, b = (copies.exact or copies.near)[0]
            _leak(f"{len(copies.exact)} exact and {len(copies.near)} near copies of test samples lie in {name}, e.g. "
                  f"{b} is {a}.", test.source, leaks, notes)
            leaked |= {b for _, b in [*copies.exact, *copies.near]}
    if leaked and leaks == "drop":
        kept = np.array([i for i, name in enumerate(test.ids) if name not in leaked], dtype=np.int64)
        if not len(kept):
            raise DataError("Every test sample has a copy in the training data.", where=test.source)
        notes.append(f"leak check: {len(test) - len(kept)} test samples were dropped, {len(kept)} remain")
        test = test.subset(kept)
    return test, notes


def _reads_labels(model: Trained) -> bool:
    """Whether a model was pre-trained on labels; one of unknown origin may have been."""
    name = model.meta.get("objective", {}).get("name")
    return name is None or registry.find("objective", name).labels


def _leak(text: str, where: str, leaks: str, notes: list[str]) -> None:
    if leaks == "error":
        raise DataError(text, where=where, fix="Remove them, or use --leaks drop (they leave the test) or --leaks "
                                               "allow (the scores will flatter).")
    notes.append(f"LEAK ({'dropped' if leaks == 'drop' else 'allowed'}): {text}")


def _row(arm: Arm) -> dict[str, Any]:
    mean, least = interval_of(arm), 0.0 if arm.targets is None else -np.inf
    means = {k: float(np.mean(v)) for k, v in arm.scores.items()}
    return {"name": arm.name, "kind": arm.kind, "source": arm.source, "evaluator": arm.evaluator, "budget": arm.budget,
            "mean": mean.mean, "low": max(least, mean.low), "high": min(1.0, mean.high),
            "seeds": [float(q) for q in arm.quality.mean(1)],
            "validation": arm.validation, "wall_s": arm.wall_s, **means, **errors_of(arm)}


def _support(task: Task) -> dict[str, int]:
    if task.regression:
        return {}
    y = np.asarray(task.test.labels)
    counts = y.sum(0) if y.ndim == 2 else np.bincount(y, minlength=task.classes)
    names = task.test.class_names or [str(i) for i in range(task.classes)]
    return {str(n): int(c) for n, c in zip(names, counts, strict=False)}


def _about(model: Trained, path: Path) -> dict[str, Any]:
    return {"name": path.name, "objective": model.meta.get("objective", {}).get("name", ""),
            "backbone": model.backbone.name, "steps": model.meta.get("steps"),
            "parameters": sum(p.numel() for p in model.backbone.parameters())}


def _curves(runs: Sequence[Path]) -> dict[str, dict[str, list[float]]]:
    curves = {}
    for path in runs:
        rows = RunFolder(path).metrics()
        if rows:
            curves[path.name] = {key: [r.get(key, float("nan")) for r in rows] for key in ("step", "loss", "rank")}
    return curves


def _artefacts(model: Trained, test: Dataset) -> dict[str, np.ndarray]:
    rows = np.linspace(0, len(test) - 1, min(1000, len(test))).round().astype(int)
    sample = test.subset(rows)
    return collect_artefacts(sample, extract(model.backbone, sample, model.spec), model.spec, None)


def _budget(value: int | str) -> int | str:
    text = str(value).strip().lower()
    if text == "all":
        return text
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise UsageError(f"A label budget is a number of labels or 'all', not '{value}'.", where="--label-budget")
    return number


def _speaker(progress: bool) -> Callable[[str], None]:
    return (lambda text: print(f"  {text}", file=sys.stderr, flush=True)) if progress else (lambda _text: None)


def summary(result: Mapping[str, Any]) -> str:
    """A table for the terminal: every arm at every budget, best first, then the verdict; runs' own tasks above."""
    own = lines(result.get("held_out") or {})
    if not result["arms"]:
        return "\n".join(own)
    budgets = result["budgets"]
    names = list(dict.fromkeys((a["name"], a["kind"]) for a in result["arms"]))
    by = {(a["name"], a["budget"]): a for a in result["arms"]}
    names.sort(key=lambda nk: -float(np.mean([by[nk[0], b]["mean"] for b in budgets])))
    wide = max(len(n) for n, _ in names)
    numbers = result.get("metric") == R2
    rows = [f"{R2 if numbers else '':{wide}}  {'':10}  " + "  ".join(f"{str(b) + ' labels':>22}" for b in budgets)]
    for name, kind in names:
        cells = [_cell(by[name, b], numbers) for b in budgets]
        rows.append(f"{name:{wide}}  {kind:10}  " + "  ".join(f"{c:>22}" for c in cells))
    if numbers:
        rows += ["", *(_errors(by[names[0][0], b]) for b in budgets)]
    return "\n".join([*own, *([""] if own else []), *rows, "", result["verdict"]["sentence"]])


def _cell(arm: Mapping[str, Any], numbers: bool) -> str:
    if numbers:
        return f"{arm['mean']:6.3f} [{arm['low']:6.3f}, {arm['high']:6.3f}]"
    return f"{100 * arm['mean']:5.1f} [{100 * arm['low']:5.1f}, {100 * arm['high']:5.1f}]"


def _errors(arm: Mapping[str, Any]) -> str:
    """Errors of an arm in the unit of the target."""
    mae, rmse = (f"{key.upper()} {arm[key]:.4g} [{arm[key + '_low']:.4g}, {arm[key + '_high']:.4g}]"
                 for key in ("mae", "rmse"))
    return f"{arm['name']}, {arm['budget']} labels: {mae}, {rmse}"
