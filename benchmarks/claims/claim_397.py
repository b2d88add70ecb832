"""Claim 397 (GMML): masked pre-training on a small data set helps a ViT that is then fine-tuned on few labels."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.claims.kit import Record, accuracy, cifar, fit, spread
from osteon.backbones import Backbone, build_backbone
from osteon.core import registry
from osteon.data import Dataset
from osteon.parts.objective import Objective
from osteon.parts.types import Step
from osteon.verbs._arms import Task, make_task

STEPS = 500  # of fine-tuning at batch 64: 32 passes over the labelled images
LABELS = 1000
SEEDS = 2
BATCH = 64  # of pre-training: the authors' default


def run(quick: bool = False) -> Record:
    """Scratch against GMML and then fine-tuning, at equal fine-tuning steps and at equal total compute."""
    record = Record(
        397,
        "Group masked model learning pre-trains ViTs from small data without momentum encoder or big batches "
        "(GMML/SiT).",
        "CIFAR-10 5k images, ViT d=128 L=6 patch 4; 5 min pre-training, 500-1000 labels; 2 seeds.",
        "+3 points over scratch at equal fine-tuning steps. ViT from scratch on 1000 images sits at ~35-40%, room is "
        "large; equal-compute figure printed.")
    labels, steps = (60, 3) if quick else (LABELS, STEPS)
    train, test = cifar("train", 400 if quick else 5000), cifar("test", 100 if quick else 5000)
    task = make_task(train, test, [labels], SEEDS, held_out=0.02)
    record.say(f"{len(train)} images without labels, {labels} labels among them, {len(test)} test images; {steps} "
               f"fine-tuning steps at batch 64, pre-training at batch {BATCH}; the options of the method and the "
               "recipes of both are their defaults.")
    scratch = accuracy("scratch", {s: fresh(train, s) for s in range(SEEDS)}, task, steps, record.say)
    networks, lengths = {}, []
    for seed in range(SEEDS):
        method = registry.build("objective", "gmml", fresh(train, seed), train.spec)
        settings = fit(method, train, steps=3 if quick else 0, minutes=0 if quick else 5, watch=record.say,
                       batch_size=16 if quick else BATCH, seed=seed)
        networks[seed] = method.exported()
        lengths.append(settings.steps)
    tuned = accuracy("GMML", networks, task, steps, record.say)
    ratio = step_flops(train, task, "gmml") / step_flops(train, task, "supervised")
    longer = steps + round(float(np.mean(lengths)) * ratio)
    record.say(f"pre-training: {', '.join(map(str, lengths))} steps; one counts {ratio:.2f} times the floating-point "
               f"operations of a supervised step, so equal compute is {longer} steps from scratch")
    equal = accuracy("scratch, longer", {s: fresh(train, s) for s in range(SEEDS)}, task, min(longer, 6) if quick
                     else longer, record.say)
    record.say(f"accuracy, from scratch, {steps} steps: {spread(scratch)}")
    record.say(f"accuracy, GMML and then {steps} steps: {spread(tuned)}")
    record.say(f"accuracy, from scratch at equal total compute: {spread(equal)} (not part of the threshold)")
    gain = float(np.mean(tuned) - np.mean(scratch))
    record.check(f"at equal fine-tuning steps GMML gains at least 3 points over scratch: {gain:+.1f}", gain >= 3)
    return record


def fresh(train: Dataset, seed: int) -> Backbone:
    """The untrained network of a seed, the same for every arm."""
    torch.manual_seed(seed)
    return build_backbone("vit_mini", channels=train.spec.channels, size=train.spec.size, patch=4)


def step_flops(train: Dataset, task: Task, name: str) -> int:
    """Floating-point operations of a forward and backward pass at batch 64."""
    torch.manual_seed(0)
    method: Objective = registry.build("objective", name, fresh(train, 0), train.spec)
    batch = task.train.batch(np.arange(BATCH))
    with FlopCounterMode(display=False) as counter:
        method(batch, Step(0, 1)).total.backward()
    return int(counter.get_total_flops())
