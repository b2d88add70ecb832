"""``osteon demo``: the main job on embedded data, from samples to a verdict, in a few minutes and no download."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from osteon.data.codec import named_sources
from osteon.modalities import find
from osteon.verbs._pool import Job, run_jobs
from osteon.verbs.evaluate import evaluate, summary

#: objective -> backbone, options: one joint-embedding, one masked-transformer, one masked-convolution recipe.
#: Digits are not mirrored: a mirrored digit is another sign.
#: Crops keep half of a digit, which fills its 8 x 8 pixels; a cell of 2 pixels leaves SparK 4 x 4 cells to hide.
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "simclr": ("resnet_tiny", {"flip": False, "crop_min": 0.5, "backbone.stride": 2}),
    "mae": ("vit_tiny", {"flip": False, "crop_min": 0.5}),
    "spark": ("resnet_tiny", {"flip": False, "backbone.stride": 2}),
}
TITLES = {"digits": "scikit-learn's digits"}
BUDGETS = (10, 50, "all")
STEPS, BATCH = 100, 96
#: Steps of modalities whose samples have many tokens.
FEWER = {"several": 40}


#: Recipes of every other modality, on one small Transformer.
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {"simclr": ("vit_tiny", {}), "mae": ("vit_tiny", {}),
                                                 "vicreg": ("vit_tiny", {})}
#: Settings that keep a modality's demo short.
SMALL: dict[str, dict[str, Any]] = {"sound": {"bands": 32, "backbone.patch": 8}, "series": {"backbone.patch": 4},
                                   "volume": {"spacing": 1.34, "extent": 12, "backbone.patch": 4},
                                   "video": {"backbone.patch": 8}, "points": {"points": 128},
                                   "graph": {"backbone.depth": 3}, "several": {"bands": 16}}


def source_of(modality: str) -> str:
    """The embedded or generated source a modality is shown on. Raises UsageError for an unknown modality."""
    find(modality)
    return next(iter(named_sources(modality)))


def demo(*, out: str | Path | None = None, modality: str = "image", seeds: int = 3, steps: int | None = None,
         progress: bool = True) -> Path:
    """Pre-train three kinds of objective on embedded data (images: scikit-learn's digits) and ask whether it paid.

    Args:
        out: folder for the runs, ``evaluation.json`` and ``report.html``; by default ``runs/demo``, of other
            modalities ``runs/demo-MODALITY``.
        modality: kind of data: ``image``, ``sound``...
        seeds: runs of each recipe.
        steps: optimiser steps of each run; the from-scratch controls take as many. 100 when None, of sets 40.
        progress: show what goes on.

    Returns:
        The report.
    """
    begun = time.perf_counter()
    source, steps = source_of(modality), steps or FEWER.get(modality, STEPS)
    folder = Path(out or ("runs/demo" if modality == "image" else f"runs/demo-{modality}"))
    recipes = RECIPES if modality == "image" else OTHERS
    if progress:
        _say(f"Pre-training {', '.join(recipes)} on {TITLES.get(source, 'generated ' + source)} without labels: "
             f"{seeds} seeds each, {steps} steps.")
    runs = [folder / f"{name}-{seed}" for name in recipes for seed in range(seeds)]
    jobs = [Job(folder / f"{name}-{seed}", steps, {
        "source": f"{source}:train", "objective": name, "backbone": backbone, "out": str(folder / f"{name}-{seed}"),
        "steps": steps, "batch_size": BATCH, "seed": seed, "settings": {**settings, **SMALL.get(modality, {})},
        "progress": False})
        for name, (backbone, settings) in recipes.items() for seed in range(seeds)]
    run_jobs(jobs, progress=progress)
    result = evaluate(runs, train=f"{source}:train", test=f"{source}:test", metrics=("knn", "linear_probe"),
                      label_budget=BUDGETS, seeds=seeds, out=folder, progress=progress)
    if progress:
        _say("\n" + summary(result) + "\n")
        _say(f"{time.perf_counter() - begun:.0f} seconds. The report: {result['report']}")
    return Path(result["report"])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
