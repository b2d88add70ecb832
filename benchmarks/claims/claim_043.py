"""Claim 43 (projection head): what the loss makes invariant is lost after the head, not before it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from benchmarks.claims.kit import Record, cifar
from osteon.backbones import build_backbone
from osteon.data import Dataset, Loader
from osteon.evaluators.projection_head import head_report
from osteon.objectives.simclr import SimCLR
from osteon.parts.types import Draws, Step, View
from osteon.train.loop import Engine
from osteon.train.settings import resolve_settings
from osteon.verbs._model import fit_samples
from osteon.views import Views

SEEDS = (0, 1)
BATCH = 128
STEPS = 240
#: probes are fitted on the first so many images and asked about the others
TOLD = 3000


class Turned:
    """SimCLR's views (crop, mirror, colour), each also turned by a random quarter."""

    def __init__(self, views: Views) -> None:
        self.views = views

    def __call__(self, images: Tensor, draws: Draws) -> list[View]:
        out = self.views(images, draws)
        for i, view in enumerate(out):
            view.x = turn(view.x, (4 * draws.fork(f"turn{i}").rand()).long())
        return out


def turn(x: Tensor, quarters: Tensor) -> Tensor:
    """Images (B, C, S, S) turned by (B,) quarters."""
    every = torch.stack([x.rot90(k, (2, 3)) for k in range(4)])
    return every[quarters, torch.arange(len(x))]


def run(quick: bool = False) -> Record:
    """Probe class and rotation before and after the head as training proceeds."""
    record = Record(
        43,
        "Features before the projection head transfer better than after it.",
        "SimCLR on CIFAR-10 5k with colour + rotation augmentation, head 2-layer; probes: class and 'which rotation'; "
        "2 seeds.",
        "Pre-head probe > post-head by >= 2 points on class and >= 10 points on the augmented-away attribute.")
    train = cifar("train", 300 if quick else 5_000)
    asked = cifar("test", 200 if quick else 5_000)
    told = 100 if quick else TOLD
    steps = 4 if quick else STEPS
    record.say(f"{len(train)} training images; resnet_tiny, osteon's SimCLR (head_layers=2, other options default: "
               f"crop, mirror, colour) with views also turned by random quarters, batch {BATCH}, {steps} steps. "
               f"Probes: {len(asked)} test images, each turned by one random quarter, {told} to fit and the "
               "others asked.")
    last: list[dict[str, dict[str, float]]] = []
    for seed in SEEDS[: 1 if quick else None]:
        for done, report in training(train, asked, seed, steps, told):
            before, after = report["before"], report["after"]
            record.say(f"seed {seed}, step {done:3}, before | after the head: " + ", ".join(
                f"{name} {100 * before[key]:.1f} | {100 * after[key]:.1f}"
                for name, key in (("class", "probe_class"), ("rotation", "probe_rotation")))
                + f", effective rank {before['effective_rank']:.1f} | {after['effective_rank']:.1f}")
        last.append(report)
    for name, least in (("class", 2), ("rotation", 10)):
        gaps = [100 * (r["before"][f"probe_{name}"] - r["after"][f"probe_{name}"]) for r in last]
        record.check(f"{name}: before - after the head >= {least} points at the end on every seed: "
                     + ", ".join(f"{g:+.1f}" for g in gaps), min(gaps) >= least)
    return record


def training(train: Dataset, asked: Dataset, seed: int, steps: int,
             told: int) -> Iterator[tuple[int, dict[str, dict[str, float]]]]:
    """Train by osteon's engine; the probes' report at the start, after a quarter, after half and at the end."""
    torch.manual_seed(seed)
    method = SimCLR(build_backbone("resnet_tiny", channels=3, size=32), train.spec, head_layers=2)
    method.views = Turned(method.views)  # type: ignore[assignment]
    settings, _ = resolve_settings({"steps": steps, "batch_size": BATCH, "seed": seed}, method.recipe, len(train),
                                   kind=method.backbone.kind)
    engine = Engine(method.train(), settings, Fabric(accelerator="cpu", devices=1))
    for index, batch in enumerate(Loader(train, BATCH, seed).iterate(0, steps)):
        if index in (0, steps // 4, steps // 2):
            yield index, probes(method, asked, train, seed, told)
        engine.run(batch, Step(index, steps, seed))
    yield steps, probes(method, asked, train, seed, told)


@torch.no_grad()
def probes(method: SimCLR, asked: Dataset, like: Dataset, seed: int, told: int) -> dict[str, dict[str, float]]:
    """Class and rotation, read from features before and after the head."""
    assert asked.labels is not None
    quarters = np.random.default_rng(seed).integers(0, 4, len(asked))
    method.eval()
    before, after = [], []
    for rows in np.array_split(np.arange(len(asked)), max(1, len(asked) // 250)):
        pooled = method.backbone(turn(fit_samples(asked, like.spec, rows), torch.from_numpy(quarters[rows]))).pooled
        before.append(pooled.numpy())
        after.append(method.projector(pooled).numpy())
    method.train()
    return head_report(np.concatenate(before), np.concatenate(after), {"class": asked.labels, "rotation": quarters},
                       np.arange(len(asked)) < told)
