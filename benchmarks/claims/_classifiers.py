"""What the claims on compression share: training on labels, scoring with the classifier, and a compressor's doors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.claims._digits import MLP
from benchmarks.claims.kit import cifar, features, fit
from osteon.backbones import Backbone, build_backbone
from osteon.data import Dataset, open_source
from osteon.objectives.supervised import Supervised
from osteon.parts.calibration import Calibration
from osteon.parts.compressor import Fit
from osteon.parts.objective import Objective
from osteon.verbs._model import fit_samples


def digits() -> tuple[Dataset, Dataset]:
    """Training and test digits."""
    return open_source("digits:train", cache=False), open_source("digits:test", cache=False)


def classifier(backbone: Backbone, dataset: Dataset, *, steps: int, augment: str = "none",
               watch: Callable[[str], None] | None = None, **wishes: Any) -> nn.Linear:
    """Train a backbone on labels in place; the classifier on its pooled features."""
    method = Supervised(backbone, dataset.spec, augment=augment)  # type: ignore[arg-type]
    fit(method, dataset, steps=steps, watch=watch, **wishes)
    backbone.eval()
    return method.head.eval()


@torch.no_grad()
def accuracy(backbone: Backbone, head: nn.Module, dataset: Dataset, like: Dataset) -> float:
    """Per cent of samples that the classifier gets right."""
    assert dataset.labels is not None
    scores = head(torch.from_numpy(features(backbone, dataset, like)))
    return 100 * float((scores.argmax(1).numpy() == dataset.labels).mean())


def calibration_of(dataset: Dataset, like: Dataset, *, count: int = 0, seed: int = 0,
                   head: nn.Module | None = None) -> Calibration:
    """Some samples (all where ``count`` is 0), normalised by the statistics of the training data."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(dataset))[:count or None])
    part = dataset.subset(rows)
    made = Calibration(lambda index: fit_samples(part, like.spec, index), len(part), like.spec, stored=part.batch,
                       labels=part.labels)
    made.head = head
    return made


def trainer(dataset: Dataset, seen: list[Objective] | None = None, **wishes: Any) -> Fit:
    """What a compressor trains with: osteon's engine, wishes over the method's recipe; ``seen`` keeps the objective."""
    def train(objective: Objective, recipe: Mapping[str, Any]) -> None:
        if seen is not None:
            seen.append(objective)
        settings = {**recipe, **wishes}
        fit(objective, dataset, steps=settings.pop("steps"), **settings)
    return train


@dataclass
class Taught:
    """A network trained on labels.

    Args:
        backbone: trained; not to be changed.
        head: its classifier.
        train: what it was trained on.
        test: what it is scored on.
        full: its accuracy there, per cent.
    """

    backbone: Backbone
    head: nn.Linear
    train: Dataset
    test: Dataset
    full: float


@cache
def vit_on_cifar(seed: int, quick: bool) -> Taught:
    """ViT d=128 L=4, patch 8, trained for 8 epochs on 2,500 labelled CIFAR-10 images; kept for the process."""
    train, test = cifar("train", 256 if quick else 2500), cifar("test", 100 if quick else 2000)
    torch.manual_seed(seed)
    network = build_backbone("vit_tiny", channels=3, size=32, dim=128, depth=4, heads=4, patch=8)
    head = classifier(network, train, steps=3 if quick else 8 * (len(train) // 64), augment="crop_flip", batch_size=64,
                      seed=seed)
    return Taught(network, head, train, test, accuracy(network, head, test, train))


@cache
def mlp_on_digits(seed: int, quick: bool) -> Taught:
    """MLP 64-256-256-10 trained for 30 epochs on the digits; one training a process and seed."""
    train, test = digits()
    torch.manual_seed(seed)
    network = MLP()
    head = classifier(network, train, steps=20 if quick else 30 * (len(train) // 64), batch_size=64, seed=seed)
    return Taught(network, head, train, test, accuracy(network, head, test, train))
