"""``osteon match``: do members of the same set find each other, and does one modality name the classes of another?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from osteon.backbones.towers import Towers
from osteon.core.atomic import write_text
from osteon.core.errors import DataError, UsageError
from osteon.core.plain import plain
from osteon.data import Dataset, open_source
from osteon.modalities.several import pack_texts
from osteon.parts.intervals import Interval, bootstrap_interval
from osteon.parts.members import Member
from osteon.parts.retrieval import class_means, nearest_rows, partner_ranks
from osteon.parts.types import DataSpec
from osteon.report.match_page import write_match_report
from osteon.verbs._alone import alone_in
from osteon.verbs._model import Trained, fit_samples, load_trained
from osteon.verbs._networks import fresh
from osteon.verbs.pretrain import speaker

#: Places among the first of which the partner is looked for.
PLACES = (1, 5, 10)
#: What classes are named by where texts name them.
NAMES = "names of the classes"
#: Texts a class is named by without being asked.
PROMPTS = ("a {}", "this is a {}", "{}")


@alone_in("out", "run")
def match(run: str | Path, *, test: str | Path, train: str | Path | None = None, prompts: Sequence[str] = (),
          out: str | Path | None = None, progress: bool = True) -> dict[str, Any]:
    """Retrieval between the members of sets, and classification of one modality by examples or names of another.

    Args:
        run: run folder of a model pre-trained on several modalities with a shared space (``clip``, ``harmonised``).
        test: sets to look for; with labels, also the classes to name.
        train: labelled sets, whose members' mean vectors name the classes: other modalities are classified by them
            without a label of their own (zero-shot).
        prompts: texts that name a class, ``{}`` standing for it; where the model reads text.
        out: folder for ``match.json`` and ``match.html``; the run's own when None.
        progress: tell what goes on.

    Returns:
        Retrieval and zero-shot scores with intervals, beside chance and the untrained towers; JSON-ready.
    """
    say = speaker(progress)
    model = load_trained(run)
    towers = _towers(model)
    asked = open_source(test, like=model.spec)
    known = None if train is None else open_source(train, like=model.spec)
    for note in asked.notes:
        say(note)
    result: dict[str, Any] = {"members": towers.members.names, "samples": len(asked), "retrieval": [], "zero_shot": [],
                              "run": str(run), "test": str(test)}
    examples: list[Any] = []
    for name, network in (("pretrained", towers), ("untrained", cast(Towers, fresh(towers, 0)))):
        say(f"{name}: {len(asked):,} sets")
        z, there = embed_members(network, asked, model.spec)
        result["retrieval"] += _retrieval(name, z, there, towers, asked)
        if name == "pretrained":
            examples = _examples(z, there, towers, asked)
        if known is not None:
            result["zero_shot"] += _by_examples(name, network, z, there, asked, known, model.spec)
        if "text" in towers.members.names and asked.class_names:
            result["zero_shot"] += _by_names(name, network, z, there, asked, prompts or PROMPTS, model.spec)
    result["notes"] = [*asked.notes, "intervals: 95 %, bootstrapped over the queries", *_about(asked, known)]
    if "text" in towers.members.names and asked.class_names and not any(
            row["by"] == NAMES for row in result["zero_shot"]):
        result["notes"].append("names of the classes: the vocabulary of the model does not tell them apart")
    result = plain(result, finite=True)
    folder = Path(out) if out is not None else Path(run)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "match.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    result["report"] = str(write_match_report(result, examples, folder / "match.html"))
    return dict(result)


def summary(result: Mapping[str, Any]) -> str:
    """The scores in a few lines."""
    lines = []
    for row in result["retrieval"]:
        if row["network"] == "pretrained":
            other = next(r for r in result["retrieval"] if r["network"] == "untrained" and r["from"] == row["from"]
                         and r["to"] == row["to"])
            same = "" if row.get("same_class") is None else f", of its class first {row['same_class']['mean']:.1f} %"
            lines.append(f"{row['from']} -> {row['to']}: partner first {_shown(row['recall@1'])} (untrained "
                         f"{other['recall@1']['mean']:.1f}, chance {row['chance@1']:.1f}), among 10 "
                         f"{row['recall@10']['mean']:.1f} %{same}; {row['queries']:,} queries")
    for row in result["zero_shot"]:
        if row["network"] == "pretrained":
            other = next(r for r in result["zero_shot"] if r["network"] == "untrained" and r["of"] == row["of"]
                         and r["by"] == row["by"])
            lines.append(f"classes of {row['of']} by {row['by']}: {_shown(row['accuracy'])} (untrained "
                         f"{other['accuracy']['mean']:.1f}, chance {row['chance']:.1f})")
    return "\n".join(lines)


@torch.inference_mode()
def embed_members(towers: Towers, dataset: Dataset, spec: DataSpec, *, batch_size: int = 256,
                  ) -> tuple[np.ndarray, np.ndarray]:
    """All members in the shared space: (N, M, J) float32 and which are there (N, M) bool."""
    towers.eval()
    z, there = list[np.ndarray](), list[np.ndarray]()
    for start in range(0, len(dataset), batch_size):
        x = fit_samples(dataset, spec, np.arange(start, min(start + batch_size, len(dataset))))
        z.append(torch.stack([towers.joint(x, m) for m in towers.members], 1).numpy())
        there.append(towers.members.there(x).numpy())
    return np.concatenate(z), np.concatenate(there)


def _towers(model: Trained) -> Towers:
    if model.spec.modality != "several" or model.backbone.kind != "towers" or not cast(Towers, model.backbone).maps:
        raise UsageError(f"{model.name} has no space that modalities share.", where="run",
                         fix="Pre-train on a manifest of several modalities with --objective clip.")
    return cast(Towers, model.backbone)


def _retrieval(network: str, z: np.ndarray, there: np.ndarray, towers: Towers, asked: Dataset) -> list[dict[str, Any]]:
    """Recall of every member for every other, over the sets that have both."""
    rows, labels = list[dict[str, Any]](), _single(asked)
    for a, query in enumerate(towers.members):
        for b, target in enumerate(towers.members):
            both = np.flatnonzero(there[:, a] & there[:, b])
            if a == b or len(both) < 2:
                continue
            ranks = partner_ranks(z[both, a], z[both, b])
            row: dict[str, Any] = {"network": network, "from": query.name, "to": target.name, "queries": len(both)}
            for k in PLACES:
                row[f"recall@{k}"] = _percent(bootstrap_interval(ranks < k))
                row[f"chance@{k}"] = 100 * min(1.0, k / len(both))
            if labels is not None:
                first = nearest_rows(z[both, a], z[both, b])[:, 0]
                row["same_class"] = _percent(bootstrap_interval(labels[both][first] == labels[both]))
            rows.append(row)
    return rows


def _by_examples(network: str, towers: Towers, z: np.ndarray, there: np.ndarray, asked: Dataset, known: Dataset,
                 spec: DataSpec) -> list[dict[str, Any]]:
    """Classes named by the mean of another modality's training examples."""
    labels, given = _single(asked), _single(known)
    if labels is None or given is None:
        raise DataError("Classes are named by sets with one label each.", where="--train",
                        fix="Give labelled sources, or leave --train out.")
    if known.class_names != asked.class_names:
        raise DataError("The classes of --train and --test differ.", where=known.source)
    examples, present = embed_members(towers, known, spec)
    out = list[dict[str, Any]]()
    for a, member in enumerate(towers.members):
        for b, other in enumerate(towers.members):
            rows, usable = np.flatnonzero(there[:, a]), np.flatnonzero(present[:, b])
            if a == b or not len(rows) or not len(usable):
                continue
            named = class_means(examples[usable, b], given[usable], len(known.class_names))
            out.append(_named(network, member, f"examples of {other.name}", z[rows, a], named, labels[rows]))
    return out


