"""Claim 339 (stochastic depth): leaving blocks out saves a quarter of the training of a deep residual network."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import nn

from benchmarks.claims._classifiers import accuracy, digits
from benchmarks.claims.kit import Record, spread
from osteon.backbones import build_backbone
from osteon.backbones.resnet import Residual
from osteon.data import Dataset, Loader
from osteon.objectives.supervised import Supervised
from osteon.parts.flops import count_step
from osteon.parts.types import Step
from osteon.train.loop import Engine, make_fabric
from osteon.train.settings import resolve_settings

STEPS, SEEDS, BATCH, DEPTHS = 300, 3, 64, (9, 9, 9)
ARMS = {"all blocks": 0.0, "stochastic depth": 0.5}
#: The paper's optimiser (its steps down are a cosine here, since so few steps have no plateaus), and osteon's own.
WAYS: dict[str, dict[str, object]] = {
    "SGD": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "warmup": 0.0}, "AdamW": {}}


def run(quick: bool = False) -> Record:
    """Both arms step by step in turn, so that whatever else the machine does hits them alike; with two optimisers."""
    record = Record(
        339,
        "Stochastic depth cuts training time (about 25% at p_L = 0.5) and improves very deep ResNets.",
        f"56-layer thin ResNet (16, 32, 64 wide) on digits, p_L = 0.5 linear, {SEEDS} seeds, {STEPS} steps of {BATCH}. "
        "Twice: by the paper's SGD (rate 0.1, momentum 0.9, decay 1e-4, here with a cosine), and by osteon's defaults "
        "of supervised training (AdamW). Both must hold.",
        "FLOPs and wall <= 0.82 x (expected 0.75); accuracy >= baseline - 1 point at equal steps. The improvement part "
        "is only reported: little overfitting time in 3 minutes.")
    train, test = digits()
    steps = 3 if quick else STEPS
    sample = Loader(train, BATCH, 0).at(0)
    fresh = {name: engine(train, rate, 0, steps, {}) for name, rate in ARMS.items()}
    flop = {name: count_step(made, sample, Step(0, STEPS, 0)).total for name, made in fresh.items()}
    shut, called = calls(fresh["stochastic depth"], sample, 2 if quick else 20)
    for name in ARMS:
        record.say(f"{name}: {flop[name] / 1e9:.2f} GFLOP a step (expected)")
    ratio = flop["stochastic depth"] / flop["all blocks"]
    record.check(f"FLOPs a step at most 0.82 of the whole network's: {ratio:.3f}", ratio <= 0.82)
    record.check(f"a block that is left out has no calls: {called} in {shut} times", called == 0 and shut > 0)
    for way, wishes in WAYS.items():
        found: dict[str, list[float]] = {name: [] for name in ARMS}
        seconds = dict.fromkeys(ARMS, 0.0)
        for seed in range(1 if quick else SEEDS):
            engines = {name: engine(train, rate, seed, steps, wishes) for name, rate in ARMS.items()}
            record.say(f"{way}, seed {seed}: " + ", ".join(f"{n}, loss {v:.2f}" for n, v in alternate(
                engines, train, seconds, found, test).items()))
        for name in ARMS:
            record.say(f"{way}, {name}: {seconds[name]:.0f} CPU seconds in all, accuracy {spread(found[name])}")
        wall = seconds["stochastic depth"] / seconds["all blocks"]
        record.check(f"{way}: CPU seconds, the arms' steps in turn, at most 0.82: {wall:.3f}", wall <= 0.82)
        gain = float(np.mean(found["stochastic depth"]) - np.mean(found["all blocks"]))
        record.check(f"{way}: accuracy at equal steps at most 1 point below: {gain:+.2f}", gain >= -1)
    return record


def engine(train: Dataset, rate: float, seed: int, steps: int, own: dict[str, object]) -> Engine:
    """A 56-layer network of a seed, the same start for both arms, and what differs from the defaults of training."""
    torch.manual_seed(seed)
    network = build_backbone("resnet_tiny", channels=1, size=train.spec.extent, depths=DEPTHS, stride=4,
                             drop_path=rate, drop_mode="batch")
    method = Supervised(network, train.spec, augment="none")
    wishes = {"steps": steps, "batch_size": BATCH, "seed": seed, "precision": "32", "channels_last": False, **own}
    settings, _ = resolve_settings(wishes, method.recipe, len(train), kind="maps")
    return Engine(method.train(), settings, make_fabric("32"))


def alternate(engines: dict[str, Engine], train: Dataset, seconds: dict[str, float], found: dict[str, list[float]],
              test: Dataset) -> dict[str, float]:
    """Train both arms a step each in turn; add up their CPU seconds and note their accuracy; the last losses."""
    settings = next(iter(engines.values())).settings
    last = {}
    for index in range(settings.steps):
        batch = Loader(train, settings.batch_size, settings.seed).at(index)
        for name, made in engines.items():
            begun = time.process_time()
            loss, _, _ = made.run(batch, Step(index, settings.steps, settings.seed))
            seconds[name] += time.process_time() - begun
            last[name] = float(loss.total)
    for name, made in engines.items():
        method = made.objective.eval()
        assert isinstance(method, Supervised)
        found[name].append(accuracy(method.backbone, method.head, test, train))
        method.train()
    return last


def calls(made: Engine, batch: dict[str, torch.Tensor], steps: int) -> tuple[int, int]:
    """How often blocks were left out in some steps, and how often a convolution of theirs was called then."""
    shut = called = 0
    counts: dict[nn.Module, int] = {}
    blocks = [m for m in made.objective.modules() if isinstance(m, Residual)]
    hooks = [b.get_submodule("conv1").register_forward_hook(lambda m, _x, _y: counts.update({m: counts[m] + 1}))
             for b in blocks]
    for index in range(steps):
        counts.update({b.get_submodule("conv1"): 0 for b in blocks})
        made.optimizer.zero_grad(set_to_none=True)
        made.gradients(batch, Step(index, STEPS, made.settings.seed))
        for block in blocks:
            weight = block.get_submodule("conv1").weight
            assert isinstance(weight, torch.Tensor)
            if weight.grad is None:
                shut, called = shut + 1, called + counts[block.get_submodule("conv1")]
    for hook in hooks:
        hook.remove()
    return shut, called
