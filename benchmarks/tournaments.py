"""Does pre-training pay on real data of each kind? ``python -m benchmarks.tournaments [NAME ...]``, all by default.

Each is one ``osteon compare``: recipes against each other and against the modality's controls at equal compute, on the
cores there are. What it printed is kept as ``docs/evidence/tournaments/NAME.md`` beside its report, ``NAME.html``.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.claims.claim_377 import UNSEEN, manifests
from benchmarks.claims.kit import DATA, ROOT
from osteon.data import open_source
from osteon.data.cache import cache_folder
from osteon.recipes import Recipe
from osteon.verbs.compare import compare, table


def small(*names: str) -> list[Recipe]:
    """The published recipes of objectives, on the smallest Transformer."""
    return [Recipe(name, name, backbone="vit_tiny") for name in names]


def images(folder: Path) -> tuple[str, dict[str, Any]]:
    """5,000 CIFAR-10 photographs, without labels to learn from and with few to be read by; 2,000 to test on."""
    for part, count in (("train", 5000), ("test", 2000)):
        data = open_source(DATA / "cifar10" / f"{part}.parquet", limit=count)
        pictures = np.asarray(data.images).transpose(0, 2, 3, 1)
        np.savez(folder / f"{part}.npz", image=pictures, label=np.asarray(data.labels))
    return "5,000 CIFAR-10 photographs, few labels", {
        "source": str(folder / "train.npz"), "train": str(folder / "train.npz"), "test": str(folder / "test.npz"),
        "recipes": "auto", "budget": "5e12flop", "label_budget": (100, 1000), "settings": {"batch_size": 64},
        "trials": 2, "finalists": 3, "leaks": "drop"}


def sound(folder: Path) -> tuple[str, dict[str, Any]]:
    """2,500 clips of spoken digits by five speakers; tested on a sixth, who is heard nowhere else."""
    known, unseen = manifests(folder)
    return f"2,500 spoken digits by five speakers, tested on {', '.join(UNSEEN)}", {
        "source": str(known), "train": str(known), "test": str(unseen),
        "recipes": small("simclr", "vicreg", "byol", "mae", "mp3", "ssast"), "budget": "300steps",
        "label_budget": (100, 1000), "trials": 1, "finalists": 3,
        "settings": {"bands": 32, "backbone.patch": 8, "batch_size": 64}}


def series(folder: Path) -> tuple[str, dict[str, Any]]:
    """1,400 generated series of six shapes."""
    return "1,400 generated series of six shapes", {
        "source": "waves:train", "train": "waves:train", "test": "waves:test",
        "recipes": small("simclr", "vicreg", "mae"), "budget": "300steps", "label_budget": (50, "all"), "trials": 1,
        "finalists": 3, "settings": {"backbone.patch": 4, "batch_size": 64}}


def forecasts(folder: Path) -> tuple[str, dict[str, Any]]:
    """ETTh1: an electricity transformer's oil temperature and six loads by the hour, in the split of the literature."""
    network = {"backbone.patch": 8, "backbone.dim": 64, "backbone.depth": 4, "backbone.heads": 4}
    names = ("simclr", "vicreg", "byol", "mae", "simmim", "future_summary", "forecast")
    return "forecasts of ETTh1, 96 hours ahead", {
        "source": str(DATA / "ett" / "ETTh1.csv"), "task": "forecast", "horizon": 96, "context": 96,
        "recipes": [replace(r, settings=network) for r in small(*names)], "budget": "1.5e12flop", "trials": 1,
        "finalists": 3,
        "settings": {"split": "8640,2880,2880", "independent": True, "batch_size": 64}}


def text(folder: Path) -> tuple[str, dict[str, Any]]:
    """1,400 generated texts, whose classes are topics and orders of words."""
    return "1,400 generated texts of classes by topic and order", {
        "source": "sentences:train", "train": "sentences:train", "test": "sentences:test",
        "recipes": small("simclr", "mae", "electra"), "budget": "300steps", "label_budget": (50, "all"), "trials": 1,
        "finalists": 3, "settings": {"batch_size": 64}}


