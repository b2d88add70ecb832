"""Three tasks of two classes each, far apart on the sphere, and a network that only passes them on."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from osteon.parts.continual import TaskData

PARTS = [(4, 1), (0, 5), (2, 3)]


class Passing(nn.Module):
    """The feature of an image is a linear map of its pixels, the identity at first."""

    dim = 8

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(8, 8, bias=False)
        nn.init.eye_(self.map.weight)

    def forward(self, x: Tensor) -> SimpleNamespace:
        return SimpleNamespace(pooled=self.map(x.flatten(1)))


def samples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """(N, 1, 2, 4) images and labels of all six classes."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 6
    return (3 * torch.eye(8)[y] + 0.3 * torch.randn(count, 8, generator=g)).view(-1, 1, 2, 4), y


def task(part: tuple[int, ...], count: int = 120, seed: int = 0) -> TaskData:
    x, y = samples(count, seed)
    rows = np.flatnonzero(np.isin(y, part))
    return TaskData(lambda index: x[rows[index]], y[rows], part)


def follow(rule, parts=PARTS, seed: int = 0) -> list[float]:
    """Accuracy on the first task after every task."""
    rule.begin(Passing(), parts, seed)
    x, y = samples(60, 9)
    mine = torch.isin(y, torch.tensor(parts[0]))
    out = []
    for part in parts:
        rule.learn(task(part))
        out.append(float((rule.predict(x[mine]) == y[mine]).double().mean()))
    return out


def final(rule) -> float:
    x, y = samples(60, 9)
    return float((rule.predict(x) == y).double().mean())
