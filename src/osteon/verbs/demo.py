"""``osteon demo``: the main job on embedded data, from pixels to a verdict, in a few minutes and without a download."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

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
SOURCE, TEST = "digits:train", "digits:test"
BUDGETS = (10, 50, "all")
STEPS, BATCH = 100, 96


def demo(*, out: str | Path = "runs/demo", seeds: int = 3, steps: int = STEPS, progress: bool = True) -> Path:
    """Pre-train three kinds of objective on scikit-learn's digits and ask whether it paid.

    Args:
        out: folder for the runs, ``evaluation.json`` and ``report.html``.
        seeds: runs of each recipe.
        steps: optimiser steps of each run; the from-scratch controls take as many.
        progress: show what goes on.

    Returns:
        The report.
    """
    begun = time.perf_counter()
    folder = Path(out)
    if progress:
        _say(f"Pre-training {', '.join(RECIPES)} on scikit-learn's digits without labels: {seeds} seeds each, "
             f"{steps} steps.")
    runs = [folder / f"{name}-{seed}" for name in RECIPES for seed in range(seeds)]
    jobs = [Job(folder / f"{name}-{seed}", steps, {
        "source": SOURCE, "objective": name, "backbone": backbone, "out": str(folder / f"{name}-{seed}"),
        "steps": steps, "batch_size": BATCH, "seed": seed, "settings": settings, "progress": False})
        for name, (backbone, settings) in RECIPES.items() for seed in range(seeds)]
    run_jobs(jobs, progress=progress)
    result = evaluate(runs, train=SOURCE, test=TEST, metrics=("knn", "linear_probe"), label_budget=BUDGETS, seeds=seeds,
                      out=folder, progress=progress)
    if progress:
        _say("\n" + summary(result) + "\n")
        _say(f"{time.perf_counter() - begun:.0f} seconds. The report: {result['report']}")
    return Path(result["report"])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
