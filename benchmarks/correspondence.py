"""Does learning from frames alone find what moves where? ``python -m benchmarks.correspondence [--quick]``.

VFS trains a small 2-D network on clips of two textured shapes over a textured ground, each frame under its own light
and noise. On clips of other shapes and textures the labels of the first frame are then propagated by the likeness of
features (:mod:`osteon.parts.label_propagation`). Beside it stand the same network untrained, with its batch statistics
measured, the colours themselves, and the first frame's labels left where they are.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.claims.kit import ROOT, fit
from osteon.backbones import build_backbone
from osteon.backbones.per_frame import PerFrame
from osteon.data import Dataset, open_source
from osteon.objectives.vfs import VFS
from osteon.parts.label_propagation import propagate, region_similarity
from osteon.views import normalise

FRAMES, SIDE, SHAPES, STEPS, SEEDS = 12, 48, 2, 600, 2
TRAIN, TEST, BATCH, RADIUS = 600, 32, 32, 6


def texture(rng: np.random.Generator, cells: int, side: int) -> np.ndarray:
    """Smooth random colours (side, side, 3) in [0, 1]."""
    coarse = torch.from_numpy(rng.random((1, 3, cells, cells), np.float32))
    fine = F.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=False)
    return fine[0].permute(1, 2, 0).numpy()


def make_clip(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One clip (T, H, W, 3) uint8 and what is seen at every pixel (T, H, W): 0 the ground, then the shapes."""
    frames = np.repeat(texture(rng, 8, SIDE)[None], FRAMES, 0)
    labels = np.zeros((FRAMES, SIDE, SIDE), np.int64)
    row, column = np.mgrid[:SIDE, :SIDE]
    for label in range(1, SHAPES + 1):
        half, round_, look = rng.integers(5, 9), rng.random() < 0.5, texture(rng, 5, SIDE)
        at, speed, room = rng.uniform(half, SIDE - half, 2), rng.uniform(-2, 2, 2), SIDE - 2 * half
        for t in range(FRAMES):
            far = (at - half + t * speed) % (2 * room)
            y, x = np.rint(np.where(far > room, 2 * room - far, far) + half).astype(int)
            away = np.hypot(row - y, column - x) if round_ else np.maximum(abs(row - y), abs(column - x))
            where = away <= half
            frames[t][where] = look[(row[where] - y) % SIDE, (column[where] - x) % SIDE]
            labels[t][where] = label
    light = rng.uniform(0.6, 1.2, (FRAMES, 1, 1, 3))
    noisy = frames * light + rng.normal(0, 0.08, frames.shape)
    return np.rint(np.clip(noisy, 0, 1) * 255).astype(np.uint8), labels