def rows(folder: Path) -> tuple[str, dict[str, Any]]:
    """scikit-learn's breast cancer table: 398 rows of 30 numbers, two classes."""
    return "398 rows of scikit-learn's breast cancer table", {
        "source": "breast_cancer:train", "train": "breast_cancer:train", "test": "breast_cancer:test",
        "recipes": small("simclr", "vicreg", "byol", "swav", "mae", "transtab"), "budget": "300steps",
        "label_budget": (20, "all"), "trials": 1,
        "finalists": 3, "settings": {"batch_size": 64}}


def generated(source: str, title: str, recipes: list[Recipe], labels: int, **settings: Any,
              ) -> Callable[[Path], tuple[str, dict[str, Any]]]:
    """A tournament on a generated source."""
    def case(folder: Path) -> tuple[str, dict[str, Any]]:
        return title, {"source": f"{source}:train", "train": f"{source}:train", "test": f"{source}:test",
                       "recipes": recipes, "budget": "200steps", "label_budget": (labels, "all"), "trials": 1,
                       "finalists": 3, "settings": {"batch_size": 64, **settings}}

    return case


def graphs(folder: Path) -> tuple[str, dict[str, Any]]:
    """Cora's nodes on the public split; the graph itself is unlabelled data."""
    cora = str(DATA / "graph" / "cora" / "cora.npz")
    return "2,708 papers of Cora, 140 of them labelled", {
        "source": cora, "train": f"{cora}:train", "test": f"{cora}:test",
        "recipes": [Recipe(name, name, backbone="gcn_mini") for name in ("graphmae", "simclr", "resvgae")],
        "budget": "200steps", "label_budget": ("all",), "trials": 1, "finalists": 3,
        "settings": {"batch_size": 64, "nodes": 32}}


#: name -> what makes its title and the arguments of ``compare``, given a folder for small files
CASES: dict[str, Callable[[Path], tuple[str, dict[str, Any]]]] = {
    "image": images, "sound": sound, "series": series, "forecast": forecasts, "text": text, "table": rows,
    "graph": graphs,
    "points": generated("shapes", "generated clouds of eight solids", small("simclr", "mae", "point_cmae"), 80,
                        points=128),
    "volume": generated("phantoms", "generated phantoms", small("simclr", "mae", "voco"), 50, spacing=1.34, extent=12,
                        **{"backbone.patch": 4}),
    "video": generated("moving_digits", "digits in motion", small("simclr", "mae", "vicreg"), 50,
                       **{"backbone.patch": 8}),
    "several": generated("numbers", "images, sounds and words of numbers, some of each missing",
                         small("simclr", "mae", "multimae"), 50, bands=32)}


def hold(name: str) -> str:
    """Run one tournament and write its page; returns the verdict."""
    begun, spent = time.perf_counter(), os.times()
    with tempfile.TemporaryDirectory() as folder:
        title, options = CASES[name](Path(folder))
        result = compare(**options, out=Path(folder) / "tournament")
        where = ROOT / "docs" / "evidence" / "tournaments"
        where.mkdir(parents=True, exist_ok=True)
        page_of = Path(result["report"]).read_text(encoding="utf-8")
        for place in (f"{folder}/", f"{DATA}/", str(cache_folder(None))):  # nobody else's business
            page_of = page_of.replace(place, "")
        (where / f"{name}.html").write_text(page_of, encoding="utf-8")
    asked = ", ".join(f"{k}={v}" for k, v in options.items() if k not in ("source", "train", "test", "recipes"))
    page = [f"# Does pre-training pay? {title}", "", f"Regenerate with `python -m benchmarks.tournaments {name}`. "
            f"`osteon compare` with {asked}. The [report]({name}.html) has the curves and every arm.", "",
            f"**{result['verdict']['answer']}.** {result['verdict']['paragraph']}", "", "```", table(result), "```", "",
            f"{time.perf_counter() - begun:.0f} seconds, {sum(os.times()[:4]) - sum(spent[:4]):.0f} of processor time, "
            f"{len(os.sched_getaffinity(0))} core(s), {platform.machine()}, torch {torch.__version__}", ""]
    (where / f"{name}.md").write_text("\n".join(page), encoding="utf-8")
    return f"{name}: {result['verdict']['paragraph']}"


def main(names: list[str]) -> int:
    """Hold the named tournaments, or all."""
    unknown = sorted(set(names) - set(CASES))
    if unknown:
        print(f"unknown: {', '.join(unknown)}; there are {', '.join(CASES)}", file=sys.stderr)
        return 2
    for name in names or CASES:
        print(hold(name), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
