"""Do bf16 and channels_last converge as well as fp32? ``python -m benchmarks.precision``.

SimCLR on 5,000 CIFAR-10 images, resnet_tiny, batch 64, 300 steps, eight seeds, three ways of computing the same steps;
k-NN on 2,000 other images. bf16 is autocast: weights and optimiser stay in fp32. On a processor without native bf16 it
is slow, but rounds alike.
"""

from __future__ import annotations

import platform
import sys
import time

import numpy as np
import torch

from benchmarks.claims.kit import ROOT, cifar, features
from osteon.backbones import build_backbone
from osteon.core import registry
from osteon.core.run import RunFolder
from osteon.parts.intervals import compare_paired
from osteon.train.loop import make_fabric, train
from osteon.train.settings import default_precision, resolve_settings

STEPS, BATCH, STORE, ASKED, SEEDS = 300, 64, 5000, 2000, 8
WAYS = {"fp32": ("32", False), "fp32, channels_last": ("32", True), "bf16, channels_last": ("bf16", True)}


def measure(way: str, seed: int, folder: str) -> tuple[np.ndarray, float, float]:
    """Right or wrong for every test image, the last loss, and CPU seconds."""
    store, asked = cifar("train", STORE), cifar("test", ASKED)
    precision, channels_last = WAYS[way]
    torch.manual_seed(seed)
    network = build_backbone("resnet_tiny", channels=3, size=32)
    method = registry.build("objective", "simclr", network, store.spec)
    settings, _ = resolve_settings({"steps": STEPS, "batch_size": BATCH, "seed": seed, "precision": precision,
                                    "channels_last": channels_last}, method.recipe, STORE, kind="maps")
    begun = time.process_time()
    result = train(method, store, RunFolder(folder), settings, fabric=make_fabric(precision), say=lambda _t: None)
    spent = time.process_time() - begun
    x, y = features(network.eval(), store, store), np.asarray(store.labels)
    scores = registry.build("evaluator", "knn")(x, y, features(network, asked, store), classes=10)
    return (scores.argmax(1) == np.asarray(asked.labels)).astype(float), result.last["loss"], spent


def main() -> int:
    """Measure and write docs/evidence/precision.md."""
    import tempfile

    right: dict[str, list[np.ndarray]] = {way: [] for way in WAYS}
    lines = []
    for seed in range(SEEDS):
        for way in WAYS:
            with tempfile.TemporaryDirectory() as folder:
                hits, loss, spent = measure(way, seed, folder + "/run")
            right[way].append(hits)
            lines.append(f"seed {seed}  {way:20} loss {loss:.3f}  k-NN {100 * hits.mean():.1f}  {spent:.0f} CPU s")
            print(lines[-1], flush=True)
    holds = True
    for way in list(WAYS)[1:]:
        found = compare_paired(np.stack(right[way]), np.stack(right["fp32"]))
        fine = found.low > -0.02
        holds &= fine
        lines.append(f"{way} - fp32: {100 * found.mean:+.1f} points [{100 * found.low:+.1f}, {100 * found.high:+.1f}]: "
                     + ("no worse by 2 points" if fine else "CANNOT BE SAID to be no worse by 2 points"))
        print(lines[-1])
    page = ["# bf16 and channels_last against fp32", "", "Regenerate with `python -m benchmarks.precision`.", "",
            f"SimCLR, resnet_tiny, {STORE:,} CIFAR-10 images, batch {BATCH}, {STEPS} steps; k-NN of {ASKED:,} test "
            "images; intervals over seeds and images, paired.", "", "```", *lines,
            f"{platform.machine()}, torch {torch.__version__}, default here: {default_precision('maps')[1]}", "```", ""]
    (ROOT / "docs" / "evidence" / "precision.md").write_text("\n".join(page), encoding="utf-8")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
