"""``osteon merge``: one model from several, streamed from disk tensor by tensor."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from osteon.core import registry
from osteon.core.errors import UsageError
from osteon.core.licences import differing, entry, together
from osteon.core.plain import plain
from osteon.core.provenance import collect
from osteon.core.run import RunFolder
from osteon.data import open_source
from osteon.parts.intervals import bootstrap_interval, compare_paired
from osteon.parts.merging import Merger, Models
from osteon.parts.state_algebra import StateFile, Weights, is_statistic, write_stream
from osteon.verbs._adapt_store import DELTA
from osteon.verbs._merge_judge import FewShots, HeldOut, Host
from osteon.verbs._merge_open import open_members

RESULT = "merging.json"
#: what a merger may need -> how to give it
OPTIONS = {"base": "the run they were fine-tuned from: --base RUN", "val": "held-out labelled samples: --val SOURCE",
           "train": "a few labelled samples to learn from: --train SOURCE"}


def merge(runs: Sequence[str | Path], *, method: str, out: str | Path, base: str | Path | None = None,
          val: str | Path | None = None, train: str | Path | None = None, data: str | Path | None = None,
          seed: int = 0, settings: Mapping[str, Any] | None = None, progress: bool = True) -> Path:
    """Merge the weights of several runs into one run.

    Args:
        runs: run folders of one architecture: pre-trained backbones, or adapted runs with one list of classes.
        method: a merger (``osteon methods --kind merger``).
        out: run folder to write; ``merging.json`` in it has scores and notes.
        base: run the members were fine-tuned from; adapted runs know it themselves.
        val: labelled source; members and result are scored on it, and some methods choose by it.
        train: few labelled samples (``atlas``).
        data: samples to measure batch-norm statistics on; without, the members' are averaged.
        seed: of everything random.
        settings: options of the method.
        progress: tell what goes on.

    Returns:
        The run folder.

    Raises:
        UsageError: models that do not fit, naming the tensor; a missing option; nothing is written then.
    """
    say = _speaker(progress)
    merger: Merger = registry.build("merger", method, **dict(settings or {}))
    card = registry.find("merger", method)
    _check_call(merger, card.name, runs, {"base": base, "val": val, "train": train})
    folder = RunFolder(Path(out))
    if folder.path.resolve() in [Path(r).resolve() for r in [*runs, *([base] if base else [])]]:
        raise UsageError("The result would overwrite one of its members.", where=f"--out {out}",
                         fix="Choose another --out.")
    new = not folder.path.exists()
    with folder.lock(), _nothing_left(folder.path, new and not (folder.path / "config.yaml").exists()):
        notes: list[str] = []
        with tempfile.TemporaryDirectory(prefix="osteon-") as scratch:
            members, start = open_members(runs, base, Path(scratch), notes)
            if "base" in merger.needs and start is None:
                raise UsageError(f"{card.name} needs {OPTIONS['base']}.", where="--base")
            models = _models(members, start if "base" in merger.needs else None, val, train, data, seed, merger.needs)
            notes += merger.prepare(models)
            tensor, more = _with_statistics(lambda name: merger.tensor(name, models), models, data, merger.statistics)
            scores = {} if models.judge is None else _scores(models, tensor)
            read = [] if start is None or "base" not in merger.needs else [start.path.parent]
            origins = [entry(r) for r in [*runs, *read]]
            notes += [*more, *_gain(scores), *differing(origins)]
            for note in notes:
                say(note)
            config = {"merged": [str(Path(r).resolve()) for r in runs], "method": card.name,
                      "method_options": dict(settings or {}), "base": None if start is None else str(start.path.parent),
                      "val": _text(val), "train_source": _text(train), "data_source": _text(data), "seed": seed}
            _write(folder, config, models, tensor, card.name, notes, scores, origins)
    return folder.path


def summary(folder: str | Path) -> str:
    """Scores and notes of a merged run, as text."""
    found = json.loads((Path(folder) / RESULT).read_text(encoding="utf-8"))
    wide = max([len(name) for name in found["scores"]] or [0])
    lines = [f"{name:{wide}}  {100 * s['mean']:5.1f} % [{100 * s['low']:.1f}, {100 * s['high']:.1f}]"
             for name, s in found["scores"].items()]
    return "\n".join([*lines, *found["notes"]])


def _check_call(merger: Merger, name: str, runs: Sequence[Any], given: Mapping[str, Any]) -> None:
    if merger.rule != "weights":
        raise UsageError(f"{name} learns tasks one after another; it does not merge weights.", where="--method",
                         fix=f"Use: osteon continual RUN --method {name} ...")
    least = merger.exactly or (1 if "base" in merger.needs else 2)
    if len(runs) < least or (merger.exactly and len(runs) != merger.exactly):
        count = f"exactly {merger.exactly}" if merger.exactly else f"at least {least}"
        raise UsageError(f"{name} takes {count} runs; {len(runs)} given.", where="RUN")
    for need in merger.needs:
        if need != "base" and given[need] is None:  # adapted runs know their base themselves
            raise UsageError(f"{name} needs {OPTIONS[need]}.", where=f"--{need}")
    if given["train"] is not None and "train" not in merger.needs:
        raise UsageError(f"{name} learns nothing from samples.", where="--train", fix="Leave it out.")


def _models(members: list[StateFile], base: StateFile | None, val: Any, train: Any, data: Any, seed: int,
            needs: Sequence[str]) -> Models:
    """The models with what scores and differentiates them, where it is asked for."""
    if val is None and train is None:
        return Models(members, base, seed=seed)
    like = members[0]
    host = Host(like)
    classes = [str(c) for c in like.meta.get("class_names") or []]
    judge = teacher = None
    if val is not None:
        judged = host if data is None else Host(like, open_source(data, like=host.spec))
        judge = HeldOut(judged, open_source(val, like=host.spec), classes)
    if train is not None:
        assert base is not None and "train" in needs
        teacher = FewShots(host, open_source(train, like=host.spec), base.__getitem__, classes)
    return Models(members, base, judge, teacher, seed)


def _with_statistics(tensor: Weights, models: Models, data: Any, otherwise: str) -> tuple[Weights, list[str]]:
    """The merged weights with batch-norm statistics measured anew where there are data, and what to say of them."""
    names = [n for n in models.members[0] if is_statistic(n)]
    if not names:
        return tensor, ["batch norm: there is none"] if data is not None else []
    if data is None:
        return tensor, [f"batch norm: statistics are {otherwise}; measuring them with --data SOURCE is better"]
    like = models.members[0]
    host = Host(like)
    host.data = open_source(data, like=host.spec)
    host.fill(tensor)
    fresh = host.statistics()

    def measured(name: str) -> Tensor:
        return fresh[name] if name in fresh else tensor(name)

    return measured, [f"batch norm: {len(fresh)} statistics were measured on {data}"]


def _scores(models: Models, tensor: Weights) -> dict[str, dict[str, Any]]:
    """Members and result on --val; the result also against the best member, sample by sample."""
    assert models.judge is not None
    right = {f"{i + 1}: {m.label}": models.judge.quality(m.__getitem__, merged=False)
             for i, m in enumerate(models.members)}
    merged = models.judge.quality(tensor)
    rows: dict[str, dict[str, Any]] = {}
    for name, values in [*right.items(), ("merged", merged)]:
        around = bootstrap_interval(values)
        rows[name] = {"mean": around.mean, "low": around.low, "high": around.high}
    best = max(right, key=lambda name: float(right[name].mean()))
    gap = compare_paired(merged[None], right[best][None])
    rows["merged"] |= {"best_member": best, "over_best": gap.mean, "over_best_low": gap.low, "over_best_high": gap.high,
                       "over_mean": float(merged.mean() - np.mean([v.mean() for v in right.values()]))}
    return rows


def _gain(scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if not scores:
        return []
    m = scores["merged"]
    answer = ("better than the best member" if m["over_best_low"] > 0 else
              "worse than the best member" if m["over_best_high"] < 0 else "a tie with the best member")
    return [f"gain on --val: {100 * m['over_mean']:+.1f} points over the members' mean, {100 * m['over_best']:+.1f} "
            f"[{100 * m['over_best_low']:+.1f}, {100 * m['over_best_high']:+.1f}] over the best ({m['best_member']}): "
            f"{answer}"]


def _write(folder: RunFolder, config: dict[str, Any], models: Models, tensor: Weights, method: str, notes: list[str],
           scores: Mapping[str, Any], origins: Sequence[Mapping[str, Any]]) -> None:
    """Fill the run folder."""
    first = models.members[0]
    file = DELTA if first.meta.get("adapter") else "model.safetensors"
    sources = list(dict.fromkeys(str(m.meta["source"]) for m in models.members if m.meta.get("source")))
    marks = {m.meta.get("fingerprint") for m in models.members}
    meta = {**first.meta, "objective": {"name": method, "options": _flip(models)},
            "source": sources[0] if sources else None, "sources": sources,
            "fingerprint": marks.pop() if len(marks) == 1 else None,
            "steps": max(int(m.meta.get("steps") or 0) for m in models.members), "merged": config["merged"]}
    folder.create_or_resume(config)
    write_stream(folder.path / file, first, tensor, plain(meta))
    folder.write_json("provenance.json", collect({
        "data": {"sources": sources, "license": together(str(o["data_license"]) for o in origins)},
        "initial_weights": origins, "base": config["base"], "notes": notes}))
    folder.write_json(RESULT, {"method": method, "members": [m.label for m in models.members], "scores": scores,
                               "notes": notes})


@contextmanager
def _nothing_left(folder: Path, new: bool) -> Iterator[None]:
    """Remove a folder that this call made if the call fails; its lock must be held."""
    try:
        yield
    except BaseException:
        if new:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _flip(models: Models) -> dict[str, Any]:
    """Whether mirroring kept the meaning in every member's training: fine-tuning the result goes by it."""
    flips = [m.meta.get("objective", {}).get("options", {}).get("flip", True) for m in models.members]
    return {} if all(flips) else {"flip": False}


def _text(source: Any) -> str | None:
    return None if source is None else str(source)


def _speaker(progress: bool) -> Callable[[str], None]:
    return (lambda text: print(f"  {text}", file=sys.stderr, flush=True)) if progress else (lambda _text: None)
