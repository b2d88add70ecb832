"""Claim 151 (VideoMAE V2): what a step costs when encoder and decoder leave out masked cubes, counted and timed."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from benchmarks.claims.kit import Record
from osteon.backbones import build_backbone
from osteon.data import Dataset, open_source
from osteon.objectives.videomae_v2 import VideoMAEV2
from osteon.parts.flops import count_forward, count_step
from osteon.parts.types import Step
from osteon.train.loop import Engine
from osteon.train.settings import resolve_settings
from osteon.views.masks import visible_indices

BATCH, ROUNDS, DECODER = 32, 7, {"decoder_dim": 96, "decoder_depth": 2}
#: Arm -> share hidden from the encoder, share left out by the decoder.
ARMS = {"full tokens": (0.75, 0.0), "encoder sees 25 % (MAE)": (0.75, 0.0), "dual masking (10 %, half)": (0.9, 0.5)}


class FullTokens(VideoMAEV2):
    """The same with every cube in the encoder, hidden ones as zeros, and every cube in the decoder."""

    def _decode(self, x: Tensor, hidden: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.backbone(x, mask=hidden)
        whole = self.decoder(seen.tokens, visible_indices(torch.zeros_like(hidden)))
        rows = asked.nonzero()[:, 1].view(len(x), -1, 1)
        return whole.gather(1, rows.expand(-1, -1, whole.shape[-1])), seen.pooled


def run(quick: bool = False) -> Record:
    """Count and time a training step of each arm, interleaved."""
    record = Record(
        151,
        "VideoMAE V2: dropping masked tokens from the encoder (90 %) and half of the decoder's makes masked "
        "pre-training affordable.",
        "ViT d=192 L=6, 64 tokens of 4 x 8 x 8 from Moving digits (16 x 32 x 32), decoder d=96 L=2, batch 32; the "
        "full-token run has the same decoder and hides 75 %.",
        "Step FLOPs <= 0.35 x the full-token run's; decoder FLOPs 0.5 x (+- 2 %) with dual masking; wall <= 0.6 x "
        "(interleaved).")
    data = open_source("moving_digits:train", limit=64, cache=False)
    batch = data.batch(np.arange(BATCH))
    engines = {name: engine(name, data) for name in ARMS}
    cost = {name: count_step(engines[name], batch, Step(0, 10, 0)) for name in ARMS}
    share = {name: (cost[name].forward + cost[name].backward) / (cost["full tokens"].forward
                                                                 + cost["full tokens"].backward) for name in ARMS}
    decoder = {name: decoder_cost(name) for name in ARMS}
    for name in ARMS:
        record.say(f"{name:28} {(cost[name].forward + cost[name].backward) / 1e9:6.2f} GFLOP a step, {share[name]:.3f} "
                   f"of full tokens; decoder forward {decoder[name] / 1e6:.0f} MFLOP")
    wall, cpu = timed(engines, batch, 2 if quick else ROUNDS)
    for name in ARMS:
        record.say(f"{name:28} {wall[name] * 1e3:6.0f} ms wall, {cpu[name] * 1e3:6.0f} ms of CPU a step (medians of "
                   f"{2 if quick else ROUNDS} interleaved rounds)")
    full, single, dual = ARMS
    record.check(f"without hidden tokens in the encoder a step takes {share[single]:.3f} of the full-token run's FLOPs "
                 f"(at most 0.35), with dual masking {share[dual]:.3f}", max(share[single], share[dual]) <= 0.35)
    halved = decoder[dual] / decoder[single]
    record.say("the decoder reads the encoder's tokens beside half of the grid, as in the authors' code: 8 + 32 of 64 "
               "tokens, so its count can fall to 0.6 and not to 0.5; the cubes it rebuilds are half of the grid")
    record.check(f"dual masking leaves 0.5 of the decoder's FLOPs (+- 2 %): {halved:.3f}", abs(halved - 0.5) <= 0.01)
    record.check(f"wall of a step, MAE and dual masking over full tokens: {wall[single] / wall[full]:.2f} and "
                 f"{wall[dual] / wall[full]:.2f} (at most 0.6)", max(wall[single], wall[dual]) <= 0.6 * wall[full])
    return record


def engine(name: str, data: Dataset) -> Engine:
    """A training engine of an arm, from the same weights."""
    torch.manual_seed(0)
    network = build_backbone("vit_tiny", channels=1, size=data.spec.extent, dim=192, depth=6, heads=3, stem="tubes",
                             stem_options={"time": 4, "side": 8})
    ratio, left_out = ARMS[name]
    made: Any = FullTokens if name == "full tokens" else VideoMAEV2
    method = made(network, data.spec, ratio=ratio, decoder_ratio=left_out, **DECODER)
    settings, _ = resolve_settings({"steps": 10, "batch_size": BATCH}, method.recipe, len(data), kind=network.kind)
    return Engine(method.train(), settings, Fabric(accelerator="cpu", devices=1))


def decoder_cost(name: str) -> int:
    """Operations of the decoder's forward pass in a step of an arm: blocks, norm and the map to pixels."""
    data = open_source("moving_digits:train", limit=BATCH, cache=False)
    method, counts = engine(name, data).objective, list[int]()
    inner = method.decoder._predict
    method.decoder._predict = lambda tokens: counts.append(count_forward(inner, tokens)) or inner(tokens)
    method(data.batch(np.arange(BATCH)), Step(0, 10, 0))
    return counts[0]


def timed(engines: dict[str, Engine], batch: dict[str, Tensor], rounds: int) -> tuple[dict[str, float], ...]:
    """Median seconds of a step by the wall and of CPU, after one step to warm up, arms taking turns."""
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for index in range(rounds + 1):
        for name, work in engines.items():
            before = time.perf_counter(), time.process_time()
            work.run(batch, Step(index, rounds + 1, 0))
            if index:
                took[name].append((time.perf_counter() - before[0], time.process_time() - before[1]))
    return tuple({name: statistics.median(t[i] for t in times) for name, times in took.items()} for i in range(2))
