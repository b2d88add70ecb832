"""The long form of the objective contract: training at batch 32 on 1,000 real images must beat the untrained network.

``python -m benchmarks.contracts [NAME ...]``, part of ``make contracts``. Every registered objective, on a small
network of every kind it claims: the loss is finite and falls, the features are not collapsed, and k-NN accuracy on
2,000 other images is above that of the same network before training. 300 steps, one seed, nothing tuned here.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
STEPS, BATCH, STORE, ASKED = 300, 32, 1000, 2000
NETWORKS = {"tokens": "vit_mini", "maps": "resnet_tiny"}


def hold(job: tuple[str, str]) -> dict[str, Any]:
    """Train one objective on one network and measure."""
    import torch
    from lightning_fabric import Fabric

    from benchmarks.claims.kit import cifar, features, knn
    from osteon.backbones import build_backbone
    from osteon.core import registry
    from osteon.core.errors import OsteonError
    from osteon.data import Loader
    from osteon.parts.types import Step
    from osteon.train.loop import Engine
    from osteon.train.monitors import CollapseMonitor
    from osteon.train.settings import resolve_settings

    torch.set_num_threads(1)
    name, kind = job
    train, test = cifar("train", STORE), cifar("test", ASKED)
    began = time.perf_counter()
    torch.manual_seed(0)
    network = build_backbone(NETWORKS[kind], channels=3, size=32)
    row: dict[str, Any] = {"name": name, "network": network.name}
    method = registry.build("objective", name, network, train.spec)

    def accuracy(backbone: Any) -> float:
        return knn(features(backbone, train, train), np.asarray(train.labels), features(backbone, test, train),
                   np.asarray(test.labels))

    row["before"] = accuracy(method.exported())
    settings, _ = resolve_settings({"steps": STEPS, "batch_size": BATCH, "seed": 0}, method.recipe, STORE, kind=kind)
    engine = Engine(method.train(), settings, Fabric(accelerator="cpu", devices=1))
    monitor, losses = CollapseMonitor(), []
    try:
        for index, batch in enumerate(Loader(train, BATCH, 0).iterate(0, STEPS)):
            loss, pooled, _ = engine.run(batch, Step(index, STEPS, 0))
            losses.append(float(loss.total))
            if index % 20 == 0:
                row |= monitor.check(pooled, index)
    except OsteonError as error:
        row["stopped"] = error.what
    row |= {"first": float(np.mean(losses[:20])), "last": float(np.mean(losses[-20:])),
            "after": accuracy(method.exported()), "seconds": time.perf_counter() - began}
    row["holds"] = bool("stopped" not in row and np.isfinite(losses).all() and row["after"] > row["before"])
    return row


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    verdict = "holds" if row["holds"] else "DOES NOT HOLD " + row.get("stopped", "")
    return (f"{row['name']:20} {row['network']:12} loss {row['first']:8.3f} -> {row['last']:8.3f}  rank "
            f"{row.get('rank', float('nan')):5.1f}  k-NN {row['before']:5.1f} -> {row['after']:5.1f} "
            f"({row['after'] - row['before']:+5.1f})  {row['seconds']:4.0f} s  {verdict}")


def main(names: list[str]) -> int:
    """Hold every objective (or those named) to the contract; write docs/evidence/contracts.md."""
    from osteon.core import registry

    jobs = [(c.name, kind) for c in registry.cards(kind="objective") for kind in c.backbones
            if not names or c.name in names]
    os.environ.update({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})
    rows = []
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for row in pool.map(hold, jobs):
            rows.append(row)
            print(line(row), flush=True)
    failed = [r for r in rows if not r["holds"]]
    summary = f"{len(rows) - len(failed)} of {len(rows)} hold"
    print(summary)
    if not names:
        page = ["# Objective contract, long form", "", "Regenerate with `python -m benchmarks.contracts`.", "",
                f"CIFAR-10, {STORE} training images, batch {BATCH}, {STEPS} steps, one seed, default options; k-NN "
                f"on {ASKED} test images. Before: the same network at its initial weights. The loss "
                "of objectives whose target moves need not fall.", "", "```", *map(line, rows), summary, "```", ""]
        (ROOT / "docs" / "evidence" / "contracts.md").write_text("\n".join(page), encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
