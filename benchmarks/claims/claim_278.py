"""Claim 278 (SwAV): balanced cluster codes, swapped between views, make useful features in minutes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from benchmarks.claims.kit import Record, cifar, features, fit, knn, pixels, probe, spread
from osteon.backbones import Backbone, build_backbone
from osteon.data import Dataset
from osteon.objectives.supervised import Supervised
from osteon.objectives.swav import SwAV
from osteon.parts.prototypes import busiest
from osteon.parts.types import Draws, Step
from osteon.verbs._model import fit_samples

SEEDS = (0, 1)
MINUTES = 8
LABELS = 500


def network(seed: int) -> Backbone:
    """The small ResNet that every arm starts from."""
    torch.manual_seed(seed)
    return build_backbone("resnet_tiny", channels=3, size=32)


def run(quick: bool = False) -> Record:
    """Pre-train without labels; compare with the untrained network, pixels, and supervised training."""
    record = Record(
        278,
        "SwAV learns by swapping balanced cluster codes; 75.3% ImageNet linear, works with small batches, multi-crop "
        "helps.",
        "CIFAR-10 20k unlabelled 32x32, small ResNet, 2x24 + 4x16 crops, 8 min on 2 cores, 2 seeds.",
        "kNN >= untrained encoder + 6 points and >= pixel kNN + 3; at 500 labels linear probe >= "
        "supervised-from-scratch. All published numbers need 100x the compute. Balanced codes (no prototype over 3x "
        "uniform) exact.")
    torch.set_num_threads(2)
    labelled, test = cifar("train", 600 if quick else 20_000), cifar("test", 200 if quick else None)
    # Labels serve evaluation alone: not even the number of classes is known in pre-training.
    train = replace(labelled, labels=None, class_names=[],
                    spec=replace(labelled.spec, num_classes=0, class_weights=()))
    few = labelled.subset(np.random.default_rng(0).permutation(len(labelled))[:LABELS])
    record.say(f"{len(train)} unlabelled and {len(test)} test images, resnet_tiny, batch 128; SwAV's defaults but for "
               f"the crops; supervised: crop and flip, the same {MINUTES} minutes on the same {LABELS} labels.")
    steps = 3 if quick else 0
    names = ("kNN", "kNN untrained", "probe all", "probe", "supervised", "fullest")
    found: dict[str, list[float]] = {name: [] for name in names}
    for seed in SEEDS[: 1 if quick else None]:
        found["kNN untrained"].append(neighbours(network(seed), labelled, test))
        method = SwAV(network(seed), train.spec, global_size=24, local_size=16)
        settings = fit(method, train, steps=steps, minutes=0 if quick else MINUTES, watch=record.say, batch_size=128,
                       seed=seed)
        found["kNN"].append(neighbours(method.backbone, labelled, test))
        found["probe all"].append(probed(method.backbone, labelled, test, labelled))
        found["probe"].append(probed(method.backbone, few, test, labelled))
        found["fullest"].append(fullest(method, train))
        scratch = Supervised(network(seed), labelled.spec)
        fit(scratch, few, steps=steps, minutes=0 if quick else MINUTES, seed=seed)
        found["supervised"].append(accuracy(scratch, test, labelled))
        record.say(f"seed {seed}, {settings.steps} steps: " + ", ".join(f"{k} {v[-1]:.2f}" for k, v in found.items()))
    assert labelled.labels is not None and test.labels is not None
    raw = knn(pixels(labelled), labelled.labels, pixels(test), test.labels)
    for name, values in found.items():
        record.say(f"{name}: {spread(values)}")
    record.say(f"kNN of pixels: {raw:.1f}")
    mean = {name: float(np.mean(values)) for name, values in found.items()}
    gain = mean["kNN"] - mean["kNN untrained"]
    record.check(f"kNN >= untrained encoder + 6 points: {gain:+.1f}", gain >= 6)
    record.check(f"kNN >= pixel kNN + 3: {mean['kNN'] - raw:+.1f}", mean["kNN"] - raw >= 3)
    ahead = mean["probe"] - mean["supervised"]
    record.check(f"linear probe at {LABELS} labels >= supervised from scratch: {ahead:+.1f}", ahead >= 0)
    record.check(f"no prototype over 3 x uniform: at most {max(found['fullest']):.2f}", max(found["fullest"]) <= 3)
    return record


def neighbours(backbone: Backbone, train: Dataset, test: Dataset) -> float:
    """k-NN accuracy in per cent."""
    assert train.labels is not None and test.labels is not None
    return knn(features(backbone, train, train), train.labels, features(backbone, test, train), test.labels)


def probed(backbone: Backbone, train: Dataset, test: Dataset, like: Dataset) -> float:
    """Linear-probe accuracy in per cent, on the labels of ``train``."""
    assert train.labels is not None and test.labels is not None
    return probe(features(backbone, train, like), train.labels, features(backbone, test, like), test.labels)


@torch.no_grad()
def fullest(method: SwAV, dataset: Dataset) -> float:
    """Mass of the fullest prototype over the even share, in the codes of a batch as in training."""
    method.eval()
    batch = dataset.batch(np.arange(min(len(dataset), 512)))
    z = method.encode(batch, Draws.of(batch, Step(0, 1)))["z"][:, :2]
    codes = method.codes(torch.nn.functional.normalize(z.float(), dim=-1))
    return max(float(busiest(codes[:, view])) for view in (0, 1))


@torch.no_grad()
def accuracy(method: Supervised, test: Dataset, like: Dataset) -> float:
    """Accuracy of a trained classifier in per cent."""
    method.eval()
    said = [method.predict(fit_samples(test, like.spec, rows)).argmax(1).numpy()
            for rows in np.array_split(np.arange(len(test)), max(1, len(test) // 256))]
    return 100 * float((np.concatenate(said) == test.labels).mean())
