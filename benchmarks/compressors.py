"""Every compressor on CIFAR-10: ``python -m benchmarks.compressors [NAME ...] [--minutes N]``.

One backbone, pre-trained without labels on 20,000 images, compressed by every registered compressor with its default
options, on 10,000 training images (ssld reads the labels of 512 of them, no other method any); k-NN and linear probe
with those images, on the 10,000 test images, with 95 % intervals over seeds and images. Controls: the original, and
random structured pruning to the same cost, trained as long. Latencies, of batches of 1 and of 64, are shares of the
original's in the same comparison, whose networks took turns; the median over seeds. Results are kept as they come, so
that the table can be made in pieces.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.base import TEST, TRAIN, Plan, read, sources, work
from benchmarks.claims.kit import ROOT
from benchmarks.journal import Journal, mark
from osteon.core import registry
from osteon.parts.compressor import amount
from osteon.parts.intervals import t_interval
from osteon.verbs.compress import compress

IMAGES, SIZES = 10_000, {"pretrain": 500, "steps": 100, "seeds": 3}
#: budget of each method: half of what it changes, or what its codes allow
BUDGETS = {"int8": "bytes=0.3", "eora": "bytes=0.3", "zero_tprune": "flops=0.65"}
DEFAULT = "params=0.5"
MORE: dict[str, dict[str, Any]] = {"structured_pruning": {"recover": True}}


def measure(base: Path, name: str, seed: int, steps: int) -> list[dict[str, Any]]:
    """The rows of one compression's table: original, method, control."""
    trains = bool(registry.load(registry.find("compressor", name)).recipe)
    settings = {"limit": IMAGES, **MORE.get(name, {}), **({"steps": steps, "batch_size": 64} if trains else {})}
    with tempfile.TemporaryDirectory(prefix="osteon-") as scratch:
        run = compress(base, data=TRAIN, val=TEST, method=name, budget=BUDGETS.get(name, DEFAULT), seed=seed,
                       out=Path(scratch) / "run", settings=settings, progress=False)
        found: list[dict[str, Any]] = json.loads((run / "compression.json").read_text(encoding="utf-8"))["rows"]
    return found


def line(label: str, rows: list[dict[str, Any]], originals: list[dict[str, Any]]) -> str:
    """One row of the table: costs of the first seed; the mean over seeds of each accuracy, beside each seed's original.

    The interval is the wider of the one over seeds and the mean of those over test images.
    """
    row, first = rows[0], originals[0]
    cells = [label, *(f"{amount(unit, row[key])} ({100 * row[key] / first[key]:.0f} %)" for key, unit in (
        ("params", "params"), ("flops", "flops"), ("bytes", "bytes"), ("saved_bytes", "bytes")))]
    for key in ("latency_1_ms", "latency_64_ms"):
        share = median(r[key] / o[key] for r, o in zip(rows, originals, strict=True))
        cells.append(f"{100 * share:.0f} %")
    for reader in row["scores"]:
        values = [r["scores"][reader]["value"] for r in rows]
        mean, n = sum(values) / len(values), len(values)
        images = sum((r["scores"][reader]["high"] - r["scores"][reader]["low"]) / 2 for r in rows) / n
        seeds = t_interval(values)
        half = max(images, (seeds.high - seeds.low) / 2)
        cells.append(f"{100 * mean:.1f} [{100 * (mean - half):.1f}, {100 * (mean + half):.1f}]")
    return "| " + " | ".join(cells) + " |"


def table(tables: dict[str, list[list[dict[str, Any]]]]) -> list[str]:
    """The rows of the page from each method's rows of every seed; the original stands there once."""
    lines: list[str] = []
    for method, found in tables.items():
        named = [{row["name"]: row for row in rows} for rows in found]
        if not lines:
            originals = [n["original"] for n in named]
            lines.append(line("original", originals, originals))
        for name in list(named[0])[1:]:
            label = method if name == method else f"{name}, as {method}"
            there = [n for n in named if name in n]
            lines.append(line(label, [n[name] for n in there], [n["original"] for n in there]))
    return lines


def main(arguments: list[str]) -> int:
    """Measure what is asked for and not measured yet; write docs/evidence/compressors.md when every row is there."""
    plan = read(arguments, **SIZES)
    base, journal = plan.base(), Journal("compressors")
    every = [card.name for card in registry.cards("compressor")]
    marks = {name: mark(sources("compressor", name, base)) for name in every}
    keys = {(name, seed): f"{name}, {IMAGES} images, {plan.steps} steps, seed {seed}"
            for name in every for seed in range(plan.seeds)}
    work(journal, [(key, marks[name], lambda n=name, s=seed: measure(base, n, s, plan.steps))
                   for (name, seed), key in keys.items() if not plan.names or name in plan.names], plan.minutes)
    left = [key for (name, _), key in keys.items() if journal.get(key, marks[name]) is None]
    if left:
        print(f"{len(left)} of {len(keys)} left: run it again to go on")
        return 0
    lines = table({name: [journal.get(keys[name, seed], marks[name]) or [] for seed in range(plan.seeds)]
                   for name in every})
    (ROOT / "docs" / "evidence" / "compressors.md").write_text(page(plan, lines), encoding="utf-8")
    return 0


def page(plan: Plan, lines: Sequence[str]) -> str:
    """The page in docs/evidence."""
    return "\n".join([
        "# Compressors on CIFAR-10", "", "Regenerate with `python -m benchmarks.compressors`.", "",
        *(__doc__ or "").strip().splitlines()[2:], "", plan.say(), "",
        "| network | parameters | FLOPs | file | kept activations | time at 1 | time at 64 | k-NN | linear probe |",
        "|---|---|---|---|---|---|---|---|---|", *lines, "",
        f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}.", ""])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
