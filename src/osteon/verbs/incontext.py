"""``osteon incontext``: a network reads labelled rows and answers for others, beside boosted trees and others."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from osteon.backbones.pfn import PFN
from osteon.core.atomic import write_text
from osteon.core.errors import UsageError
from osteon.core.plain import plain
from osteon.data import open_source
from osteon.modalities import table as tables
from osteon.parts.regression import scale_of
from osteon.parts.types import DataSpec
from osteon.verbs._alone import alone_in
from osteon.verbs._arms import Task, labelled_arms, labelled_controls, make_task
from osteon.verbs._labelled import spread_of
from osteon.verbs._verdict import judge
from osteon.verbs.evaluate import LEAKS, _row, _support, check_leaks, summary
from osteon.verbs.prior import load_prior

__all__ = ["classify", "incontext", "regress", "summary"]

#: What the network is called in tables.
NAME = "in context (PFN)"
#: Standardised cells beyond this many deviations are cut: the prior knows no such rows.
CUT = 5.0


@alone_in("out")
def incontext(network: str | Path, *, train: str | Path, test: str | Path, label_budget: Sequence[int | str] = ("all",),
              seeds: int = 3, context: int = 512, leaks: str = "error", task: str = "auto", target: str | None = None,
              out: str | Path | None = None, progress: bool = True) -> dict[str, Any]:
    """Score a network of ``osteon prior`` on a table: labelled rows are read in one forward pass, nothing is fitted.

    Args:
        network: folder of ``osteon prior``.
        train: labelled table.
        test: labelled table, disjoint from ``train``.
        label_budget: numbers of labels, or ``all``.
        seeds: draws of the labelled rows over which intervals are taken.
        context: labelled rows read at once; of more rows, parts of this size are read and their answers averaged.
        leaks: copies of test rows in ``train``: ``error``, ``drop`` them from the test, or ``allow``.
        task: as in :func:`osteon.evaluate`; of a network that predicts numbers, ``auto`` is ``regression``.
        target: column of the numbers to be predicted, in the place of labels.
        out: folder for ``incontext.json``.
        progress: tell what goes on.

    Returns:
        Verdict, the network and every control at every budget with its interval, and what was automatic.

    Raises:
        UsageError: no table, labels of another kind or of more classes than the network knows, or impossible budgets.
        DataError: leaks, unless they are dropped or allowed.
    """
    if seeds < 1 or not label_budget or context < 2:
        raise UsageError("At least one seed, one label budget and two rows of context are needed.",
                         where="--seeds, --label-budget, --context")
    if leaks not in LEAKS:
        raise UsageError(f"'{leaks}' is no way to treat leaks.", where="--leaks", fix=f"Use {', '.join(LEAKS)}.")
    say = (lambda text: print(f"  {text}", file=sys.stderr, flush=True)) if progress else (lambda _text: None)
    net, meta = load_prior(network)
    kind = "regression" if net.classes == 0 and task == "auto" and target is None else task
    train_set = open_source(train, task=kind, target=target)
    if train_set.modality != "table":
        raise UsageError(f"The network reads rows of a table, and --train holds {train_set.modality}.",
                         where=str(train), fix="Give a csv, tsv or parquet file of rows.")
    test_set = open_source(test, like=train_set.spec, target=target,
                           task="classes" if train_set.targets is None else "regression")
    notes = [*train_set.notes, *(n for n in test_set.notes if n not in train_set.notes)]
    test_set, found = check_leaks([], train_set, test_set, leaks)
    judged = make_task(train_set, test_set, list(label_budget), seeds)
    _check_kind(net, judged, str(train))
    width = tables.raw_columns(train_set.images[:1], train_set.spec).shape[1]
    if width > net.features:
        notes.append(f"columns: {width} numbers and levels on the {net.features} leading components of the labelled "
                     "rows (rule: as many as the network reads)")
    arms = [replace(arm, kind="pretrained") for arm in labelled_arms(NAME, _reader(net, context), judged)]
    for name, fit in labelled_controls(tables, judged).items():
        say(f"control: {name}")
        arms += labelled_arms(name, fit, judged)
    result: dict[str, Any] = {
        "verdict": judge(arms, judged.unit), "metric": judged.unit, "budgets": judged.budgets,
        "arms": [_row(a) for a in arms], "support": _support(judged), "classes": judged.classes,
        "test_samples": len(test_set), "seeds": seeds, "notes": [*notes, *found], "network": meta}
    if judged.regression:
        result["target"] = spread_of(judged.test_y)
    result = dict(plain(result, finite=True))
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        write_text(Path(out) / "incontext.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    return result


def _check_kind(network: PFN, task: Task, where: str) -> None:
    """Refuse labels that are not what the network answers with."""
    if task.regression != (network.classes == 0):
        what = "numbers to be predicted" if task.regression else "classes"
        raise UsageError(f"The labels of this table are {what}; the network "
                         + ("tells classes apart." if network.classes else "predicts numbers."), where=where,
                         fix=f"Make a network for them: osteon prior --classes {task.classes} --out FOLDER.")
    if task.multi_label or task.classes > network.classes:
        raise UsageError(f"The network tells {network.classes} classes apart, this table has {task.classes}"
                         f"{' at a time' if task.multi_label else ''}.", where=where,
                         fix=f"Make a wider one: osteon prior --classes {task.classes} --out FOLDER.")


def _reader(network: PFN, context: int) -> Callable[..., np.ndarray]:
    """The network in the form of a labelled control of tables, of classes or of numbers."""
    def read(train: np.ndarray, labels: np.ndarray, asked: np.ndarray, spec: DataSpec, *, classes: int = 0,
             seed: int) -> np.ndarray:
        rows, query = tables.raw_columns(train, spec), tables.raw_columns(asked, spec)
        if network.classes == 0:
            return regress(network, rows, labels, query, context=context, seed=seed)
        return classify(network, rows, labels, query, classes=classes, context=context, seed=seed)

    return read


def classify(network: PFN, train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, *, classes: int,
             context: int = 512, seed: int = 0, block: int = 512) -> np.ndarray:
    """Probabilities (M, K) of rows (M, D) from labelled rows (N, D) and classes (N,); no weight is changed.

    Columns are standardised by the labelled rows and cut to five deviations; more columns than the network reads are
    projected on the leading components of the labelled rows, fewer are filled up with 0, both as in the prior.

    Args:
        network: of classes, as many as occur at least.
        train_x: labelled rows.
        train_y: their classes.
        test_x: rows that are asked for; an answer depends on no other of them.
        classes: K.
        context: labelled rows read at once; of more, stratified parts are read and their answers averaged.
        seed: how rows are dealt into parts.
        block: rows asked for at once, which changes memory alone.
    """
    known = np.unique(train_y)
    y = torch.from_numpy(np.searchsorted(known, train_y).astype(np.int64))
    answer = _mean_answer(network, train_x, y, test_x, context, seed, block)
    out = np.zeros((len(test_x), classes))
    out[:, known] = answer[:, :len(known)]
    return out


def regress(network: PFN, train_x: np.ndarray, targets: np.ndarray, test_x: np.ndarray, *, context: int = 512,
            seed: int = 0, block: int = 512) -> np.ndarray:
    """Numbers (M,) of rows (M, D) from labelled rows (N, D) and numbers (N,); no weight is changed.

    As :func:`classify`; numbers are standardised by the labelled rows, and what is told of a row is the mean of its
    predicted distribution.

    Args:
        network: of numbers.
        train_x: labelled rows.
        targets: their numbers.
        test_x: rows that are asked for; an answer depends on no other of them.
        context: labelled rows read at once; of more, parts that are spread evenly over the targets are read.
        seed: how rows of equal targets are dealt into parts.
        block: rows asked for at once, which changes memory alone.
    """
    mean, scale = scale_of(targets)
    y = torch.from_numpy(((np.asarray(targets, np.float64) - mean) / scale).astype(np.float32))
    return mean + scale * _mean_answer(network, train_x, y, test_x, context, seed, block)


def _mean_answer(network: PFN, train_x: np.ndarray, y: torch.Tensor, test_x: np.ndarray, context: int, seed: int,
                 block: int) -> np.ndarray:
    """Answers (M, ...) of the network, averaged over parts of the labelled rows of at most ``context`` each."""
    x, query = _columns(train_x, test_x, network.features)
    parts = -(-len(x) // context)
    order = np.lexsort((np.random.default_rng(seed).permutation(len(x)), y.numpy()))  # dealt label by label
    told = []
    for part in range(parts):
        rows = torch.from_numpy(np.sort(order[part::parts]))
        answers = [network.predict(x[None, rows], y[None, rows], some[None])[0] for some in query.split(block)]
        told.append(torch.cat(answers).double().numpy())
    return np.asarray(sum(told) / parts)


def _columns(train: np.ndarray, test: np.ndarray, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (N, D), (M, D) as the prior has them: (N, width), (M, width)."""
    mean, deviation = train.mean(0), train.std(0)
    scale = np.where(deviation > 1e-6, 1 / np.maximum(deviation, 1e-6), 0.0)
    parts = [((v - mean) * scale).astype(np.float64) for v in (train, test)]
    if train.shape[1] > width:
        _, spread, axes = np.linalg.svd(parts[0], full_matrices=False)
        varies = spread[:width] > 1e-6 * spread[0]
        kept = axes[:width].T * np.where(varies, np.sqrt(len(train)) / np.where(varies, spread[:width], 1.0), 0.0)
        parts = [v @ kept for v in parts]
    ready = [np.zeros((len(v), width), np.float32) for v in parts]
    for v, full in zip(parts, ready, strict=True):
        full[:, :v.shape[1]] = v.clip(-CUT, CUT)
    return torch.from_numpy(ready[0]), torch.from_numpy(ready[1])