@torch.inference_mode()
def _by_names(network: str, towers: Towers, z: np.ndarray, there: np.ndarray, asked: Dataset, prompts: Sequence[str],
              spec: DataSpec) -> list[dict[str, Any]]:
    """Classes named by texts: the unit mean of the vectors of a class's prompts (Radford et al., section 3.1.4)."""
    labels = _single(asked)
    if labels is None:
        return []
    for prompt in prompts:
        if "{}" not in prompt:
            raise UsageError(f"The prompt '{prompt}' has no place for the class.", where="prompts",
                             fix="Write {} where the class's name goes.")
    texts = [prompt.replace("{}", name) for name in asked.class_names for prompt in prompts]
    text = next(m for m in towers.members if m.name == "text")
    vectors = towers.joint(torch.from_numpy(pack_texts(texts, spec)), text).numpy()
    owner = np.repeat(np.arange(len(asked.class_names)), len(prompts))
    named = class_means(vectors, owner, len(asked.class_names))
    out = list[dict[str, Any]]()
    if len(np.unique(named.round(6), axis=0)) < len(named):
        return out  # the vocabulary does not tell the names apart
    for a, member in enumerate(towers.members):
        rows = np.flatnonzero(there[:, a])
        if member.name != "text" and len(rows):
            out.append(_named(network, member, NAMES, z[rows, a], named, labels[rows]))
    return out


def _named(network: str, member: Member, by: str, z: np.ndarray, named: np.ndarray,
           labels: np.ndarray) -> dict[str, Any]:
    right = nearest_rows(z, named)[:, 0] == labels
    return {"network": network, "of": member.name, "by": by, "queries": len(labels),
            "accuracy": _percent(bootstrap_interval(right)), "chance": 100 / len(named)}


def _single(dataset: Dataset) -> np.ndarray | None:
    """One class a set, or None."""
    return dataset.labels if dataset.labels is not None and dataset.labels.ndim == 1 else None


def _percent(interval: Interval) -> dict[str, float]:
    return {"mean": 100 * interval.mean, "low": 100 * interval.low, "high": 100 * interval.high}


def _shown(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.1f} % [{value['low']:.1f}, {value['high']:.1f}]"


def _examples(z: np.ndarray, there: np.ndarray, towers: Towers, asked: Dataset, count: int = 4) -> list[Any]:
    """For the page: some queries of the first member with what they find, as pictures of whole sets."""
    from osteon.verbs._pictures import viewable

    both = np.flatnonzero(there[:, 0] & there[:, 1])
    if len(both) < 5:
        return []
    rows = np.linspace(0, len(both) - 1, count).round().astype(int)
    found = nearest_rows(z[both[rows], 0], z[both, 1], 4)
    return [[(viewable(asked, both[[q]])[0], f"query: {asked.ids[both[q]]}"),
             *((viewable(asked, both[[i]])[0], asked.ids[both[i]]) for i in hits)]
            for q, hits in zip(rows, found, strict=True)]


def _about(asked: Dataset, known: Dataset | None) -> list[str]:
    if known is None:
        return []
    shared = set(known.groups or ()) & set(asked.groups or ())
    return [f"groups: {len(shared):,} groups are in both parts: they are not unseen"] if shared else []
