"""Claim 85 (SSLD): a small student learns from a teacher's class shares on unlabelled images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.claims._classifiers import accuracy, calibration_of, classifier, digits, trainer
from benchmarks.claims.kit import Record, spread
from osteon.backbones import Backbone, build_backbone
from osteon.compressors.ssld import SoftLabels
from osteon.core import registry
from osteon.parts.compressor import Budget, params_of
from osteon.parts.objective import Objective
from osteon.parts.subsets import nested_subsets
from osteon.parts.types import Features

SEEDS = (0, 1, 2)
LABELS, BATCH = 50, 64


class Ensemble(Backbone):
    """Several networks side by side; their pooled features one after another."""

    kind = "maps"

    def __init__(self, members: Sequence[Backbone]) -> None:
        first = members[0]
        super().__init__(first.name, channels=first.channels, size=first.size, options=dict(first.options))
        self.members = nn.ModuleList(members)
        self.dim = self.token_dim = sum(m.dim for m in members)
        self.stride = first.stride

    def forward(self, x: Tensor, *, keep: Tensor | None = None, mask: Tensor | None = None,
                mask_token: Tensor | None = None) -> Features:
        found: list[Features] = [m(x, keep=keep, mask=mask, mask_token=mask_token) for m in self.members]
        return Features(pooled=torch.cat([f.pooled for f in found], 1), tokens=torch.cat([f.tokens for f in found], 2),
                        grid=found[0].grid)


def run(quick: bool = False) -> Record:
    """A student of a tenth of a member's size: by the teacher alone, by few labels, by all labels."""
    record = Record(
        85,
        "Matching a teacher on unlabelled data only (SSLD) lifts small students far above supervised training (+3.8 "
        "points MobileNetV3).",
        "Digits: ensemble of 3 small ResNets taught with all labels, student 10x smaller than one of them, 50 labels "
        "and all other training digits unlabelled; 3 seeds. The student is a thinner ResNet (an MLP cannot be one).",
        "Student >= supervised-few-labels + 5 points (the teacher brings label information, stated plainly) and >= "
        "same student trained with all hard labels - 1 point.")
    train, test = digits()
    assert train.labels is not None
    steps = 3 if quick else 300
    record.say(f"{len(train)} training and {len(test)} test digits; {steps} steps of {BATCH} (few labels: of 32) for "
               "every student, 150 for the teachers, no augmentation. The teacher saw all labels and brings them.")
    found: dict[str, list[float]] = {"teacher": [], "SSLD, no labels": [], "50 labels": [], "all labels": []}
    for seed in SEEDS[: 1 if quick else None]:
        teacher, head = teach(seed, 3 if quick else 150)
        small_size = 0.1 * params_of(teacher.members[0])
        known, seen = calibration_of(train, train, seed=seed, head=head), list[Objective]()
        door = registry.build("compressor", "ssld", augment="none")
        student = door(teacher, Budget("params", small_size, share=False), known,
                       trainer(train, seen, seed=seed, batch_size=BATCH, steps=steps), seed=seed)
        found["teacher"].append(accuracy(teacher, head, test, train))
        found["SSLD, no labels"].append(accuracy(student, cast(SoftLabels, seen[0]).student_head, test, train))
        few = train.subset(nested_subsets(train.labels, [LABELS], seed)[0])
        for name, data, batch in (("50 labels", few, 32), ("all labels", train, BATCH)):
            torch.manual_seed(seed)
            same = build_backbone(student.name, channels=1, size=8, **student.options)
            own = classifier(same, data, steps=steps, batch_size=batch, seed=seed)
            found[name].append(accuracy(same, own, test, data))
        record.say(f"seed {seed}: {'; '.join(door.notes)}; {params_of(student):,} parameters")
    for name, values in found.items():
        record.say(f"{name:16} {spread(values)}")
    mean = {name: float(np.mean(values)) for name, values in found.items()}
    over = mean["SSLD, no labels"] - mean["50 labels"]
    record.check(f"SSLD - 50 labels: {over:+.1f} points (>= 5)", over >= 5)
    under = mean["SSLD, no labels"] - mean["all labels"]
    record.check(f"SSLD - all labels: {under:+.1f} points (>= -1)", under >= -1)
    return record


def teach(seed: int, steps: int) -> tuple[Ensemble, nn.Linear]:
    """Three networks trained on all labels, and the mean of their classifiers as one linear map."""
    train, _ = digits()
    members, heads = [], []
    for i in range(3):
        torch.manual_seed(100 * seed + i)
        members.append(build_backbone("resnet_tiny", channels=1, size=8))
        heads.append(classifier(members[-1], train, steps=steps, batch_size=BATCH, seed=100 * seed + i))
    joint = nn.Linear(sum(h.in_features for h in heads), heads[0].out_features)
    with torch.no_grad():
        joint.weight.copy_(torch.cat([h.weight for h in heads], 1) / len(heads))
        joint.bias.copy_(torch.stack([h.bias for h in heads]).mean(0))
    return Ensemble(members).eval(), joint
