"""``osteon selftrain``: learn a teacher's labels of a pool before the real ones, and say whether that paid."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from osteon.core import registry
from osteon.core.atomic import write_text
from osteon.core.errors import UsageError
from osteon.core.plain import plain
from osteon.core.run import RunFolder
from osteon.data import Dataset, Loader, open_source
from osteon.data.ids import split_ids, write_ids
from osteon.parts.adapter import Adapter
from osteon.parts.flops import count_forward, count_run
from osteon.parts.intervals import compare_paired
from osteon.parts.metrics import correctness, score_all
from osteon.parts.pseudo_labels import PseudoLabels
from osteon.parts.types import DataSpec
from osteon.train.loop import Engine, make_fabric
from osteon.train.settings import TrainSettings
from osteon.verbs._adapt_objective import AdaptObjective
from osteon.verbs._alone import alone_in
from osteon.verbs._model import Trained, fit_samples, is_ours, load_trained
from osteon.verbs._selftrain_pool import pseudo_labelled, told_of, without_copies, write_labels
from osteon.verbs.adapt import adapt, predict, sort_settings
from osteon.verbs.evaluate import LEAKS, check_leaks
from osteon.verbs.pretrain import pretrain, speaker
from osteon.verbs.staged import count_pretraining

RESULT = "selftrain.json"


@alone_in("out")
def selftrain(run: str | Path, *, train: str | Path, pool: str | Path, test: str | Path, out: str | Path,
              steps: int = 500, pool_steps: int | None = None, adapter: str = "full", min_conf: float = 0.0,
              batch_size: int | None = None, lr: float | None = None, seed: int = 0, leaks: str = "error",
              control: bool = True, settings: Mapping[str, Any] | None = None, progress: bool = True) -> dict[str, Any]:
    """Fine-tune on labels, label a pool with that, learn the pool's labels from the same weights, then the real ones.

    Beside it, from the same weights: a plain fine-tune of as many steps as all stages, and where it can be done,
    continued pre-training on the pool with as many operations as teacher, labelling and middle stage took, followed by
    the same last fine-tune. The same call resumes.

    Args:
        run: run folder, exported folder, ``timm:NAME`` or ``hf:NAME``.
        train: labelled source, small; the teacher and the last stage see nothing else.
        pool: source whose labels, if it has any, are never trained on.
        test: labelled source all scores are measured on. Nothing is chosen by it.
        out: folder for the runs ``1-teacher``, ``2-pool``, ``3-clean``, ``control``, ``continued``,
            ``continued-clean``, the list ``pseudo.csv`` and ``selftrain.json``.
        steps: optimiser steps of each fit on labels.
        pool_steps: those on the pool; None = as many.
        adapter: how all are fitted (``osteon methods --kind adapter``); one that leaves a plain network.
        min_conf: least confidence of a pseudo-label.
        batch_size: samples a step, everywhere; None = in all fits what the rule gives for ``train``.
        lr: peak learning rate of the fits; None = the adapter's.
        seed: of everything random.
        leaks: what to do when copies of test samples lie in the pool: ``error``, ``drop`` them from the pool, or
            ``allow``; of those in labelled and pre-training data as in :func:`osteon.evaluate`.
        control: also run the two controls.
        settings: as in :func:`osteon.adapt`, for every fit.
        progress: tell what goes on.

    Returns:
        ``arms`` (name -> ``run``, ``steps``, ``scores``), ``pool`` (``samples``, ``kept``, ``share``, ``confidence``,
        ``classes``, and ``agreement`` with the pool's own labels where it has some), ``gain`` (control's name -> how
        much more often the last stage is right, with its interval over test samples), ``flop``, ``notes``.

    Raises:
        UsageError: options or an adapter that do not fit.
        DataError: copies of test samples in the pool, or a pool of which nothing is kept.
    """
    say, root, many = speaker(progress), Path(out), pool_steps or steps
    label = PseudoLabels(min_conf=min_conf)
    if leaks not in LEAKS or min(steps, many) < 1:
        raise UsageError(f"leaks={leaks}, steps={steps}, pool_steps={many}: leaks is one of {', '.join(LEAKS)}, and "
                         "steps are positive.", where="selftrain")
    if not cast(type[Adapter], registry.load(registry.find("adapter", adapter))).mergeable:
        raise UsageError(f"{adapter} works beside its backbone and leaves no network for the last stage.",
                         where="--adapter", fix="Choose full, lora or another that merges.")
    common: dict[str, Any] = {"adapter": adapter, "batch_size": batch_size, "lr": lr, "seed": seed,
                              "settings": settings, "progress": progress}
    reading = sort_settings(dict(settings or {}), adapter)["data"]
    pool, test_set, like, notes = _sources(run, train, pool, test, leaks, root, reading, say)

    def fit(base: str | Path, name: str, number: int, source: str | Path | Dataset, **more: Any) -> Trained:
        say(f"{name}: {number} steps")
        return load_trained(adapt(base, train=source, val=test_set, out=root / name, steps=number, **common, **more))

    teacher = fit(run, "1-teacher", steps, train)
    common["batch_size"] = RunFolder(root / "1-teacher").config()["train"]["batch_size"]
    pool_set = open_source(pool, like=like)
    found = label(_scores(teacher, pool_set), multi_label=teacher.spec.multi_label)
    pseudo = pseudo_labelled(pool_set, found, teacher)
    told = told_of(pool_set, found, teacher)
    write_labels(root / "pseudo.csv", pool_set, found, teacher)
    say(f"pool: {told['kept']:,} of {told['samples']:,} samples labelled with a confidence of {min_conf:g} or more")
    fit(run, "2-pool", many, pseudo)
    arms = {"teacher": (teacher, steps), "selftrained": (fit(root / "2-pool", "3-clean", steps, train, keep_head=True),
                                                         2 * steps + many)}
    flop = _spent(root, teacher, pool_set, pseudo)
    if control:
        arms["control"] = (fit(run, "control", 2 * steps + many, train), 2 * steps + many)
        before = _continued(run, str(pool), flop, root, batch_size, seed, progress, notes, say)
        if before is not None:
            arms["continued"] = (fit(before, "continued-clean", steps, train), steps)
    result = plain({"arms": _scored(arms, test_set), "pool": told, "gain": _gains(arms, test_set), "flop": flop,
                    "notes": notes}, finite=True)
    write_text(root / RESULT, json.dumps(result, indent=2) + "\n")
    return result


def _of(trained: Trained) -> Any:
    """The classifier an adapted run holds."""
    assert trained.adapter is not None
    return trained.adapter


def _scores(trained: Trained, data: Dataset) -> np.ndarray:
    """Class scores of every sample, on the GPU where there is one: (N, K)."""
    classifier = _of(trained)
    scores = predict(classifier, data, trained.spec, device="cuda" if torch.cuda.is_available() else "cpu")
    classifier.cpu()
    return scores


def _sources(run: str | Path, train: str | Path, pool: str | Path, test: str | Path, leaks: str, root: Path,
             reading: Mapping[str, Any], say: Callable[[str], None]) -> tuple[str, Dataset, DataSpec, list[str]]:
    """The pool without copies of test samples, the test data, what they are read like, and what was looked for."""
    model = load_trained(run) if is_ours(run) else None
    train_set = open_source(train, **reading, like=None if model is None else model.spec)
    like = train_set.spec if model is None else model.spec
    test_set = open_source(test, like=like)
    if train_set.labels is None or test_set.labels is None:
        raise UsageError("Self-training needs labels in --train and --test.", where=f"{train}, {test}")
    test_set, notes = check_leaks([] if model is None else [model], train_set, test_set, leaks)
    pool_set = open_source(pool, like=like)
    clean, more = without_copies(pool_set, test_set, leaks)
    for note in more:
        say(note)
    if len(clean) < len(pool_set):
        whole, _ = split_ids(str(pool))
        root.mkdir(parents=True, exist_ok=True)
        write_ids(root / "pool.csv", clean.ids)
        pool = f"{whole}@{root / 'pool.csv'}"
    return str(pool), test_set, like, [*notes, *more]


def _spent(root: Path, teacher: Trained, pool: Dataset, pseudo: Dataset) -> dict[str, float]:
    """Floating-point operations of a step of a fit, and of all that comes before the last stage."""
    settings = [TrainSettings(**RunFolder(root / name).config()["train"]) for name in ("1-teacher", "2-pool")]
    fabric, classifier = make_fabric(settings[0].precision), _of(teacher)
    objective = AdaptObjective(classifier, pseudo.spec).to(fabric.device).train()
    batch = Loader(pseudo, min(len(pseudo), settings[0].batch_size), settings[0].seed).at(0)
    step = count_run(Engine(objective, replace(settings[0], batch_size=len(batch["index"]), accumulate=1), fabric),
                     {k: v.to(fabric.device) for k, v in batch.items()}, settings[0].steps, settings[0].seed).total
    classifier.eval().cpu()
    one = count_forward(classifier, fit_samples(pool, teacher.spec, np.arange(1)))
    per = step / len(batch["index"])
    fits = sum(per * s.batch_size * s.steps for s in settings)
    return {"step": per * settings[0].batch_size, "labelling": float(one * len(pool)),
            "before_clean": float(fits + one * len(pool))}


def _continued(run: str | Path, pool: str, flop: dict[str, float], root: Path, batch_size: int | None, seed: int,
               progress: bool, notes: list[str], say: Callable[[str], None]) -> Path | None:
    """Pre-training goes on with the run's own objective, on the pool, for as many operations; None where it cannot."""
    made = load_trained(run).meta.get("objective", {}) if is_ours(run) else {}
    known = {card.name: card for card in registry.cards(kind="objective")}
    card = known.get(made.get("name", ""))
    if card is None or card.labels:
        notes.append("continued pre-training: left out, since RUN was not pre-trained by an objective without labels")
        return None
    arguments: dict[str, Any] = {"objective": card.name, "backbone": None, "batch_size": batch_size, "seed": seed,
                                 "settings": {"guard": False, **made.get("options", {})}, "init": str(run)}
    cost, _ = count_pretraining(pool, {**arguments, "steps": 1})
    number = max(1, round(flop["before_clean"] / cost))
    off = number * cost / flop["before_clean"] - 1
    notes.append(f"continued pre-training: {number} steps of {card.name}, {off:+.1%} of the operations spent otherwise")
    say(notes[-1])
    return pretrain(pool, out=root / "continued", steps=number, progress=progress, report=False, **arguments)


