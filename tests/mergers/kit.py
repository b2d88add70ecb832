"""Small models on disk, and a judge that knows what it wants to see."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from osteon.core.tensorfile import write_tensors
from osteon.parts.merging import Merger, Models
from osteon.parts.state_algebra import StateFile

META = {"backbone": {"name": "toy", "channels": 1, "size": 8, "options": {}},
        "data": {"mean": [0.5], "std": [0.25], "channels": 1, "size": 8}, "class_names": ["a", "b"]}


def tensors(seed: int, spread: float = 1.0) -> dict[str, Tensor]:
    """Weights of several types and shapes, with a batch norm."""
    g = torch.Generator().manual_seed(seed)
    return {"a.weight": spread * torch.randn(6, 5, generator=g), "a.bias": spread * torch.randn(6, generator=g),
            "gain": spread * torch.randn((), generator=g), "half": (spread * torch.randn(4, generator=g)).half(),
            "bn.running_mean": torch.randn(3, generator=g), "bn.running_var": torch.rand(3, generator=g) + 0.1,
            "bn.num_batches_tracked": torch.tensor(seed + 5)}


def moved(start: Mapping[str, Tensor], seed: int, size: float = 0.1) -> dict[str, Tensor]:
    """A model fine-tuned from another."""
    change = tensors(seed, size)
    return {k: (v + change[k].to(v.dtype)) if v.is_floating_point() and "running" not in k else v.clone()
            for k, v in start.items()}


def stored(folder: Path, name: str, state: Mapping[str, Tensor], **meta: object) -> StateFile:
    write_tensors(folder / name / "model.safetensors", dict(state), {**META, **meta})
    return StateFile(folder / name)


def merged(merger: Merger, models: Models) -> dict[str, Tensor]:
    merger.prepare(models)
    return {name: merger.tensor(name, models) for name in models.members[0]}


class Likes:
    """Scores weights by how near they are to wanted ones: the share of 1000 that is right falls with distance."""

    def __init__(self, wanted: Mapping[str, Tensor], scale: float = 1.0) -> None:
        self.wanted, self.scale, self.asked = wanted, scale, 0

    def quality(self, weights, *, merged: bool = True) -> np.ndarray:
        self.asked += 1
        away = sum(float((weights(k).double() - v.double()).square().sum()) for k, v in self.wanted.items()) ** 0.5
        right = round(1000 / (1 + self.scale * away))
        return np.r_[np.ones(right), np.zeros(1000 - right)]


class Pulls:
    """Half the squared distance to wanted weights, as a loss with a gradient."""

    count = 6

    def __init__(self, wanted: Mapping[str, Tensor]) -> None:
        self.wanted, self.seen = wanted, []

    def slopes(self, weights, rows):
        self.seen.append(np.asarray(rows).tolist())
        gaps = {k: weights(k).float() - v.float() for k, v in self.wanted.items()}
        return float(sum(g.square().sum() for g in gaps.values()) / 2), gaps
