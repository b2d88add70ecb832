"""Is the verdict right where the truth is known? ``python -m benchmarks.planted [CASES]``: 20 planted cases a kind.

The images are gratings of 8 x 8 pixels under noise: four orientations, any phase. Their structure is in no single
pixel, so that few labels say little to raw pixels or to a network trained from scratch, while many unlabelled images
say much.

- *pays*: the label is the orientation, few labels, many unlabelled images, enough test images;
- *does not pay*: the label is the brightness of a corner, which has nothing to do with the structure, and labels
  abound;
- *cannot tell*: as the first kind, but with six test images.

Every case draws its own images, labels and seeds. What is printed is the share of wrong verdicts of each kind.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from osteon.recipes import Recipe
from osteon.verbs.compare import compare

KINDS = ("pays", "does not pay", "cannot tell")
#: orientations, side of the images
CLASSES, SIDE = 4, 8
STEPS, SEEDS = 45, 4
NOISE = 0.5
RECIPE = Recipe("simclr", "simclr", "resnet_tiny", {
    "flip": False, "crop_min": 0.5, "strength": 0.4, "batch_size": 64, "backbone.widths": [16, 32],
    "backbone.depths": [1, 1], "backbone.stride": 2})


def gratings(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(count, 8, 8) images with values about 0, and their orientations."""
    label = rng.integers(0, CLASSES, count)
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    angle = (np.pi * (label + rng.uniform(0, 1)) / CLASSES)[:, None, None]
    phase, height, level = (rng.uniform(a, b, (count, 1, 1)) for a, b in ((0, 2 * np.pi), (0.4, 1.0), (-0.5, 0.5)))
    wave = np.sin(np.pi / 2 * (np.cos(angle) * rows + np.sin(angle) * columns) + phase)
    return height * wave + level + rng.normal(0, NOISE, (count, SIDE, SIDE)), label


def planted(kind: str, case: int, folder: Path) -> dict[str, object]:
    """Write one case's data; return the arguments of ``compare`` that go with it."""
    rng = np.random.default_rng([20, KINDS.index(kind), case])
    sizes = {"pays": (2000, 400, 400), "does not pay": (1000, 1500, 400), "cannot tell": (1000, 400, 6)}[kind]
    x, label = gratings(rng, sum(sizes))
    if kind == "does not pay":
        label = rng.integers(0, 2, len(x))
        x[:, 0, 0] = 2.0 * label - 1.0
    images = (np.clip((x + 2.5) / 5, 0, 1) * 255).round().astype(np.uint8)[..., None]
    start = 0
    for name, size in zip(("source", "train", "test"), sizes, strict=True):
        part = slice(start, start + size)
        np.savez(folder / f"{name}.npz", image=images[part], **({} if name == "source" else {"label": label[part]}))
        start += size
    return {"label_budget": ("all",) if kind == "does not pay" else (16,)}


def verdict(kind: str, case: int) -> str:
    """What a tournament on one planted case answers."""
    with tempfile.TemporaryDirectory(prefix="planted-") as name:
        folder = Path(name)
        more = planted(kind, case, folder)
        result = compare(folder / "source.npz", train=folder / "train.npz", test=folder / "test.npz",
                         recipes=[RECIPE], budget=f"{STEPS}steps", seeds=SEEDS, out=folder / "out",
                         metrics=("knn", "ncm"), workers=1, progress=False, leaks="allow",
                         **more)  # type: ignore[arg-type]
    return str(result["verdict"]["answer"])


def upper(wrong: int, cases: int) -> float:
    """Upper end of the 95 % interval of an error rate (Wilson 1927)."""
    z, rate = 1.96, wrong / cases
    centre, spread = rate + z * z / (2 * cases), z * math.sqrt(rate * (1 - rate) / cases + (z / (2 * cases)) ** 2)
    return min(1.0, (centre + spread) / (1 + z * z / cases))


def main(words: Sequence[str]) -> int:
    """Run the cases; 1 when any verdict is wrong."""
    cases, begun, failed = int(words[0]) if words else 20, time.perf_counter(), 0
    for kind in KINDS:
        answers = []
        for case in range(cases):
            answers.append(verdict(kind, case))
            print(f"  {kind}, case {case}: {answers[-1]}", file=sys.stderr, flush=True)
        wrong = [i for i, answer in enumerate(answers) if answer != kind]
        failed += len(wrong)
        said = "".join(f"; case {i}: {answers[i]}" for i in wrong)
        print(f"{kind:13} {cases - len(wrong)} of {cases} right, error rate {len(wrong) / cases:.0%} "
              f"(at most {upper(len(wrong), cases):.0%} with 95 % confidence){said}", flush=True)
    print(f"{time.perf_counter() - begun:.0f} seconds")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
