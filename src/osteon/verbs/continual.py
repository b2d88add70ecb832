"""``osteon continual``: learn classes task by task from a backbone, beside joint and sequential training."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from osteon.core import registry
from osteon.core.atomic import write_text
from osteon.core.errors import UsageError, nearest
from osteon.core.plain import plain
from osteon.data import Dataset
from osteon.evaluators.linear_probe import LinearProbe
from osteon.mergers._controls import Joint, Sequential
from osteon.parts.continual import BATCH, Continual, TaskData
from osteon.verbs._alone import alone_in
from osteon.verbs._labelled import open_pair
from osteon.verbs._model import Trained, extract, fit_samples, load_trained
from osteon.verbs.evaluate import check_leaks

RESULT = "continual.json"
CONTROLS = ("joint", "sequential", "sequential_head")


@alone_in("out")
def continual(run: str | Path, *, train: str | Path, test: str | Path, tasks: int = 5,
              methods: Sequence[str] = ("nmc", "seq"), controls: Sequence[str] = CONTROLS, epochs: int = 10,
              leaks: str = "error", seed: int = 0, settings: Mapping[str, Any] | None = None,
              out: str | Path | None = None, progress: bool = True) -> dict[str, Any]:
    """Learn the classes of a source in several tasks, without going back, and measure what is forgotten.

    Args:
        run: run folder; every method begins with its backbone.
        train: labelled source, cut into tasks by class.
        test: labelled source all accuracies are measured on.
        tasks: number of tasks; the classes, in an order drawn by the seed, are dealt out evenly.
        methods: continual rules (``osteon methods --kind merger``).
        controls: of ``joint`` (all samples at once), ``sequential`` (fine-tuning task by task) and ``sequential_head``
            (the same with the backbone left as it is).
        epochs: passes over each task in the controls, and of ``seq`` unless set.
        leaks: as in ``osteon evaluate``.
        seed: of the order of classes and of all training.
        settings: options, ``NAME`` where a single method has it, else ``METHOD.NAME``.
        out: folder for ``continual.json``.
        progress: tell what goes on.

    Returns:
        ``methods``: name -> ``matrix`` (row t: after task t, the accuracy on each task's test samples, the answer being
        among all classes seen), ``steps`` (accuracy on all classes seen after each task), ``average`` (its mean),
        ``final`` (its last), ``forgetting`` (mean over earlier tasks of the best accuracy less the last), ``probe``
        (accuracy of a fresh linear probe on all classes, fitted on the backbone as the method left it) and
        ``probe_first`` (the same for the first task's classes); ``tasks``: names of classes; ``notes``.
    """
    say = _speaker(progress)
    model = load_trained(run)
    rules = _rules(methods, controls, dict(settings or {}), epochs)
    train_set, test_set = open_pair(train, test, model.spec)
    for data, option in ((train_set, "--train"), (test_set, "--test")):
        if data.labels is None or data.labels.ndim != 1:
            raise UsageError("Continual learning needs one label a sample.", where=f"{option} {data.source}")
    test_set = test_set.with_classes(train_set.class_names)
    test_set, notes = check_leaks([model], train_set, test_set, leaks)
    parts = _deal(train_set, test_set, tasks, seed)
    result: dict[str, Any] = {"tasks": [[train_set.class_names[c] for c in part] for part in parts], "methods": {},
                              "seed": seed, "notes": notes}
    for name, rule in rules.items():
        result["methods"][name] = _follow(rule, model, train_set, test_set, parts, seed, joint=name == "joint")
        say(f"{name}: final {result['methods'][name]['final']:.1%}")
    result = plain(result, finite=True)
    if out is not None:
        write_text(Path(out) / RESULT, json.dumps(result, indent=2, allow_nan=False) + "\n")
    return result


def summary(result: Mapping[str, Any]) -> str:
    """A table for the terminal."""
    wide = max(len(n) for n in result["methods"])
    lines = [f"{'':{wide}}  average    final  forgetting  probe, all  probe, first task"]
    for name, row in sorted(result["methods"].items(), key=lambda item: -item[1]["final"]):
        lost = "       –" if row["forgetting"] is None else f"{100 * row['forgetting']:6.1f} %"
        lines.append(f"{name:{wide}}  {100 * row['average']:5.1f} %  {100 * row['final']:5.1f} %    {lost}   "
                     f"{100 * row['probe']:6.1f} %  {100 * row['probe_first']:14.1f} %")
    return "\n".join([*lines, f"{len(result['tasks'])} tasks; average: over the steps, on all classes seen then; "
                              "joint saw all samples at once"])


def _rules(methods: Sequence[str], controls: Sequence[str], settings: dict[str, Any],
           epochs: int) -> dict[str, Continual]:
    """The methods with their options, then the controls."""
    names = list(dict.fromkeys(registry.find("merger", m).name for m in methods))
    rules: dict[str, Continual] = {}
    left = dict(settings)
    for name in names:
        card = registry.find("merger", name)
        known = {o.name for o in registry.options(card)}
        mine = {k.removeprefix(f"{name}."): left.pop(k) for k in list(left)
                if k.startswith(f"{name}.") or (len(names) == 1 and "." not in k)}
        if "epochs" in known:
            mine = {"epochs": epochs, **mine}
        rule = registry.build("merger", name, **mine)
        if rule.rule != "continual":
            raise UsageError(f"{name} merges weights; it learns no tasks.", where="--method",
                             fix=f"Use: osteon merge RUN... --method {name} ...")
        rules[name] = rule
    if left:
        raise UsageError(f"The setting '{min(left)}' belongs to none of {', '.join(names) or 'the methods'}.",
                         where="--set", fix="Write METHOD.NAME=VALUE, e.g. seq.head=linear.")
    known_controls = {"joint": Joint(epochs=epochs), "sequential": Sequential(epochs=epochs),
                      "sequential_head": Sequential(epochs=epochs, head_only=True)}
    for name in controls:
        if name not in known_controls:
            raise UsageError(f"There is no control called '{name}'.{nearest(name, CONTROLS)}", where="--controls",
                             fix=f"Controls: {', '.join(CONTROLS)}.")
        rules[name] = known_controls[name]
    if not rules:
        raise UsageError("There is nothing to learn with.", where="--method", fix="Name a method, e.g. nmc.")
    return rules


def _deal(train: Dataset, test: Dataset, tasks: int, seed: int) -> list[tuple[int, ...]]:
    """Classes of each task; every class has training and test samples."""
    usable = np.intersect1d(np.asarray(train.labels), np.asarray(test.labels))
    if not 2 <= tasks <= len(usable):
        raise UsageError(f"{len(usable)} classes cannot be dealt into {tasks} tasks.", where="--tasks",
                         fix=f"Choose 2 to {len(usable)}.")
    order = np.random.default_rng(seed).permutation(usable)
    return [tuple(int(c) for c in part) for part in np.array_split(order, tasks)]


def _task(model: Trained, data: Dataset, classes: Sequence[int]) -> TaskData:
    assert data.labels is not None
    rows = np.flatnonzero(np.isin(data.labels, classes))
    return TaskData(lambda index: fit_samples(data, model.spec, rows[index]), torch.from_numpy(data.labels[rows]),
                    tuple(classes))


def _follow(rule: Continual, model: Trained, train: Dataset, test: Dataset, parts: list[tuple[int, ...]], seed: int, *,
            joint: bool) -> dict[str, Any]:
    """Learn task after task (or all at once) and measure after each."""
    exams = [_task(model, test, part) for part in parts]
    together = [tuple(c for part in parts for c in part)]
    rule.begin(model.backbone, together if joint else parts, seed)
    matrix: list[list[float]] = []
    steps: list[float] = []
    for part in together if joint else parts:
        rule.learn(_task(model, train, part))
        seen = exams if joint else exams[:len(matrix) + 1]
        right = [torch.cat([rule.predict(x) == y for x, y in exam.in_order()]).double() for exam in seen]
        matrix.append([float(r.mean()) for r in right])
        steps.append(float(torch.cat(right).mean()))
    lost = None if joint else float(np.mean([max(row[j] for row in matrix[j:-1]) - matrix[-1][j]
                                             for j in range(len(parts) - 1)]))
    return {"matrix": matrix, "steps": steps, "average": float(np.mean(steps)), "final": steps[-1], "forgetting": lost,
            "probe": _probe(rule, model, train, test, together[0]),
            "probe_first": _probe(rule, model, train, test, parts[0])}


def _probe(rule: Continual, model: Trained, train: Dataset, test: Dataset, classes: Sequence[int]) -> float:
    """Accuracy of a fresh linear probe on what the backbone is now: what is still in the features."""
    data = []
    for dataset in (train, test):
        assert dataset.labels is not None
        part = dataset.subset(np.flatnonzero(np.isin(dataset.labels, classes)))
        data.append((extract(rule.backbone, part, model.spec, batch_size=BATCH),  # type: ignore[arg-type]
                     np.searchsorted(np.sort(classes), np.asarray(part.labels))))
    (x, y), (asked, truth) = data
    if len(classes) < 2:
        return 1.0
    return float((LinearProbe()(x, y, asked, classes=len(classes)).argmax(1) == truth).mean())


def _speaker(progress: bool) -> Callable[[str], None]:
    return (lambda text: print(f"  {text}", file=sys.stderr, flush=True)) if progress else (lambda _text: None)