def _scored(arms: Mapping[str, tuple[Trained, int]], test: Dataset) -> dict[str, Any]:
    """Every metric of each arm on the test samples."""
    out = {}
    for name, (trained, steps) in arms.items():
        named = test.with_classes(trained.meta["class_names"])
        assert named.labels is not None
        out[name] = {"run": trained.name, "steps": steps,
                     "scores": score_all(_scores(trained, named), named.labels, trained.spec.num_classes)}
    return out


def _gains(arms: Mapping[str, tuple[Trained, int]], test: Dataset) -> dict[str, Any]:
    """How much more often the last stage is right than each other arm, on the same test samples."""
    right = {name: correctness(_scores(trained, test), np.asarray(test.with_classes(
        trained.meta["class_names"]).labels))[None] for name, (trained, _) in arms.items()}
    return {name: asdict(compare_paired(right["selftrained"], values)) for name, values in right.items()
            if name != "selftrained"}


def summary(result: Mapping[str, Any]) -> str:
    """The arms and the gains as text."""
    main = "mean_average_precision" if "mean_average_precision" in result["arms"]["teacher"]["scores"] else "accuracy"
    lines = [f"{name:12} {100 * arm['scores'][main]:6.1f} % {main}, {arm['steps']} steps on labels and pseudo-labels"
             for name, arm in result["arms"].items()]
    lines += [f"against {name}: {100 * gain['mean']:+.1f} points [{100 * gain['low']:+.1f}, {100 * gain['high']:+.1f}]"
              for name, gain in result["gain"].items()]
    told = result["pool"]
    lines.append(f"pool: {told['kept']:,} of {told['samples']:,} samples kept, mean confidence "
                 f"{told['confidence']:.2f}")
    return "\n".join([*lines, *result["notes"]])
