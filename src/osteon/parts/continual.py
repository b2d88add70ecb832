"""What passes through the door of continual learning: tasks that come one after another, and rules that learn them."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

#: samples a forward pass without gradient
BATCH = 256


@dataclass(frozen=True)
class TaskData:
    """The training samples of one task.

    Args:
        images: row numbers -> normalised images (B, C, S, S).
        labels: (N,) int64 numbers of classes.
        classes: the classes of this task.
    """

    images: Callable[[np.ndarray], Tensor]
    labels: Tensor
    classes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples in order, batch by batch: images and labels."""
        for start in range(0, len(self), BATCH):
            rows = np.arange(start, min(start + BATCH, len(self)))
            yield self.images(rows), self.labels[torch.from_numpy(rows)]


class Continual(ABC):
    """A rule that learns classes task by task from a pre-trained backbone, without seeing earlier tasks again.

    Attributes:
        backbone: a copy of the one given; changes only if the rule trains it.
        seen: classes learned so far, in order.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    exactly: ClassVar[int] = 0
    rule: ClassVar[str] = "continual"

    backbone: nn.Module
    seen: list[int]

    def begin(self, backbone: Any, tasks: Sequence[Sequence[int]], seed: int) -> None:
        """Get ready.

        Args:
            backbone: pre-trained network whose output has ``pooled`` (B, D), of width ``dim``; copied.
            tasks: classes of every task to come; a rule may use how many there will be, not what they are.
            seed: of everything random.
        """
        self.backbone, self.width = copy.deepcopy(backbone).eval(), int(backbone.dim)
        self.tasks, self.seed, self.seen = [tuple(t) for t in tasks], seed, []

    def learn(self, data: TaskData) -> None:
        """Learn the next task."""
        self.seen += [c for c in data.classes if c not in self.seen]
        self.fit(data)

    @abstractmethod
    def fit(self, data: TaskData) -> None:
        """Learn the classes of ``data``, which are in ``seen`` already."""

    @abstractmethod
    def logits(self, x: Tensor) -> Tensor:
        """Scores of normalised images (B, C, S, S) for the classes in ``seen``, in that order."""

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Class numbers (B,) among all seen so far; no task is told."""
        self.backbone.eval()
        return torch.tensor(self.seen)[self.logits(x).argmax(1)]


def train(groups: Sequence[tuple[Sequence[nn.Parameter], float]], loss: Callable[[Tensor, Tensor], Tensor],
          data: TaskData, *, epochs: int, batch_size: int, seed: int, weight_decay: float = 5e-4) -> None:
    """Minimise a loss by AdamW at constant rates.

    Args:
        groups: parameters and their learning rate.
        loss: normalised images (B, C, S, S) and labels (B,) -> ().
        data: samples; shuffled anew every epoch, the last batch kept unless it is a single sample.
        epochs: passes.
        batch_size: samples a step.
        seed: of the order.
        weight_decay: decoupled decay.
    """
    optimizer = torch.optim.AdamW([{"params": list(p), "lr": lr} for p, lr in groups if lr], lr=1e-3,
                                  weight_decay=weight_decay)
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(len(data))
        for start in range(0, len(order), batch_size):
            rows = order[start:start + batch_size]
            if len(rows) < 2 and len(order) > 1:  # batch norm cannot train on one sample
                continue
            optimizer.zero_grad(set_to_none=True)
            loss(data.images(rows), data.labels[torch.from_numpy(rows)]).backward()
            optimizer.step()
