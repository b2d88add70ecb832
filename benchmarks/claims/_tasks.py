"""Scikit-learn's digits in five tasks, and the small network that learns them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.claims.kit import fit
from osteon.backbones import Backbone
from osteon.data import Dataset, open_source
from osteon.objectives.supervised import Supervised
from osteon.parts.continual import Continual, TaskData
from osteon.parts.types import Features
from osteon.verbs._model import fit_samples

#: two classes a task, in the order of the digits
TASKS = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))


class MLP(Backbone):
    """Flattened pixels through linear layers with ReLU between them; one token an image; no layers: the pixels."""

    kind = "tokens"
    stride = 8

    def __init__(self, widths: Sequence[int] = (64, 256, 256, 64)) -> None:
        super().__init__("mlp", channels=1, size=8, options={})
        self.dim = self.token_dim = widths[-1]
        layers: list[nn.Module] = []
        for a, b in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Linear(a, b), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor, *, keep: Tensor | None = None, mask: Tensor | None = None,
                mask_token: Tensor | None = None) -> Features:
        if keep is not None or mask is not None:
            raise self._refuse("masking")
        pooled = self.layers(x.flatten(1))
        return Features(pooled=pooled, tokens=pooled[:, None], grid=(1, 1))


    def without_last(self) -> MLP:
        """The same network up to the ReLU before its last layer."""
        shorter = MLP((self.dim, self.dim))
        shorter.layers = self.layers[:-1]
        shorter.dim = shorter.token_dim = self.layers[-1].in_features  # type: ignore[union-attr, assignment]
        return shorter


def digits() -> tuple[Dataset, Dataset]:
    """Training and test part."""
    return open_source("digits:train", cache=False), open_source("digits:test", cache=False)


def classes_of(dataset: Dataset) -> np.ndarray:
    """Class numbers (N,)."""
    assert dataset.labels is not None
    return dataset.labels


def task(dataset: Dataset, classes: Sequence[int], like: Dataset) -> TaskData:
    """The samples of some classes, normalised by the statistics of ``like``."""
    rows = np.flatnonzero(np.isin(classes_of(dataset), classes))
    return TaskData(lambda index: fit_samples(dataset, like.spec, rows[index]),
                    torch.from_numpy(classes_of(dataset)[rows]), tuple(classes))


def accuracy(rule: Continual, exam: TaskData) -> float:
    """Accuracy in per cent, the answer being among all classes seen so far."""
    right = torch.cat([rule.predict(x) == y for x, y in exam.in_order()])
    return 100 * float(right.double().mean())


def untrained(seed: int) -> MLP:
    """The network at its random start."""
    torch.manual_seed(seed)
    return MLP()


def rotation_pretext(train: Dataset, seed: int, *, epochs: int) -> MLP:
    """The network after learning by which of 0, 90, 180 and 270 degrees a digit was turned; no class is told."""
    turned = np.concatenate([np.rot90(train.images, k, axes=(2, 3)) for k in range(4)])
    asked = Dataset.from_arrays(np.ascontiguousarray(turned), np.repeat(np.arange(4), len(train)))
    asked = replace(asked, spec=replace(asked.spec, mean=train.spec.mean, std=train.spec.std))
    backbone = untrained(seed)
    fit(Supervised(backbone, asked.spec, augment="none"), asked, steps=epochs * (len(asked) // 64), batch_size=64,
        seed=seed)
    return backbone
