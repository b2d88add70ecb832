"""Claim 141 (EfficientTrain): low frequencies first train a network at half the cost, beside plain resizing."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from benchmarks.claims._classifiers import accuracy
from benchmarks.claims.kit import Record, cifar, spread
from osteon.backbones import build_backbone
from osteon.data import Dataset, Loader
from osteon.objectives.supervised import Supervised
from osteon.parts.flops import count_run
from osteon.parts.types import Step
from osteon.train.loop import Engine, make_fabric
from osteon.train.settings import resolve_settings

SAMPLES, TEST, EPOCHS, SEEDS, BATCH = 10_000, 4_000, 3, 2, 128
#: 16, then 24, then 32 pixels for 60, 20 and 20 per cent of the steps
SIZES = (0.5, 0.5, 0.5, 0.75, 1.0)
FULL, LOW, RESIZED = "whole images", "low frequencies first", "resized first (control)"
ARMS = {FULL: "none", LOW: "lowfreq", RESIZED: "resize"}


@dataclass
class Arm:
    """What an arm spent and reached, a seed each."""

    flop: float = 0.0
    seconds: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)


def run(quick: bool = False) -> Record:
    """Three arms at equal epochs, step by step in turn; then the curriculum for as long as whole images took."""
    record = Record(
        141,
        "EfficientTrain (low-frequency crops first, growing augmentation) trains >1.5x faster at equal accuracy.",
        "CIFAR-10 10k subset, residual network (16, 32, 64 wide), crop 16 -> 24 -> 32 for 60/20/20% of steps, "
        f"{EPOCHS} epochs, {SEEDS} seeds, RandAugment of strengths 1 to 9 in the curriculum and 7 beside it; control: "
        f"bilinear resize at the same sizes. Accuracy on {TEST} test images.",
        "Counted cost <= 0.50 x full and wall <= 0.65 x (one interleaved run); accuracy >= full-resolution run - 2 "
        "points at equal epochs, >= +0 at equal wall time. Cost is exact; accuracy parity at 32 px is harder than at "
        "224, hence -2.")
    train, test = cifar("train", 300 if quick else SAMPLES), cifar("test", 100 if quick else TEST)
    steps = 5 if quick else EPOCHS * SAMPLES // BATCH
    arms = {name: Arm() for name in ARMS}
    longer = Arm()
    for seed in range(1 if quick else SEEDS):
        engines = {name: engine(train, kind, seed, steps) for name, kind in ARMS.items()}
        together(engines, train, test, arms)
        ratio = arms[FULL].seconds[-1] / arms[LOW].seconds[-1]
        more = engine(train, "lowfreq", seed, max(steps, int(steps * ratio)))
        together({LOW: more}, train, test, {LOW: longer})
        record.say(f"seed {seed}: {', '.join(f'{n} {a.accuracy[-1]:.1f}' for n, a in arms.items())}, low frequencies "
                   f"first for {more.settings.steps} instead of {steps} steps {longer.accuracy[-1]:.1f}")
        if seed == 0:
            sample = Loader(train, BATCH, seed).at(0)
            for name, made in engines.items():
                arms[name].flop = count_run(made, sample, steps, seed).total
    for name, arm in arms.items():
        record.say(f"{name}: {arm.flop / 1e9:.2f} GFLOP a step, {np.sum(arm.seconds):.0f} CPU seconds in all, accuracy "
                   f"{spread(arm.accuracy)}")
    record.say(f"low frequencies first at equal CPU seconds ({np.sum(longer.seconds):.0f}): {spread(longer.accuracy)}")
    cost, wall = arms[LOW].flop / arms[FULL].flop, np.sum(arms[LOW].seconds) / np.sum(arms[FULL].seconds)
    full = float(np.mean(arms[FULL].accuracy))
    equal, control = (float(np.mean(arms[n].accuracy)) - full for n in (LOW, RESIZED))
    record.check(f"counted cost at most 0.50 of whole images: {cost:.3f}", cost <= 0.5)
    record.check(f"CPU seconds, the arms' steps in turn, at most 0.65: {wall:.3f}", wall <= 0.65)
    record.check(f"accuracy at equal epochs at most 2 points below: {equal:+.1f} (resized {control:+.1f})", equal >= -2)
    gain = float(np.mean(longer.accuracy)) - full
    record.check(f"accuracy at equal CPU seconds not below: {gain:+.1f}", gain >= 0)
    return record


def engine(train: Dataset, curriculum: str, seed: int, steps: int) -> Engine:
    """A network of a seed, the same start for every arm."""
    torch.manual_seed(seed)
    network = build_backbone("resnet_tiny", channels=3, size=train.spec.extent, stride=4)
    method = Supervised(network, train.spec, augment="randaugment")
    wishes = {"steps": steps, "batch_size": BATCH, "seed": seed, "precision": "32"}
    settings, _ = resolve_settings(wishes, method.recipe, len(train), kind="maps")
    settings = replace(settings, curriculum=curriculum, curriculum_sizes=SIZES)
    return Engine(method.train(), settings, make_fabric("32"))


def together(engines: dict[str, Engine], train: Dataset, test: Dataset, arms: dict[str, Arm]) -> None:
    """Train all arms a step each in turn; note their CPU seconds, views included, and their accuracy."""
    settings = next(iter(engines.values())).settings
    seconds = dict.fromkeys(engines, 0.0)
    for index, batch in enumerate(Loader(train, BATCH, settings.seed).iterate(0, settings.steps)):
        for name, made in engines.items():
            begun = time.process_time()
            made.run(batch, Step(index, settings.steps, settings.seed))
            seconds[name] += time.process_time() - begun
    for name, made in engines.items():
        method = made.objective.eval()
        assert isinstance(method, Supervised)
        arms[name].seconds.append(seconds[name])
        arms[name].accuracy.append(accuracy(method.backbone, method.head, test, train))
