"""Claim 81 (SEQ*): sequential tuning forgets in the classifier, not in the backbone."""

from __future__ import annotations

import numpy as np

from benchmarks.claims._tasks import TASKS, accuracy, classes_of, digits, rotation_pretext, task, untrained
from benchmarks.claims.kit import Record, features, probe, spread
from osteon.backbones import Backbone
from osteon.core import registry
from osteon.data import Dataset
from osteon.mergers._controls import Sequential
from osteon.parts.continual import Continual

SEEDS = (0, 1, 2)


def run(quick: bool = False) -> Record:
    """Fine-tune on one task after another and ask the classifier and fresh probes about the first."""
    record = Record(
        81,
        "Forgetting in sequential tuning is mostly in the classifier rows: probing shows that the backbone keeps old "
        "knowledge (SEQ*).",
        "Same split digits run (5 tasks x 2 classes), 3 seeds. Judged from a pre-trained start (MLP 64-256-256-64 "
        "after the rotation pretext), as the claim is about pre-trained networks; the untrained start is printed "
        "beside.",
        "After the last task own-output accuracy on task 1 <= 5% while the re-fitted probe on task 1 >= 95%, and the "
        "10-way probe loses <= 5 points from before task 1.")
    train, test = digits()
    epochs = 1 if quick else 10
    record.say(f"{len(train)} training and {len(test)} test digits, tasks 01 23 45 67 89; sequential fine-tuning: "
               f"AdamW 1e-3, {epochs} epochs a task, batch 32 (the control's defaults); linear probes on frozen "
               "features.")
    for name in ("untrained", "rotation pretext"):
        own, first, before, after, kept, kept_probe = [], [], [], [], [], []
        for seed in SEEDS:
            start = untrained(seed) if name == "untrained" else rotation_pretext(train, seed, epochs=2 * epochs)
            ten = tuple(range(10))
            before.append(probed(start, train, test, ten))
            rule = Sequential(epochs=epochs)
            rows = follow(rule, start, train, test, seed)
            record.say(f"{name}, seed {seed}, task 1 after each task: own output "
                       + " ".join(f"{a:5.1f}" for a, _ in rows) + "; fresh probe "
                       + " ".join(f"{b:5.1f}" for _, b in rows))
            own.append(rows[-1][0])
            first.append(rows[-1][1])
            after.append(probed(network(rule), train, test, ten))
            star = registry.build("merger", "seq", epochs=epochs)
            kept_rows = follow(star, start, train, test, seed)
            kept.append(kept_rows[-1][0])
            kept_probe.append(probed(network(star), train, test, ten))
        record.say(f"{name}: own output on task 1 at the end {spread(own)}, fresh probe on task 1 {spread(first)}, "
                   f"10-way probe before {spread(before)} and after {spread(after)}")
        record.say(f"{name}, SEQ* (backbone frozen after task 1): own output on task 1 {spread(kept)}, 10-way probe "
                   f"{spread(kept_probe)}")
    lost = [a - b for a, b in zip(before, after, strict=True)]
    record.check(f"own output on task 1 <= 5 % on every seed: at most {max(own):.1f}", max(own) <= 5)
    record.check(f"fresh probe on task 1 >= 95 % on every seed: at least {min(first):.1f}", min(first) >= 95)
    record.check(f"the 10-way probe loses <= 5 points on every seed: at most {max(lost):.1f}", max(lost) <= 5)
    return record


def network(rule: Continual) -> Backbone:
    """The backbone as the rule left it."""
    backbone = rule.backbone
    assert isinstance(backbone, Backbone)
    return backbone


def follow(rule: Continual, start: Backbone, train: Dataset, test: Dataset, seed: int) -> list[tuple[float, float]]:
    """After each task, accuracy on the first: the rule's own (among all classes seen), and a fresh probe's."""
    rule.begin(start, TASKS, seed)
    rows = []
    for classes in TASKS:
        rule.learn(task(train, classes, train))
        rows.append((accuracy(rule, task(test, TASKS[0], train)), probed(network(rule), train, test, TASKS[0])))
    return rows


def probed(backbone: Backbone, train: Dataset, test: Dataset, classes: tuple[int, ...]) -> float:
    """Accuracy of a fresh linear probe told some classes' training samples."""
    parts = [d.subset(np.flatnonzero(np.isin(classes_of(d), classes))) for d in (train, test)]
    (x, y), (asked, truth) = [(features(backbone, p, train), np.searchsorted(classes, classes_of(p))) for p in parts]
    return probe(x, y, asked, truth)
