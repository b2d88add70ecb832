"""The long form of the objective contract: training at batch 32 on 1,000 real images must beat the untrained network.

``python -m benchmarks.contracts [NAME ...]``, part of ``make contracts``. Every registered objective, on a small
network of every kind it claims: the loss is finite and falls, the features are not collapsed, and k-NN accuracy on
2,000 other images is above that of the same network before training. 300 steps, one seed, nothing tuned here. An
objective that does not hold gets one run of five times as many steps, a rule that is the same for all; both are
printed.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.journal import Journal, mark, needed

ROOT = Path(__file__).parents[1]
STEPS, MORE, BATCH, STORE, ASKED = 300, 1500, 32, 1000, 2000
#: kind -> network and its options; 16 tokens an image, so that the whole takes some 35 minutes of one core
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {"tokens": ("vit_mini", {"patch": 8}), "maps": ("resnet_tiny", {})}


def hold(job: tuple[str, str]) -> list[dict[str, Any]]:
    """Train one objective on one network and measure; again, for longer, where it does not hold."""
    row = attempt(job, STEPS)
    return [row] if row["holds"] else [row, attempt(job, MORE)]


def attempt(job: tuple[str, str], steps: int) -> dict[str, Any]:
    """One run of so many steps."""
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
    of, options = NETWORKS[kind]
    network = build_backbone(of, channels=3, size=32, **options)
    row: dict[str, Any] = {"name": name, "network": network.name, "steps": steps}
    method = registry.build("objective", name, network, train.spec)

    def accuracy(backbone: Any) -> float:
        return knn(features(backbone, train, train), np.asarray(train.labels), features(backbone, test, train),
                   np.asarray(test.labels))

    row["before"] = accuracy(method.exported())
    settings, _ = resolve_settings({"steps": steps, "batch_size": BATCH, "seed": 0}, method.recipe, STORE, kind=kind)
    engine = Engine(method.train(), settings, Fabric(accelerator="cpu", devices=1))
    monitor, losses = CollapseMonitor(), []
    try:
        for index, batch in enumerate(Loader(train, BATCH, 0).iterate(0, steps)):
            loss, pooled, _ = engine.run(batch, Step(index, steps, 0))
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
    return (f"{row['name']:20} {row['network']:12} {row['steps']:5} steps  loss {row['first']:8.3f} -> "
            f"{row['last']:8.3f}  rank {row.get('rank', float('nan')):5.1f}  k-NN {row['before']:5.1f} -> "
            f"{row['after']:5.1f} ({row['after'] - row['before']:+5.1f})  {row['seconds']:4.0f} s  {verdict}")


def key(job: tuple[str, str]) -> str:
    """What a result is kept by: the objective, the network and its options."""
    return "/".join([*job, *(f"{name}={value}" for name, value in NETWORKS[job[1]][1].items())])


def main(names: list[str]) -> int:
    """Hold every objective (or those named) to the contract; write docs/evidence/contracts.md.

    What is done is kept in ``contracts.jsonl`` of the cache folder by the fingerprint of the sources that the
    objective's own file and the loop need, so that a run that was cut off goes on.
    """
    from osteon.core import registry

    jobs = [(c.name, kind) for c in registry.cards(kind="objective") if registry.fits(c, "image")
            for kind in c.backbones if kind in NETWORKS and (not names or c.name in names)]
    os.environ.update({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})
    package = ROOT / "src" / "osteon"
    common = [f for name in ("train/loop", "train/monitors", "backbones/resnet", "backbones/vit")
              for f in needed(package / f"{name}.py", package)]
    marks = {name: mark(sorted({*common, *needed(Path(registry.find("objective", name).file), package)}))
             for name in {name for name, _ in jobs}}
    journal = Journal("contracts")
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"),
                             max_workers=len(os.sched_getaffinity(0))) as pool:
        waiting = {pool.submit(hold, job): job for job in jobs if journal.get(key(job), marks[job[0]]) is None}
        for done in as_completed(waiting):
            journal.put(key(waiting[done]), marks[waiting[done][0]], done.result())
            print("\n".join(map(line, done.result())), flush=True)
    known: dict[tuple[str, str], Any] = {job: journal.get(key(job), marks[job[0]]) for job in jobs}
    rows = [known[job] for job in jobs]
    failed = [a for a in rows if not a[-1]["holds"]]
    longer = sum(len(a) > 1 and a[-1]["holds"] for a in rows)
    summary = f"{len(rows) - len(failed)} of {len(rows)} hold, {longer} of them only after {MORE:,} steps"
    print(summary)
    if not names:
        page = ["# Objective contract, long form", "", "Regenerate with `python -m benchmarks.contracts`.", "",
                f"CIFAR-10, {STORE} training images, batch {BATCH}, {STEPS} steps, one seed, default options; k-NN "
                f"on {ASKED} test images. Before: the same network at its initial weights. Transformers read patches "
                f"of 8 x 8 pixels, 16 tokens. What does not hold gets one run of {MORE} steps. The loss "
                "of objectives whose target moves need not fall.", "", "```",
                *(line(r) for attempts in rows for r in attempts), summary, "```", ""]
        (ROOT / "docs" / "evidence" / "contracts.md").write_text("\n".join(page), encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
