"""What continual rules are compared with: learning everything at once, and fine-tuning on one task after another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.parts.continual import Continual, TaskData, train


class Sequential(Continual):
    """Plain fine-tuning: the whole network on each task in turn, one classifier that grows; the lower control.

    Args:
        epochs: passes over every task.
        lr: learning rate of backbone and classifier.
        batch_size: samples a step.
        head_only: leave the backbone as it is.
    """

    def __init__(self, *, epochs: int = 10, lr: float = 1e-3, batch_size: int = 32, head_only: bool = False) -> None:
        self.epochs, self.lr, self.batch_size, self.head_only = epochs, lr, batch_size, head_only

    def begin(self, backbone: Any, tasks: Any, seed: int) -> None:
        """Get ready: one row a class of all tasks; those not yet seen take no part."""
        super().begin(backbone, tasks, seed)
        torch.manual_seed(seed)
        self.classifier = nn.Linear(self.width, sum(len(t) for t in self.tasks))

    def fit(self, data: TaskData) -> None:
        """Train on this task alone."""
        place = {c: i for i, c in enumerate(self.seen)}
        self.backbone.train(not self.head_only).requires_grad_(not self.head_only)
        parts = [(list(self.classifier.parameters()), self.lr)]
        if not self.head_only:
            parts.append((list(self.backbone.parameters()), self.lr))

        def loss(x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(self.logits(x), torch.tensor([place[int(c)] for c in y]))

        train(parts, loss, data, epochs=self.epochs, batch_size=self.batch_size, seed=self.seed + len(self.seen))
        self.backbone.eval()

    def logits(self, x: Tensor) -> Tensor:
        """Scores of the classes seen, in the order they came."""
        return self.classifier(self.backbone(x).pooled)[:, :len(self.seen)]


class Joint(Sequential):
    """The same network trained on the samples of all tasks together: the upper control, which is told everything."""
