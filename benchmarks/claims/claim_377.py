"""Claim 377 (SSAST): masked patches of spectrograms, then few labels, on speakers never heard before."""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.claims.kit import DATA, Record, accuracy, fit, spread
from osteon.backbones import Backbone, build_backbone
from osteon.core import registry
from osteon.data import Dataset, open_source
from osteon.modalities import find
from osteon.verbs._arms import make_task

LABELS, STEPS, SEEDS, BATCH = 100, 300, 3, 64
UNSEEN = ("theo",)


def run(quick: bool = False) -> Record:
    """Scratch against SSAST and then fine-tuning, at equal fine-tuning steps, on a speaker held out everywhere."""
    record = Record(
        377,
        "SSAST: joint discriminative and generative masked spectrogram patches improve average audio accuracy by 60.9% "
        "over scratch.",
        "Free-spoken-digit, 2500+ unlabelled clips, transformer d=96 L=4, 4 min pre-training, 3 seeds.",
        "+5 points over scratch at 100 labels at equal fine-tuning steps (unseen speakers).")
    with tempfile.TemporaryDirectory() as folder:
        known, unseen = manifests(Path(folder))
        train = open_source(known, limit=200 if quick else None, cache=False)
        test = open_source(unseen, limit=60 if quick else None, like=train.spec, cache=False)
    labels, steps = (40, 3) if quick else (LABELS, STEPS)
    task = make_task(train, test, [labels], SEEDS, held_out=0.02)
    record.say(f"{len(train)} clips of five speakers without labels, {labels} labels among them, {len(test)} clips of "
               f"{', '.join(UNSEEN)}, who is heard nowhere else; spectrograms of {train.spec.extent[0]} bands and "
               f"{train.spec.extent[1]} frames, patches of 8 x 8; options and recipes are the defaults")
    controls = find("sound").CONTROLS
    for name, control in controls.items():
        scores = [probe(*control(train.images, test.images, train.spec), task.subsets[s][0][0], train, test)
                  for s in range(SEEDS)]
        record.say(f"control, {name} and a linear probe on the same labels: {spread(scores)}")
    scratch = accuracy("scratch", {s: fresh(train, s) for s in range(SEEDS)}, task, steps, record.say)
    networks: dict[int, Backbone] = {}
    for seed in range(SEEDS):
        method = registry.build("objective", "ssast", fresh(train, seed), train.spec)
        settings = fit(method, train, steps=3 if quick else 0, minutes=0 if quick else 4, watch=record.say,
                       batch_size=16 if quick else BATCH, seed=seed)
        record.say(f"seed {seed}: {settings.steps} steps of SSAST")
        networks[seed] = method.exported()
    tuned = accuracy("SSAST", networks, task, steps, record.say)
    record.say(f"accuracy, from scratch, {steps} steps: {spread(scratch)}")
    record.say(f"accuracy, SSAST and then {steps} steps: {spread(tuned)}")
    gain = float(np.mean(tuned) - np.mean(scratch))
    record.check(f"at equal fine-tuning steps SSAST gains at least 5 points over scratch: {gain:+.1f}", gain >= 5)
    return record


def manifests(folder: Path) -> tuple[Path, Path]:
    """Tables of the clips of the known speakers and of the unseen one."""
    rows = []
    for part in ("train", "test"):
        where = DATA / "spoken_digits" / part
        with (where / "metadata.csv").open(newline="") as file:
            rows += [(str(where / r["file_name"]), r["label"], r["speaker"]) for r in csv.DictReader(file)]
    out = []
    for name, wanted in (("known", False), ("unseen", True)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["path", "label", "speaker"])
            table.writerows(r for r in rows if (r[2] in UNSEEN) == wanted)
        out.append(folder / f"{name}.csv")
    return out[0], out[1]


def fresh(train: Dataset, seed: int) -> Backbone:
    """The untrained network of a seed, the same for both arms."""
    torch.manual_seed(seed)
    return build_backbone("vit_tiny", channels=1, size=train.spec.extent, dim=96, depth=4, heads=4, patch=8)


def probe(train_x: np.ndarray, test_x: np.ndarray, rows: np.ndarray, train: Dataset, test: Dataset) -> float:
    """Linear-probe accuracy in per cent from the labels of some rows."""
    assert train.labels is not None and test.labels is not None
    judge = registry.build("evaluator", "linear_probe")
    scores = judge(train_x[rows], train.labels[rows], test_x, classes=10)
    return 100 * float((scores.argmax(1) == test.labels).mean())
