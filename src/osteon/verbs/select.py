"""``osteon select``: choose samples of a source and write their ids, which every other verb takes as SOURCE@ids.csv."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from osteon.core import registry
from osteon.core.errors import DataError, UsageError
from osteon.data import Dataset, open_source
from osteon.data.ids import write_ids
from osteon.data.leaks import area_matrix
from osteon.modalities import find
from osteon.parts.selection import Pool, Selection, parse_budget
from osteon.verbs._alone import alone_in
from osteon.verbs._model import Trained, extract, load_trained

#: side of the pictures that stand for features where no run is given
SIDE = 8


@alone_in("out", file=True)
def select(source: str | Path, *, method: str, budget: int | str, out: str | Path, run: str | Path | None = None,
           target: str | Path | None = None, train: str | Path | None = None, backbone: str = "auto", seed: int = 0,
           settings: Mapping[str, Any] | None = None, progress: bool = True) -> dict[str, Any]:
    """Choose samples of a source.

    Args:
        source: what to choose from.
        method: a selector (``osteon methods --kind selector``).
        budget: number of samples, a share such as ``"30%"``, or ``auto`` where the method finds the number.
        out: file of ids to write, ``.csv``; best first, with the method's score.
        run: run folder whose features are compared; without one, small pictures are, and of other samples the first of
            the modality's controls (features that cost no training).
        target: source the chosen samples are to resemble (``simcore``).
        train: labelled source that gives the labels, by id, where ``source`` has none.
        backbone: network of the scoring trainings (``el2n``, ``grand``).
        seed: of everything random.
        settings: options of the method.
        progress: tell what goes on.

    Returns:
        ``method``, ``budget``, ``selected`` (number), ``of``, ``ids`` (in order), ``source``, ``use`` (the source to
        give to other verbs), ``notes`` and ``out``.

    Raises:
        UsageError: an unknown method or option, a budget that is not possible, or a missing --target, --run or labels.
    """
    say = _speaker(progress)
    path = Path(out)
    if path.suffix.lower() != ".csv":
        raise UsageError("The list of ids is a .csv file.", where=f"--out {out}", fix="Name it e.g. ids.csv.")
    if path.is_dir():
        raise UsageError("The list of ids is to be a file, but a folder of that name exists.", where=f"--out {out}")
    chooser = registry.build("selector", method, **dict(settings or {}))
    card = registry.find("selector", method)
    needs = tuple(chooser.needs)
    if "target" in needs and target is None:
        raise UsageError(f"{card.name} chooses what resembles a target.", where="--target",
                         fix="Give the small source the samples are for, e.g. --target birds/.")
    if "target" not in needs and target is not None:
        raise UsageError(f"{card.name} has no use for a target.", where="--target", fix="Use --method simcore.")
    if run is not None and not hasattr(chooser, "settle"):
        _need_features(needs, card.name)
    model = None if run is None else load_trained(run)
    dataset = open_source(source) if model is None else open_source(source, like=model.spec)
    registry.need(card, dataset.modality, where="--method")
    if hasattr(chooser, "settle"):
        chooser.settle(dataset.modality)
        needs = tuple(chooser.needs)
    if run is not None:
        _need_features(needs, card.name)
    wanted = parse_budget(budget, len(dataset))
    notes = list(dataset.notes)
    aim = None if target is None else open_source(target, like=dataset.spec if model is None else model.spec)
    pool = pool_of(dataset, needs, model, aim, train, backbone, notes, say)
    chosen = chooser(pool, wanted, seed=seed)
    _check(chosen, wanted, len(dataset), card.name)
    ids = [dataset.ids[i] for i in chosen.rows]
    write_ids(path, ids, None if chosen.scores is None else [float(s) for s in chosen.scores])
    return {"method": card.name, "budget": str(budget), "selected": len(ids), "of": len(dataset), "ids": ids,
            "source": str(source), "use": f"{source}@{out}", "notes": [*notes, *chosen.notes], "out": str(path)}


def _need_features(needs: tuple[str, ...], name: str) -> None:
    if "features" not in needs:
        raise UsageError(f"{name} compares no features as it is set.", where="--run", fix="Leave --run out.")


def pool_of(dataset: Dataset, needs: tuple[str, ...], model: Trained | None, target: Dataset | None,
            train: str | Path | None, backbone: str, notes: list[str], say: Callable[[str], None]) -> Pool:
    """Fill in what the selector asked for, and nothing else."""
    pool = Pool(len(dataset), groups=dataset.groups)
    if "images" in needs:
        pool = replace(pool, images=dataset.images)
    if "learn" in needs:
        from osteon.verbs._select_training import make_learn

        labelled = dataset if train is None else _with_labels(dataset, open_source(train))
        pool = replace(pool, learn=make_learn(labelled, backbone, say), labels=labelled.labels)
    if "features" in needs:
        features, wanted, what = _features(dataset, target, model)
        notes.append(f"features: {what}")
        pool = replace(pool, features=features, target=wanted)
    if "target" in needs:
        assert target is not None
        notes.append(f"target: {len(target):,} samples of {target.source}")
        if model is not None and model.meta.get("fingerprint") != target.fingerprint:
            notes.append("target: the run was not pre-trained on exactly this target, as the paper's encoder is")
    return pool


def _features(dataset: Dataset, aim: Dataset | None,
              model: Trained | None) -> tuple[np.ndarray, np.ndarray | None, str]:
    """Features (N, D) of a source and, where there is one, of a target; and what they are."""
    if model is not None:
        return (extract(model.backbone, dataset, model.spec),
                None if aim is None else extract(model.backbone, aim, model.spec), f"of {model.name}")
    if dataset.modality == "image":
        return (_small_pictures(dataset), None if aim is None else _small_pictures(aim),
                f"pixels averaged to {SIDE} x {SIDE} areas (rule: no --run was given)")
    module = find(dataset.modality)
    name = getattr(module, "ALIKE", None)
    chosen = name or next(iter(module.CONTROLS))
    both = [np.asarray(data.images) for data in (dataset, aim or dataset.subset(np.arange(1)))]
    features, wanted = (x.astype(np.float32) for x in module.CONTROLS[chosen](both[0], both[1], dataset.spec))
    if name is None:
        mean, std = features.mean(0), features.std(0)
        # A column that is constant says nothing.
        scale = np.where(std < 1e-6 * max(1e-6, float(std.max())), np.inf, std)
        features, wanted = (features - mean) / scale, (wanted - mean) / scale
    words = f"the control '{chosen}'{'' if name else ', columns standardised'} (rule: no --run was given)"
    return features, None if aim is None else wanted, words


def _small_pictures(dataset: Dataset) -> np.ndarray:
    shrink = area_matrix(dataset.spec.size, min(SIDE, dataset.spec.size))
    parts = []
    for start in range(0, len(dataset), 1024):
        x = np.asarray(dataset.images[start:start + 1024]).astype(np.float32) / np.float32(dataset.spec.scale)
        small = shrink @ x @ shrink.T
        mean, std = (np.array(v, np.float32).reshape(1, -1, 1, 1) for v in (dataset.spec.mean, dataset.spec.std))
        parts.append(((small - mean) / std).reshape(len(x), -1))
    return np.concatenate(parts)


def _with_labels(dataset: Dataset, labelled: Dataset) -> Dataset:
    """The samples of a source with the labels that another gives to the same ids."""
    if labelled.labels is None or labelled.labels.ndim != 1:
        raise UsageError("This source gives no labels, or several a sample.", where=f"--train {labelled.source}",
                         fix="Give one with one label a sample.")
    place = {name: i for i, name in enumerate(labelled.ids)}
    missing = [name for name in dataset.ids if name not in place]
    if missing:
        raise DataError(f"{len(missing)} of {len(dataset)} samples have no label there, e.g. '{missing[0]}'.",
                        where=f"--train {labelled.source}", fix="Ids of both sources must agree.")
    labels = labelled.labels[[place[name] for name in dataset.ids]]
    spec = replace(dataset.spec, num_classes=len(labelled.class_names), multi_label=False)
    return replace(dataset, labels=labels, class_names=labelled.class_names, spec=spec)


def _check(chosen: Selection, wanted: int | None, count: int, name: str) -> None:
    """A selector that breaks its contract is a defect, and no list is written."""
    rows = np.asarray(chosen.rows)
    if (wanted is not None and len(rows) != wanted) or len(set(rows.tolist())) != len(rows) or (
            len(rows) and (rows.min() < 0 or rows.max() >= count)):
        raise RuntimeError(f"the selector {name} broke its contract: {len(rows)} rows for a budget of {wanted}")


def _speaker(progress: bool) -> Callable[[str], None]:
    return (lambda text: print(f"  {text}", file=sys.stderr, flush=True)) if progress else (lambda _text: None)
