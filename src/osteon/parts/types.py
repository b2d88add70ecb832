"""The values that pass through osteon's doors.

Shape letters used everywhere: B batch, C channels, H height, W width, N tokens, D width of features,
K clusters or classes, h w sizes of a view. A sample of any modality is an array (C, *extent): an image (C, H, W), a
log-mel spectrogram (1, bands, frames), a series (C, T), a text (1, T), a row of a table (1, columns).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from osteon.parts.efficient_train import EfficientTrain

#: A batch on the device: ``{modality: (B, C, *extent), "index": (B,) int64, "label": (B,) or (B, K)}``, or in the place
#: of classes ``"target"`` (B,) float32, a number to be predicted; images are
#: ``{"image": (B, C, H, W) uint8|uint16|float32, ...}``.
Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class DataSpec:
    """What an objective needs to know about the data before it sees a batch.

    Args:
        modality: ``"image"``, ``"sound"``...: the key of the batch.
        channels: number of channels C.
        size: side of the square images delivered by the loader, in pixels; of other modalities the longest side.
        mean: per-channel mean of the values after division by ``scale``.
        std: per-channel standard deviation after division by ``scale``.
        scale: number that maps stored values to about [0, 1] (255 for uint8, 65535 for uint16).
        num_classes: number of classes, 0 when unlabelled or where a number is to be predicted.
        multi_label: whether a sample may have several labels.
        class_weights: weight per class (inverse frequency, mean 1) or empty.
        shape: sides of a sample beyond its channels; empty = (size, size).
        target: mean and deviation, over training labels, of a number that is to be predicted; None where classes are.
        traits: what else the modality knows of its data, as JSON-ready values (sound: its rate; text: its tokens...).
    """

    modality: str
    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 255.0
    num_classes: int = 0
    multi_label: bool = False
    class_weights: tuple[float, ...] = ()
    shape: tuple[int, ...] = ()
    traits: Mapping[str, Any] = field(default_factory=dict)
    target: tuple[float, float] | None = None

    @property
    def outputs(self) -> int:
        """Numbers a head gives for a sample: one a class, or the one that is to be predicted."""
        return self.num_classes if self.target is None else 1

    @property
    def extent(self) -> tuple[int, ...]:
        """Sides of a sample beyond its channels, e.g. (H, W)."""
        return self.shape or (self.size, self.size)


@dataclass
class Geometry:
    """Where a view lies in its source image.

    Args:
        box: (B, 4) float x0, y0, x1, y1 as fractions of the source image; of a sample with one side, y is 0 and 1.
        flip: (B,) bool, True where the view is mirrored left-right.
        depth: (B, 2) float z0, z1 of the first side of a sample with three sides, as fractions; None of others.
    """

    box: Tensor
    flip: Tensor
    depth: Tensor | None = None


@dataclass
class View:
    """One augmented view of a batch: ``x`` (B, C, *extent) as the network takes it, geometry, drawn parameters."""

    x: Tensor
    geometry: Geometry
    params: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Features:
    """What every backbone returns.

    Args:
        pooled: (B, D) one vector a sample.
        tokens: (B, N, D) in raster order, without class or register tokens; only the kept ones under ``keep``.
        grid: sides of the full token grid, (rows, columns) for images.
        levels: feature pyramid, finest first, each (B, D_l, h_l, w_l); empty for plain ViTs.
        cls: (B, D) class token where there is one, else None.
    """

    pooled: Tensor
    tokens: Tensor
    grid: tuple[int, ...]
    levels: list[Tensor] = field(default_factory=list)
    cls: Tensor | None = None


@dataclass
class Loss:
    """A scalar to minimise and its named, detached terms for the log."""

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """Where training stands: ``index`` counts optimiser steps from 0 of ``total``; ``seed`` keys every random draw."""

    index: int
    total: int
    seed: int = 0

    @property
    def progress(self) -> float:
        """Share of training done, in [0, 1]."""
        return self.index / max(1, self.total)


class Draws:
    """Every random number of one step, as a function of (seed, step, name) alone.

    Each draw is made for the whole global batch and then indexed by the rows this process (or this micro-batch) holds,
    so that two processes, or two accumulated micro-batches, see exactly what one process with the whole batch sees,
    and a resumed run repeats the undisturbed one. There is no generator state to save.

    Args:
        step: where training stands.
        rows: (b,) int64 global row numbers held here.
        total: global batch size.
        device: device of the drawn tensors.
        source: callable ``(key, global_rows) -> Tensor`` giving other rows of the global batch (for mixing methods).
        name: prefix of the random stream.
        course: curriculum that views follow, None without.
    """

    def __init__(self, step: Step, rows: Tensor, total: int, device: torch.device | str = "cpu",
                 source: Callable[[str, Tensor], Tensor] | None = None, name: str = "",
                 course: EfficientTrain | None = None) -> None:
        self.step, self.rows, self.total, self.device = step, rows, total, torch.device(device)
        self.source, self.name, self.course = source, name, course
        self._count = 0

    @classmethod
    def of(cls, batch: Batch, step: Step) -> Draws:
        """Draws for a batch that is the whole global batch (one process, no accumulation)."""
        x = batch["index"] if "index" in batch else next(iter(batch.values()))
        n = x.shape[0]
        return cls(step, torch.arange(n), n, x.device, source=lambda k, rows: batch[k][rows.to(batch[k].device)])

    def fork(self, name: str) -> Draws:
        """An independent stream with its own name, e.g. one a view."""
        return Draws(self.step, self.rows, self.total, self.device, self.source, f"{self.name}/{name}",
                     self.course)

    def at(self, rows: Tensor) -> Draws:
        """The same stream (from its start) for other global rows: what a partner in the batch would draw."""
        return Draws(self.step, rows, self.total, self.device, self.source, self.name, self.course)

    def take(self, key: str, rows: Tensor) -> Tensor:
        """Entries ``key`` of the global batch at global ``rows``, wherever they live."""
        if self.source is None:
            raise RuntimeError("this step gives no access to the rest of the batch")
        return self.source(key, rows)

    def generator(self) -> torch.Generator:
        """A fresh generator for the next draw of this stream (on the CPU: identical on every device)."""
        text = f"{self.step.seed}|{self.step.index}|{self.name}|{self._count}"
        self._count += 1
        key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")
        return torch.Generator().manual_seed(key)

    def rand(self, *shape: int) -> Tensor:
        """Uniform [0, 1) of shape (b, *shape), one row a local sample."""
        return torch.rand(self.total, *shape, generator=self.generator())[self.rows].to(self.device)

    def randn(self, *shape: int) -> Tensor:
        """Standard normal of shape (b, *shape), one row a local sample."""
        return torch.randn(self.total, *shape, generator=self.generator())[self.rows].to(self.device)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform [low, high) of shape (b, *shape)."""
        return low + (high - low) * self.rand(*shape)

    def shared_rand(self, *shape: int) -> Tensor:
        """Uniform [0, 1), the same for every sample of the global batch; shape ``shape``."""
        return torch.rand(*shape, generator=self.generator()).to(self.device)

    def shared_beta(self, a: float, b: float) -> Tensor:
        """One Beta(a, b) variate for the whole batch, shape ()."""
        import numpy as np

        seed = int(torch.randint(2**31 - 1, (1,), generator=self.generator()))
        return torch.tensor(np.random.default_rng(seed).beta(a, b), dtype=torch.float32, device=self.device)

    def permutation(self) -> Tensor:
        """One permutation of the global batch, (total,) int64 on the CPU, the same everywhere."""
        return torch.randperm(self.total, generator=self.generator())
