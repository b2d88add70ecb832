"""How well ``osteon plan`` foretells time and memory: foretold and measured side by side, as ``docs/evidence/plan.md``.

Each pair of objective and backbone is planned, then really run in a fresh process. Run with
``python -m benchmarks.plan`` (about 15 minutes on two cores), or ``--quick`` for two short pairs that write nothing.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from osteon.verbs.plan import plan

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("OSTEON_DATA", ROOT.parent / "shared" / "data"))
#: what the plan promises
TIME, MEMORY = 0.30, 0.20
#: objective, backbone, source, steps, batch
PAIRS = [("simclr", "resnet_tiny", "digits", 400, 128), ("mae", "vit_tiny", "digits", 400, 128),
         ("byol", "resnet_mini", "cifar", 150, 128), ("mae", "vit_mini", "cifar", 150, 128),
         ("dino", "vit_mini", "cifar", 80, 64), ("vicreg", "resnet18", "cifar", 60, 64),
         ("spark", "resnet_mini", "cifar", 150, 64), ("supervised", "vit_mini", "cifar", 200, 256)]
_RUN = """
import json, sys
from osteon.verbs._plan_probe import peak_memory
from osteon.verbs.pretrain import pretrain
pretrain(**json.loads(sys.argv[1]), progress=False)
print(peak_memory())
"""


def measure(objective: str, backbone: str, source: str, steps: int, batch: int) -> dict[str, Any]:
    """Plan one pair, run it, and compare."""
    options: dict[str, Any] = {"objective": objective, "backbone": backbone, "steps": steps, "batch_size": batch}
    where = "digits" if source == "digits" else str(DATA / "cifar10" / "train.parquet")
    if source != "digits":
        options["settings"] = {"limit": 4000}
    foretold = plan(where, **options, largest=False, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        words = json.dumps({"source": where, **options, "out": str(Path(folder) / "run")})
        done = subprocess.run([sys.executable, "-c", _RUN, words], capture_output=True, text=True, check=True)
        took = time.perf_counter() - begun
    return {"pair": f"{objective}, {backbone}, {source}, {steps} x {batch}", "seconds": took,
            "foretold_seconds": foretold["time"]["total"], "bytes": int(done.stdout.split()[-1]),
            "foretold_bytes": foretold["memory"]["peak"]}


def main(argv: list[str]) -> int:
    """Print the table and, unless quick, keep it; 0 when every pair is within the promise."""
    quick = "--quick" in argv
    lines = ["| pair | time foretold | measured | off | memory foretold | measured | off |",
             "|---|---|---|---|---|---|---|"]
    print(*lines, sep="\n", flush=True)
    good = 0
    pairs = PAIRS[:2] if quick else PAIRS
    for pair in pairs:
        row = measure(*pair)
        late, heavy = (row[f"foretold_{k}"] / row[k] - 1 for k in ("seconds", "bytes"))
        good += abs(late) <= TIME and abs(heavy) <= MEMORY
        lines.append(f"| {row['pair']} | {row['foretold_seconds']:.0f} s | {row['seconds']:.0f} s | "
                     f"{100 * late:+.0f} % | {row['foretold_bytes'] / 1e6:.0f} MB | {row['bytes'] / 1e6:.0f} MB | "
                     f"{100 * heavy:+.0f} % |")
        print(lines[-1], flush=True)
    text = f"{good} of {len(pairs)} within {TIME:.0%} of the time and {MEMORY:.0%} of the memory."
    print(text)
    if not quick:
        page = ["# What `osteon plan` foretells", "", "Regenerate with `python -m benchmarks.plan`. Time is of the "
                "whole command, from starting Python to the report; memory is the peak of resident memory.", "", *lines,
                "",
                text, "", f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}", ""]
        (ROOT / "docs" / "evidence" / "plan.md").write_text("\n".join(page), encoding="utf-8")
    return int(good < len(pairs))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
