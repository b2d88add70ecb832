"""Does the main job work on real photographs? ``python -m benchmarks.cifar [MINUTES]``, 10 by default.

SimCLR on 20,000 CIFAR-10 images without labels, default options, for the given minutes on the cores there are; then
k-NN on 10,000 test images beside the untrained network and raw pixels. Wanted: at least 6 points above the untrained
network and 3 above raw pixels.
"""

from __future__ import annotations

import platform
import sys
import time

import numpy as np
import torch

from benchmarks.claims.kit import ROOT, cifar, features, fit, knn, pixels
from osteon.backbones import build_backbone
from osteon.core import registry

NETWORK, BATCH, LIMIT = "resnet_tiny", 128, 20_000


def main(arguments: list[str]) -> int:
    """Measure and write docs/evidence/cifar.md."""
    minutes = float(arguments[0]) if arguments else 10.0
    train, test = cifar("train", LIMIT), cifar("test")
    torch.manual_seed(0)
    network = build_backbone(NETWORK, channels=3, size=32)

    def accuracy() -> float:
        return knn(features(network, train, train), np.asarray(train.labels), features(network, test, train),
                   np.asarray(test.labels))

    untrained = accuracy()
    raw = knn(pixels(train), np.asarray(train.labels), pixels(test), np.asarray(test.labels))
    print(f"raw pixels {raw:.1f} %, untrained {untrained:.1f} %", flush=True)
    method = registry.build("objective", "simclr", network, train.spec)
    began, worked = time.perf_counter(), time.process_time()
    settings = fit(method, train, minutes=minutes, watch=lambda text: print(text, flush=True), batch_size=BATCH, seed=0)
    spent, cpu = (time.perf_counter() - began) / 60, (time.process_time() - worked) / 60
    trained = accuracy()
    holds = trained >= untrained + 6 and trained >= raw + 3
    lines = [f"SimCLR, {NETWORK}, batch {BATCH}, {settings.steps} steps, {spent:.1f} minutes, {cpu:.1f} CPU "
             f"minutes on {torch.get_num_threads()} threads",
             f"k-NN of 10,000 test images among {LIMIT:,}: trained {trained:.1f} %, untrained {untrained:.1f} %, "
             f"raw pixels {raw:.1f} %",
             f"{trained - untrained:+.1f} points over untrained (wanted 6), {trained - raw:+.1f} over raw pixels "
             f"(wanted 3): {'holds' if holds else 'DOES NOT HOLD'}"]
    print("\n".join(lines))
    page = ["# The main job on CIFAR-10", "", f"Regenerate with `python -m benchmarks.cifar {minutes:g}`.", "", "```",
            *lines, f"{platform.machine()}, torch {torch.__version__}, one seed", "```", ""]
    (ROOT / "docs" / "evidence" / "cifar.md").write_text("\n".join(page), encoding="utf-8")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