def make_clips(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Clips (N, T, H, W, 3) and labels (N, T, H, W)."""
    rng = np.random.default_rng(seed)
    made = [make_clip(rng) for _ in range(count)]
    return np.stack([clip for clip, _ in made]), np.stack([labels for _, labels in made])


def score(maps: Tensor, labels: np.ndarray) -> float:
    """Mean region similarity of the shapes of one clip, from a map of features a frame (T, D, h, w)."""
    true = torch.from_numpy(labels)
    kinds = F.one_hot(true[0], SHAPES + 1).permute(2, 0, 1).float()
    first = F.adaptive_avg_pool2d(kinds, tuple(maps.shape[2:]))
    spread = F.interpolate(propagate(maps, first, radius=RADIUS), size=true.shape[1:], mode="bilinear")
    return float(np.mean([region_similarity(spread.argmax(1), true, k) for k in range(1, SHAPES + 1)]))


@torch.no_grad()
def network_scores(network: PerFrame, clips: Dataset, labels: np.ndarray) -> np.ndarray:
    """Per cent of every clip by the stage before the last, which sees 11 pixels about a place; a shape has 11 to 17."""
    network.eval()
    scores = []
    for i in range(len(clips)):
        x = normalise(clips.batch([i])["video"], clips.spec)
        maps = network.encoder(x[0].transpose(0, 1)).levels[-2]
        scores.append(score(F.adaptive_avg_pool2d(maps, (SIDE // 2, SIDE // 2)), labels[i]))
    return 100 * np.array(scores)


def build(seed: int, data: Dataset) -> PerFrame:
    """An untrained network whose batch norms know the data's statistics."""
    torch.manual_seed(seed)
    network = build_backbone("per_frame", channels=3, size=data.spec.extent, encoder="resnet_tiny",
                             encoder_options={"depths": (1, 1, 1), "stride": 2})
    assert isinstance(network, PerFrame)
    with torch.no_grad():
        for start in range(0, 320, 16):
            network.train()(normalise(data.batch(np.arange(start, start + 16) % len(data))["video"], data.spec))
    return network


def open_clips(clips: np.ndarray, folder: Path, like: Dataset | None = None) -> Dataset:
    """The clips as a source."""
    file = folder / f"{len(clips)}.npz"
    np.savez(file, video=clips)
    return open_source(file, frames=FRAMES, stride=1, cache=False, **({} if like is None else {"like": like.spec}))


def main(arguments: list[str]) -> int:
    """Train, propagate and write the page."""
    quick, begun = "--quick" in arguments, time.perf_counter()
    (seen, _), (other, labels) = make_clips(0, 64 if quick else TRAIN), make_clips(1, 4 if quick else TEST)
    with tempfile.TemporaryDirectory() as folder:
        train = open_clips(seen, Path(folder))
        test = open_clips(other, Path(folder), train)
    lines = [f"{len(train)} clips of {FRAMES} frames of {SIDE} x {SIDE} to train, {len(test)} others to test; region "
             "similarity (intersection over union, per cent)"]
    still = [np.mean([region_similarity(torch.from_numpy(np.repeat(m[:1], FRAMES, 0)), torch.from_numpy(m), k)
                      for k in range(1, SHAPES + 1)]) for m in labels]
    colours = [score(F.avg_pool2d(torch.from_numpy(c).permute(0, 3, 1, 2).float(), 2), m)
               for c, m in zip(other, labels, strict=True)]
    lines += [f"{'labels left where they are':32} {100 * np.mean(still):.1f}",
              f"{'colours, 2 x 2 pixels':32} {100 * np.mean(colours):.1f}"]
    clear = []
    for seed in range(1 if quick else SEEDS):
        untrained = network_scores(build(seed, train), test, labels)
        network, steps = build(seed, train), 3 if quick else STEPS
        method = VFS(network, train.spec)
        fit(method, train, steps=steps, batch_size=16 if quick else BATCH, seed=seed)
        trained = network_scores(network, test, labels)
        gain, error = float(np.mean(trained - untrained)), float(np.std(trained - untrained, ddof=1) / len(test)**0.5)
        clear.append(gain > 2 * error)
        lines += [f"seed {seed}: {'untrained network':24} {untrained.mean():.1f}",
                  f"seed {seed}: {f'after {steps} steps of VFS':24} {trained.mean():.1f} ({gain:+.1f}, standard error "
                  f"{error:.1f} over clips)"]
        print("\n".join(lines[-2:]), flush=True)
    holds = all(clear)
    lines += [f"{'holds' if holds else 'DOES NOT HOLD'}: the trained network is above the untrained one in every "
              "seed, by more than twice the standard error",
              f"{time.perf_counter() - begun:.0f} seconds, {torch.get_num_threads()} threads"]
    print("\n".join(lines))
    if not quick:
        page = ["# Correspondence from frames (VFS)", "", "Regenerate with `python -m benchmarks.correspondence`. "
                + " ".join((__doc__ or "").split("\n\n", 1)[1].replace(":mod:", "").split()), "", "```", *lines, "```",
                ""]
        (ROOT / "docs" / "evidence" / "correspondence.md").write_text("\n".join(page), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
