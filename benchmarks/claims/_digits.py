"""What claims on scikit-learn's digits share: a small MLP, shifted digits, and training by osteon's adapters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning_fabric import Fabric
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones import Backbone
from osteon.core import registry
from osteon.core.tensorfile import write_tensors
from osteon.data import Dataset, Loader, open_source
from osteon.parts.adapter import Adapter
from osteon.parts.state_algebra import StateFile
from osteon.parts.types import DataSpec, Features, Step
from osteon.train.loop import Engine
from osteon.train.settings import resolve_settings
from osteon.verbs._adapt_objective import AdaptObjective
from osteon.verbs._merge_judge import Host
from osteon.verbs._model import fit_samples
from osteon.verbs.adapt import predict

#: learning rates every arm may choose from on validation images
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
BATCH = 32

Augment = Literal["crop_flip", "randaugment", "none"]
#: images (N, 8, 8) in [0, 1] and a generator -> changed images, not clipped
Shift = Callable[[np.ndarray, np.random.Generator], np.ndarray]


class MLP(Backbone):
    """Pixels -> 256 -> 256 features, ReLU after each layer; with a head of ten classes, 64-256-256-10."""

    kind = "tokens"
    dim, token_dim, stride = 256, 256, 8

    def __init__(self) -> None:
        super().__init__("mlp", channels=1, size=8, options={})
        self.first, self.second = nn.Linear(64, 256), nn.Linear(256, 256)

    def forward(self, x: Tensor, *, keep: Tensor | None = None, mask: Tensor | None = None,
                mask_token: Tensor | None = None) -> Features:
        if keep is not None or mask is not None:
            raise self._refuse("masking")
        pooled = F.relu(self.second(F.relu(self.first(x.flatten(1)))))
        return Features(pooled=pooled, tokens=pooled[:, None], grid=(1, 1))


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """All 1,797 digits as (N, 8, 8) in [0, 1], and their labels."""
    found = open_source("digits", cache=False)
    assert found.labels is not None
    return np.asarray(found.images[:, 0], np.float32) / 255, found.labels


def deal(seed: int, *sizes: int) -> list[np.ndarray]:
    """Disjoint random rows of the digits, so many of each size, and the rest."""
    order = np.random.default_rng(seed).permutation(len(digits()[0]))
    return np.split(order, np.cumsum(sizes))


def plain(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The digits as they are."""
    return images


