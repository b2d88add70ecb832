"""Every compressor on CIFAR-10: ``python -m benchmarks.compressors [RUN]``.

One backbone, pre-trained without labels (RUN, or a SimCLR ViT trained here for 1,500 steps on 20,000 images),
compressed by every registered compressor with its default options and 300 steps where it trains, three seeds each, on
10,000 training images (ssld reads the labels of 512 of them, no other method any); k-NN and linear probe with those
images, on the 10,000 test images, with 95 % intervals over seeds and images. Controls: the original, and random
structured pruning to the same cost, trained as long. Latencies are medians on this machine, the networks of a
comparison taking turns.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.claims.kit import DATA, ROOT
from osteon.core import registry
from osteon.parts.compressor import amount
from osteon.parts.intervals import t_interval
from osteon.verbs.compress import compress
from osteon.verbs.pretrain import pretrain

TRAIN, TEST = (str(DATA / "cifar10" / f"{part}.parquet") for part in ("train", "test"))
IMAGES, STEPS, SEEDS = 10_000, 300, 3
#: budget of each method: half of what it changes, or what its codes allow
BUDGETS = {"int8": "bytes=0.3", "eora": "bytes=0.3", "zero_tprune": "flops=0.65"}
DEFAULT = "params=0.5"
MORE: dict[str, dict[str, Any]] = {"structured_pruning": {"recover": True}}


def compressed(base: Path, name: str, folder: Path) -> list[list[dict[str, Any]]]:
    """The rows of every seed's table: original, method, control."""
    found = []
    for seed in range(SEEDS):
        trains = bool(registry.load(registry.find("compressor", name)).recipe)
        settings = {"limit": IMAGES, **MORE.get(name, {}), **({"steps": STEPS, "batch_size": 64} if trains else {})}
        run = compress(base, data=TRAIN, val=TEST, method=name, budget=BUDGETS.get(name, DEFAULT), seed=seed,
                       out=folder / f"{name}_{seed}", settings=settings, progress=False)
        found.append(json.loads((run / "compression.json").read_text(encoding="utf-8"))["rows"])
    return found


def line(label: str, rows: list[dict[str, Any]], first: dict[str, Any]) -> str:
    """One row of the table: costs of the first seed; the mean over seeds of each accuracy.

    The interval is the wider of the one over seeds and the mean of those over test images.
    """
    row = rows[0]
    cells = [label, *(f"{amount(unit, row[key])} ({100 * row[key] / first[key]:.0f} %)" for key, unit in (
        ("params", "params"), ("flops", "flops"), ("bytes", "bytes"), ("saved_bytes", "bytes")))]
    cells += [f"{row['latency_1_ms']:.2f}", f"{row['latency_64_ms']:.0f}"]
    for reader in row["scores"]:
        values = [r["scores"][reader]["value"] for r in rows]
        mean, n = sum(values) / len(values), len(values)
        images = sum((r["scores"][reader]["high"] - r["scores"][reader]["low"]) / 2 for r in rows) / n
        seeds = t_interval(values)
        half = max(images, (seeds.high - seeds.low) / 2)
        cells.append(f"{100 * mean:.1f} [{100 * (mean - half):.1f}, {100 * (mean + half):.1f}]")
    return "| " + " | ".join(cells) + " |"


def main(arguments: list[str]) -> int:
    """Measure and write docs/evidence/compressors.md."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base = Path(arguments[0]) if arguments else pretrain(
            TRAIN, objective="simclr", backbone="vit_tiny", steps=1500, batch_size=128, out=folder / "base",
            settings={"limit": 20_000}, progress=False, report=False)
        lines: list[str] = []
        for card in registry.cards("compressor"):
            tables = compressed(base, card.name, folder)
            named = [{row["name"]: row for row in rows} for rows in tables]
            first = tables[0][0]
            if not lines:
                lines.append(line("original", [n["original"] for n in named], first))
            for name in list(named[0])[1:]:
                label = card.name if name == card.name else f"{name}, as {card.name}"
                lines.append(line(label, [n[name] for n in named], first))
            print(lines[-2:], flush=True)
    page = ["# Compressors on CIFAR-10", "", "Regenerate with `python -m benchmarks.compressors`.", "",
            *(__doc__ or "").strip().splitlines()[2:], "",
            "| network | parameters | FLOPs | file | kept activations | ms at 1 | ms at 64 | k-NN | linear probe |",
            "|---|---|---|---|---|---|---|---|---|", *lines, "",
            f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}.", ""]
    (ROOT / "docs" / "evidence" / "compressors.md").write_text("\n".join(page), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
