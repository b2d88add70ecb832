"""Claim 51 (PredFormer): gated Transformer units against convolutions on moving digits, at equal CPU time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.claims.kit import Record
from osteon.backbones import build_backbone
from osteon.data._moving_digits import _digits, moving
from osteon.data.splits import train_validation_split
from osteon.objectives.frame_prediction import FramePrediction, copy_last, extrapolate
from osteon.parts.types import DataSpec

KNOWN, AHEAD, SIDE, SEEDS, BATCH, SECONDS = 5, 5, 32, 2, 16, 240.0
TRAIN, TEST = 4000, 400
#: Pixels in [0, 1] as they are.
SPEC = DataSpec("video", 1, SIDE, (0.0,), (1.0,), shape=(KNOWN + AHEAD, SIDE, SIDE))
Predict = Callable[[Tensor], Tensor]


def run(quick: bool = False) -> Record:
    """Train both networks for the same CPU time and compare them on clips of digits neither has seen."""
    seconds = 4.0 if quick else SECONDS
    record = Record(
        51,
        "PredFormer (gated Transformers over time and space) halves SimVP's error on Moving MNIST (-51.3 %).",
        f"Moving digits, {SIDE} x {SIDE}, {KNOWN} -> {AHEAD} frames, 2 of scikit-learn's digits a clip, {TRAIN:,} "
        f"clips to train and {TEST} of other digits to test, {SEEDS} seeds, {seconds / 60:.1f} minutes of CPU time a "
        "network (CPU time rather than wall time, which on a machine with other work measures that work). AdamW, 1e-3, "
        f"OneCycle over that time, batch {BATCH}.",
        "Both networks <= 0.75 x the copied last frame's error; PredFormer <= 1.0 x the convolutional peer's.")
    train, test = make_clips(200 if quick else TRAIN, test=False), make_clips(100 if quick else TEST, test=True)
    controls = {"the last frame, copied": copy_last, "linear extrapolation": extrapolate}
    scores = {name: error(lambda x, f=f: f(x, AHEAD).clamp(0, 1), test) for name, f in controls.items()}
    for name, score in scores.items():
        record.say(f"{name:24} {score:.1f} (squared error of a frame, summed over its {SIDE * SIDE} pixels)")
    found: dict[str, list[float]] = {}
    for name, build in {"SimVP-like convolutions": convolutions, "PredFormer": predformer}.items():
        found[name] = []
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            network = build()
            if not seed:
                record.say(f"{name}: {sum(p.numel() for p in network.parameters()):,} parameters")
            steps = fit(network, train, seconds, seed)
            found[name].append(error(network.eval(), test))
            record.say(f"{name}, seed {seed}: {steps} steps, error {found[name][-1]:.1f}")
    peer, ours = (float(np.mean(found[name])) for name in found)
    copied = scores["the last frame, copied"]
    record.check(f"the peer's error is {peer / copied:.2f} and PredFormer's {ours / copied:.2f} of the copied frame's "
                 "(at most 0.75)", max(peer, ours) <= 0.75 * copied)
    record.check(f"PredFormer's error is {ours / peer:.2f} of the convolutional peer's (at most 1.0; the paper's 0.49 "
                 "is not asked at this scale)", ours <= peer)
    return record


def make_clips(count: int, *, test: bool) -> Tensor:
    """Clips (N, 1, T, H, W) uint8 of digits of one part, moving in any of the five ways."""
    rng = np.random.default_rng(7 + test)
    parts = train_validation_split(_digits()[1], fraction=0.3, seed=0)
    pool = parts[int(test)]
    clips = [moving(int(rng.integers(5)), rng.choice(pool, 2, replace=False), int(rng.integers(2**31)))
             for _ in range(count)]
    return torch.from_numpy(np.stack(clips)[:, None, :KNOWN + AHEAD])


def fit(network: nn.Module, clips: Tensor, seconds: float, seed: int) -> int:
    """Train until the CPU time is used up; how many steps that were."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.01)
    rng, begun, steps = np.random.default_rng(seed), time.process_time(), 0
    while (done := (time.process_time() - begun) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * one_cycle(done)
        x = clips[rng.integers(len(clips), size=BATCH)].float() / 255
        loss = F.mse_loss(network(x[:, :, :KNOWN]), x[:, :, KNOWN:])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        steps += 1
    return steps


def one_cycle(done: float) -> float:
    """Share of the largest rate: from 1/25 up over the first 30 %, then down to nothing, by cosines."""
    if done < 0.3:
        return 1 / 25 + (1 - 1 / 25) * (1 - math.cos(math.pi * done / 0.3)) / 2
    return (1 + math.cos(math.pi * (done - 0.3) / 0.7)) / 2


@torch.no_grad()
def error(predict: Predict, clips: Tensor) -> float:
    """Squared error of a predicted frame, summed over pixels, as the paper counts."""
    total = 0.0
    for part in clips.split(100):
        x = part.float() / 255
        total += float((predict(x[:, :, :KNOWN]) - x[:, :, KNOWN:]).square().sum())
    return total / (len(clips) * AHEAD)


class Ours(nn.Module):
    """PredFormer under osteon's objective."""

    def __init__(self) -> None:
        super().__init__()
        network = build_backbone("predformer_tiny", channels=1, size=(KNOWN, SIDE, SIDE), dim=64, layout="tsst")
        self.method = FramePrediction(network, SPEC, horizon=AHEAD)

    def forward(self, past: Tensor) -> Tensor:
        """(B, 1, T, H, W) -> (B, 1, S, H, W)."""
        return self.method.predict(past, AHEAD)[0]


def predformer() -> nn.Module:
    """Our network."""
    return Ours()


class Conv(nn.Sequential):
    """Convolution, group norm, SiLU; by choice twice as fine, through a pixel shuffle."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, *, finer: bool = False) -> None:
        layers: list[nn.Module] = [nn.Conv2d(inputs, outputs * (4 if finer else 1), 3, stride, 1)]
        super().__init__(*layers, *([nn.PixelShuffle(2)] if finer else []), nn.GroupNorm(2, outputs), nn.SiLU())


class Inception(nn.Module):
    """A 1 x 1 convolution, then grouped ones of 3, 5, 7 and 11 cells, added."""

    def __init__(self, inputs: int, hidden: int, outputs: int, groups: int = 8) -> None:
        super().__init__()
        self.enter = nn.Conv2d(inputs, hidden, 1)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(hidden, outputs, k, 1, k // 2, groups=groups), nn.GroupNorm(groups, outputs),
                          nn.LeakyReLU(0.2)) for k in (3, 5, 7, 11))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)."""
        x = self.enter(x)
        return torch.stack([branch(x) for branch in self.branches]).sum(0)


class SimVPLike(nn.Module):
    """After Gao et al. 2022 (SimVP): frames encoded one by one, all of them mixed by Inception blocks, decoded."""

    def __init__(self, width: int = 16, hidden: int = 48) -> None:
        super().__init__()
        self.first = Conv(1, width)
        self.down = nn.Sequential(Conv(width, width, 2), Conv(width, width), Conv(width, width, 2))
        self.mix = nn.Sequential(Inception(KNOWN * width, hidden, hidden), Inception(hidden, hidden, hidden),
                                 Inception(hidden, hidden, KNOWN * width))
        self.up = nn.Sequential(Conv(width, width, finer=True), Conv(width, width), Conv(width, width, finer=True))
        self.last = nn.Sequential(Conv(2 * width, width), nn.Conv2d(width, 1, 1))

    def forward(self, past: Tensor) -> Tensor:
        """(B, 1, T, H, W) -> (B, 1, T, H, W)."""
        b, _, t, h, w = past.shape
        fine = self.first(past.transpose(1, 2).reshape(b * t, 1, h, w))
        coarse = self.down(fine)
        mixed = self.mix(coarse.reshape(b, -1, *coarse.shape[2:])).reshape(coarse.shape)
        out = self.last(torch.cat([self.up(mixed), fine], 1))
        return out.view(b, t, 1, h, w).transpose(1, 2)


def convolutions() -> nn.Module:
    """The peer."""
    return SimVPLike()