def photometric(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Half the contrast, an offset of a half (the network as it is then fails), noise of deviation 0.1."""
    return 0.5 * images + 0.5 + random.normal(0, 0.1, images.shape)


def rolled(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """One pixel to the right and down, around the edge, and noise of deviation 0.15."""
    return np.roll(images, (1, 1), (1, 2)) + random.normal(0, 0.15, images.shape)


def rotated(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A quarter turn."""
    return np.rot90(images, axes=(1, 2)).copy()


def inverted(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Ink and paper exchanged, and noise of deviation 0.15."""
    return 1 - images + random.normal(0, 0.15, images.shape)


def translated(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Two pixels to the right, around the edge."""
    return np.roll(images, 2, 2)


def elastic(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Every pixel read from a place moved by a smooth random field of deviation 1 pixel."""
    out = np.empty_like(images)
    grid = np.stack(np.meshgrid(np.arange(8), np.arange(8), indexing="ij")).astype(float)
    for i, image in enumerate(images):
        field_ = np.stack([ndimage.gaussian_filter(random.normal(size=(8, 8)), 1.5) for _ in range(2)])
        out[i] = ndimage.map_coordinates(image, grid + field_ / field_.std(), order=1, mode="nearest")
    return out


def part(rows: np.ndarray, shift: Shift, seed: int, like: DataSpec | None = None) -> Dataset:
    """Some digits, shifted; normalised by their own statistics or by those of ``like``."""
    images, labels = digits()
    random = np.random.default_rng([seed, int(rows[0])])
    made = Dataset.from_arrays(shift(images[rows], random).astype(np.float32)[:, None], labels[rows],
                               class_names=[str(i) for i in range(10)], source="digits")
    return made if like is None else replace(made, spec=replace(made.spec, mean=like.mean, std=like.std))


@dataclass
class Base:
    """A pre-trained network and its classifier.

    Args:
        backbone: the MLP.
        head: 256 -> 10.
        spec: statistics of the pre-training digits.
    """

    backbone: Backbone
    head: nn.Linear
    spec: DataSpec


@dataclass
class Trained:
    """An adapter after training.

    Args:
        adapter: trained.
        rate: its peak learning rate.
        losses: cross-entropy on the whole training set after every epoch, if asked for.
    """

    adapter: Adapter
    rate: float
    losses: list[float] = field(default_factory=list)


@cache
def pretrain(seed: int, count: int, *, epochs: int = 50) -> Base:
    """Train the MLP and its classifier on the first ``count`` clean digits of a seed, all layers at a rate of 1e-3."""
    data = part(deal(seed, count)[0], plain, seed)
    torch.manual_seed(seed)
    made: Adapter = registry.build("adapter", "full", MLP(), data.spec)
    train(made, data, epochs=epochs, lr=1e-3, seed=seed, layer_decay=1.0)
    return Base(made.merge(), copy.deepcopy(made.head), data.spec)


def adapt_to(base: Base, name: str, seed: int, *, frozen: bool = True, **options: Any) -> Adapter:
    """An adapter on the base, beginning with the base's own classifier, which stays as it is if ``frozen``."""
    torch.manual_seed(seed)
    made: Adapter = registry.build("adapter", name, base.backbone, base.spec, **options)
    made.head.load_state_dict(base.head.state_dict())
    made.head.requires_grad_(not frozen)
    return made


def train(adapter: Adapter, data: Dataset, *, lr: float, seed: int, epochs: int = 0, steps: int = 0,
          batch: int = BATCH, curve: bool = False, augment: Augment = "none", smoothing: float = 0.0,
          **wishes: Any) -> Trained:
    """Train an adapter by osteon's engine with its recipe, for epochs or steps; not augmented unless asked."""
    objective = AdaptObjective(adapter, data.spec, augment=augment, smoothing=smoothing).train()
    every = len(data) // batch
    settings, _ = resolve_settings({"batch_size": batch, "lr": lr, "steps": steps or epochs * every, "seed": seed,
                                    "precision": "32", **wishes}, adapter.recipe, len(data), kind="tokens")
    engine = Engine(objective, settings, Fabric(accelerator="cpu", devices=1))
    out = Trained(adapter, lr)
    for index, samples in enumerate(Loader(data, batch, seed).iterate(0, settings.steps)):
        engine.run(samples, Step(index, settings.steps, settings.seed))
        if curve and (index + 1) % every == 0:
            out.losses.append(loss(adapter, data))
            objective.train()
    adapter.eval()
    return out


@torch.no_grad()
def loss(adapter: Adapter, data: Dataset) -> float:
    """Cross-entropy on a data set."""
    logits = adapter.eval()(fit_samples(data, data.spec, np.arange(len(data))))
    return float(F.cross_entropy(logits, torch.as_tensor(data.labels)))


def accuracy(adapter: Adapter, data: Dataset) -> float:
    """Per cent of a data set that an adapter gets right."""
    return 100 * float((predict(adapter, data, data.spec).argmax(1) == data.labels).mean())


def sweep(make: Callable[[], Adapter], data: Dataset, val: Dataset, *, epochs: int, seed: int,
          rates: Sequence[float] = RATES, curve: bool = False, **wishes: Any) -> Trained:
    """Train once a rate; the best on validation images, of equal ones the slowest."""
    tried = [train(make(), data, epochs=epochs, lr=rate, seed=seed, curve=curve, **wishes) for rate in rates]
    return max(tried, key=lambda t: (accuracy(t.adapter, val), -t.rate))


def trainables(adapter: Adapter) -> int:
    """How many numbers train."""
    return sum(p.numel() for p in adapter.trainable().values())


class AdapterHost(Host):
    """osteon's host of merged weights around an adapter of an MLP, which no name of a backbone stands for."""

    def __init__(self, adapter: Adapter, spec: DataSpec) -> None:
        self.spec, self.data, self.module = spec, None, adapter.eval()
        self.slots = dict(adapter.learned())


def store(folder: Path, name: str, adapter: Adapter) -> StateFile:
    """What an adapter learned, on disk as a merger reads it."""
    write_tensors(folder / name / "model.safetensors", {k: v.detach() for k, v in adapter.learned().items()}, {})
    return StateFile(folder / name)
