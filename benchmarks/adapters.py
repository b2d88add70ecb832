"""Every adapter on CIFAR-10: ``python -m benchmarks.adapters [NAME ...] [--minutes N]``.

One backbone, pre-trained without labels on 20,000 images, adapted on 1,000 labels by every registered adapter with its
default options; accuracy on the 10,000 test images with an interval over seeds and images. Controls: the linear probe,
full fine-tuning, and full training of the same network from random weights, all layers at one rate. Costs are those of
one step at a batch of 64, each beside full fine-tuning in the same process; the median over seeds counts. Steps are
alike for all and few, so that the table takes about 25 minutes of one core: it shows what a short training gives.
Results are kept as they come, so that the table can be made in pieces.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.base import TEST, TRAIN, Plan, read, sources, work
from benchmarks.claims.kit import ROOT
from benchmarks.journal import Journal, mark
from osteon.core import registry
from osteon.core.run import RunFolder
from osteon.data import open_source
from osteon.parts.intervals import hierarchical_interval
from osteon.verbs._model import load_trained, save_trained
from osteon.verbs._networks import fresh
from osteon.verbs.adapt import adapt, predict

LABELS, SIZES = 1_000, {"pretrain": 500, "steps": 150, "seeds": 3}
#: label of the control that starts from random weights
UNTRAINED = "full, from random weights"


def untrained(base: Path, folder: Path, seed: int) -> Path:
    """A run that holds the same network with random weights."""
    trained = load_trained(base)
    run = RunFolder(folder)
    with run.lock():
        run.create_or_resume({"of": base.name})
        save_trained(run, fresh(trained.backbone, seed), trained.spec, {})
    return folder


def measure(base: Path, name: str, seed: int, steps: int) -> dict[str, Any]:
    """Adapt once: which test images are right (packed bits), costs of a step here and of full, bytes of the delta."""
    with tempfile.TemporaryDirectory(prefix="osteon-") as scratch:
        folder = Path(scratch)
        start, adapter, settings = base, name, {}
        if name == UNTRAINED:
            start, adapter, settings = untrained(base, folder / "untrained", seed), "full", {"layer_decay": 1.0}
        spec = load_trained(start).spec
        test = open_source(TEST, like=spec)
        few = folder / "few.csv"  # the verb scores on these; all test images are scored once, below
        few.write_text("\n".join(["id", *test.ids[:100]]) + "\n", encoding="utf-8")
        run = adapt(start, train=TRAIN, val=f"{TEST}@{few}", adapter=adapter, out=folder / "run", steps=steps,
                    batch_size=64, seed=seed, label_budget=LABELS, settings=settings, progress=False)
        trained = load_trained(run)
        assert trained.adapter is not None and test.labels is not None
        right = predict(trained.adapter, test, trained.spec).argmax(1) == test.labels
        costs = json.loads((run / "adaptation.json").read_text(encoding="utf-8"))["costs"]
        return {"right": np.packbits(right).tobytes().hex(), "own": costs[adapter], "full": costs["full"],
                "bytes": (run / "delta.safetensors").stat().st_size, "test": len(test)}


def line(name: str, found: Sequence[dict[str, Any]]) -> str:
    """One row of the table, from the results of every seed."""
    right = np.stack([np.unpackbits(np.frombuffer(bytes.fromhex(f["right"]), np.uint8))[:f["test"]]
                      for f in found]).astype(float)
    interval, own = hierarchical_interval(right), found[0]["own"]
    shares = [statistics.median(100 * f["own"][key] / max(1e-12, f["full"][key]) for f in found)
              for key in ("saved_bytes", "optimizer_bytes", "step_seconds")]
    return (f"| {name} | {100 * interval.mean:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}] | "
            f"{', '.join(f'{100 * s:.1f}' for s in right.mean(1))} | {own['trainable']:,} | {found[0]['bytes']:,} | "
            f"{' | '.join(f'{s:.1f}' for s in shares)} |")


def main(arguments: list[str]) -> int:
    """Measure what is asked for and not measured yet; write docs/evidence/adapters.md when every row is there."""
    plan = read(arguments, **SIZES)
    base, journal = plan.base(), Journal("adapters")
    kind = load_trained(base).backbone.kind
    every = [card.name for card in registry.cards("adapter") if kind in card.backbones]
    rows = ["linear", "full", UNTRAINED, *(n for n in every if n not in ("linear", "full"))]
    marks = {name: mark(sources("adapter", "full" if name == UNTRAINED else name, base)) for name in rows}
    keys = {(name, seed): f"{name}, {LABELS} labels, {plan.steps} steps, seed {seed}"
            for name in rows for seed in range(plan.seeds)}
    work(journal, [(key, marks[name], lambda n=name, s=seed: measure(base, n, s, plan.steps))
                   for (name, seed), key in keys.items() if not plan.names or name in plan.names], plan.minutes)
    left = [key for (name, _), key in keys.items() if journal.get(key, marks[name]) is None]
    if left:
        print(f"{len(left)} of {len(keys)} left: run it again to go on")
        return 0
    lines = [line(name, [journal.get(keys[name, seed], marks[name]) or {} for seed in range(plan.seeds)])
             for name in rows]
    (ROOT / "docs" / "evidence" / "adapters.md").write_text(page(plan, lines), encoding="utf-8")
    return 0


def page(plan: Plan, lines: Sequence[str]) -> str:
    """The page in docs/evidence."""
    return "\n".join([
        "# Adapters on CIFAR-10", "", "Regenerate with `python -m benchmarks.adapters`.", "",
        *(__doc__ or "").strip().splitlines()[2:], "", f"{plan.say()} Accuracy is per cent of the test images. Kept "
        "bytes, the optimiser's bytes and the time of a step are shares of full fine-tuning in per cent.", "",
        "| adapter | accuracy | seeds | trainable | bytes of the delta | kept | optimiser | time |",
        "|---|---|---|---|---|---|---|---|", *lines, "",
        f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}", ""])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
