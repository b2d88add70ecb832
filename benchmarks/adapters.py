"""Every adapter on CIFAR-10: ``python -m benchmarks.adapters [RUN]``.

One backbone, pre-trained without labels (RUN, or a SimCLR ViT trained here for 1,500 steps on 20,000 images), adapted
on 1,000 labels for 300 steps by every registered adapter with its default options, three seeds each; accuracy on the
10,000 test images with an interval over seeds and images. Controls: the linear probe, full fine-tuning, and full
training of the same network from random weights, all layers at one rate. Costs are those of one step at a batch of 64,
on this machine.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.claims.kit import DATA, ROOT
from osteon.core import registry
from osteon.data import Dataset, open_source
from osteon.parts.intervals import Interval, hierarchical_interval
from osteon.verbs._model import load_trained, save_trained
from osteon.verbs._networks import fresh
from osteon.verbs.adapt import adapt, predict
from osteon.verbs.pretrain import pretrain

TRAIN, TEST = (str(DATA / "cifar10" / f"{part}.parquet") for part in ("train", "test"))
LABELS, STEPS, SEEDS = 1_000, 300, 3


def correct(run: Path, test: Dataset) -> np.ndarray:
    """Which test images an adapted run gets right, (M,)."""
    trained = load_trained(run)
    assert trained.adapter is not None and test.labels is not None
    return predict(trained.adapter, test, trained.spec).argmax(1) == test.labels


def untrained(base: Path, folder: Path) -> Path:
    """A run that holds the same network with random weights."""
    from osteon.core.run import RunFolder

    trained = load_trained(base)
    run = RunFolder(folder)
    with run.lock():
        run.create_or_resume({"of": str(base)})
        save_trained(run, fresh(trained.backbone, 0), trained.spec, {})
    return folder


def measure(base: Path, name: str, folder: Path, test: Dataset,
            **settings: Any) -> tuple[Interval, dict[str, Any], list[float], int]:
    """Accuracy with its interval, cost of a step, each seed's accuracy, and bytes of the delta."""
    runs = [adapt(base, train=TRAIN, val=TEST, adapter=name, out=folder / f"{name}_{seed}", steps=STEPS, batch_size=64,
                  seed=seed, label_budget=LABELS, settings=settings, progress=False) for seed in range(SEEDS)]
    right = np.stack([correct(run, test) for run in runs]).astype(float)
    costs = json.loads((runs[0] / "adaptation.json").read_text(encoding="utf-8"))["costs"]
    return (hierarchical_interval(right), {"own": costs[name], "full": costs["full"]}, list(right.mean(1)),
            (runs[0] / "delta.safetensors").stat().st_size)


def line(name: str, found: tuple[Interval, dict[str, Any], list[float], int]) -> str:
    """One row of the table."""
    interval, costs, seeds, size = found
    own, full = costs["own"], costs["full"]
    shares = [f"{100 * own[key] / max(1e-12, full[key]):5.1f}" for key in ("saved_bytes", "optimizer_bytes",
                                                                          "step_seconds")]
    return (f"| {name} | {100 * interval.mean:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}] | "
            f"{', '.join(f'{100 * s:.1f}' for s in seeds)} | {own['trainable']:,} | {size:,} | {' | '.join(shares)} |")


def main(arguments: list[str]) -> int:
    """Measure every adapter (or those named after RUN) and write docs/evidence/adapters.md."""
    with tempfile.TemporaryDirectory(prefix="osteon-") as scratch:
        work = Path(scratch)
        base = Path(arguments[0]) if arguments else pretrain(
            TRAIN, objective="simclr", backbone="vit_tiny", steps=1500, batch_size=128, out=work / "base",
            settings={"limit": 20_000}, report=False)
        trained = load_trained(base)
        test = open_source(TEST, like=trained.spec)
        names = arguments[1:] or [card.name for card in registry.cards(kind="adapter")
                                  if trained.backbone.kind in card.backbones]
        rows = []
        for name in [n for n in ("linear", "full") if n in names] + [n for n in names if n not in ("linear", "full")]:
            rows.append(line(name, measure(base, name, work, test)))
            print(rows[-1], flush=True)
        rows.append(line("full, from random weights", measure(untrained(base, work / "untrained"), "full",
                                                              work / "scratch", test, layer_decay=1.0)))
        print(rows[-1], flush=True)
    page = ["# Adapters on CIFAR-10", "", "Regenerate with `python -m benchmarks.adapters`.", "",
            f"{trained.backbone.name}, {LABELS:,} labels, {STEPS} steps, {SEEDS} seeds, each adapter with its default "
            "options; per cent of 10,000 test images, with an interval over seeds and images. Kept bytes, the "
            "optimiser's bytes and the time of a step are shares of full fine-tuning in per cent.", "",
            "| adapter | accuracy | seeds | trainable | bytes of the delta | kept | optimiser | time |",
            "|---|---|---|---|---|---|---|---|", *rows, "",
            f"{platform.machine()}, torch {torch.__version__}", ""]
    if not arguments[1:]:
        (ROOT / "docs" / "evidence" / "adapters.md").write_text("\n".join(page), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
