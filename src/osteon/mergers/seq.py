"""SEQ*: sequential tuning that keeps what it knows: freeze the backbone early and every task's classifier after it.

Zheng et al. 2023, "Learn or Recall? Revisiting Incremental Learning with Pre-trained Language Models",
arXiv:2312.07887, section 5.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.continual import Continual, TaskData, train

CARD = Card(kind="merger", name="seq",
            papers=("Learn or Recall? Revisiting Incremental Learning with Pre-trained Language Models",),
            modalities=("image",),
            differs="for images; freezing switches gradients off instead of setting the rate to 0, and a frozen "
                    "backbone runs in evaluation mode, so that it stays bit-identical and its features are computed "
                    "once a task; no replay buffer, so that the head is cosine by default, as in the paper without one",
            rows=(81,), labels=True, cost="a few passes over the first task, then a head a task")


class CosineHead(nn.Module):
    """Cosine between a feature and each class's row, times a scale."""

    def __init__(self, width: int, classes: int, scale: float) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.randn(classes, width) * width**-0.5), scale

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, K), in [-scale, scale]."""
        return self.scale * F.normalize(x, dim=1) @ F.normalize(self.weight, dim=1).T


class Seq(Continual):
    """Train the backbone on the first task only, then freeze it; one classifier a task, frozen when the task is over.

    Args:
        head: ``"cosine"`` or ``"linear"``.
        warmup_epochs: passes over the first task in which the backbone trains too; -1: 3, or all where there are fewer.
        epochs: passes over every task.
        preallocate: make the classifiers of all tasks at the start and let them answer (wrongly) from then on.
        scale: factor of the cosines; 1 as in the paper, where the loss is far from 0 even for sure answers.
        lr_encoder: learning rate of the backbone.
        lr_classifier: learning rate of the classifiers.
        batch_size: samples a step.
    """

    def __init__(self, *, head: Literal["cosine", "linear"] = "cosine", warmup_epochs: int = -1, epochs: int = 10,
                 preallocate: bool = False, scale: float = 1.0, lr_encoder: float = 1e-5,
                 lr_classifier: float = 1e-3, batch_size: int = 4) -> None:
        if head not in ("cosine", "linear"):
            raise UsageError(f"There is no head {head!r}.", where="head", fix="Use cosine or linear.")
        if epochs < 1 or not -1 <= warmup_epochs <= epochs or batch_size < 2 or min(scale, lr_classifier) <= 0:
            raise UsageError(f"epochs is at least 1, warmup_epochs at most epochs ({warmup_epochs} of {epochs} here), "
                             "batch_size at least 2; scale and rates are positive.", where="seq")
        warmup_epochs = min(3, epochs) if warmup_epochs < 0 else warmup_epochs
        self.head, self.warmup_epochs, self.epochs, self.preallocate = head, warmup_epochs, epochs, preallocate
        self.scale, self.lr_encoder, self.lr_classifier = scale, lr_encoder, lr_classifier
        self.batch_size = batch_size

    def begin(self, backbone: Any, tasks: Any, seed: int) -> None:
        """Get ready; with ``preallocate``, make every task's classifier."""
        super().begin(backbone, tasks, seed)
        self.heads = nn.ModuleList()
        self.order: list[int] = []  # class of every row of the heads, one after another
        torch.manual_seed(seed)
        for classes in self.tasks if self.preallocate else ():
            self._add(classes)

    def fit(self, data: TaskData) -> None:
        """Warm up on the first task, freeze the backbone, train this task's classifier, freeze it."""
        task = self.tasks.index(tuple(data.classes))
        if not self.preallocate:
            torch.manual_seed(self.seed + task)
            self._add(data.classes)
        place = {c: i for i, c in enumerate(self.order)}
        rest = self.epochs
        free = [p for head in self.heads[task:] for p in head.parameters()]

        def loss(features: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(self._scores(features), torch.tensor([place[int(c)] for c in y]))

        if len(self.seen) == len(data.classes) and self.warmup_epochs:
            self.backbone.train().requires_grad_(True)
            train([(list(self.backbone.parameters()), self.lr_encoder), (free, self.lr_classifier)],
                  lambda x, y: loss(self.backbone(x).pooled, y), data, epochs=self.warmup_epochs,
                  batch_size=self.batch_size, seed=self.seed)
            rest -= self.warmup_epochs
        self.backbone.eval().requires_grad_(False)
        with torch.no_grad():  # a frozen backbone says the same in every epoch
            features = torch.cat([self.backbone(x).pooled for x, _ in data.in_order()])
        cached = TaskData(lambda rows: features[torch.from_numpy(rows)], data.labels, data.classes)
        train([(free, self.lr_classifier)], loss, cached, epochs=rest, batch_size=self.batch_size,
              seed=self.seed + 1 + task)
        self.heads[task].requires_grad_(False)

    def logits(self, x: Tensor) -> Tensor:
        """Scores of the classes seen; classifiers of tasks to come are left out."""
        rows = [self.order.index(c) for c in self.seen]
        return self._scores(self.backbone(x).pooled)[:, rows]

    def _scores(self, features: Tensor) -> Tensor:
        return torch.cat([head(features) for head in self.heads], 1)

    def _add(self, classes: Any) -> None:
        made: nn.Module = nn.Linear(self.width, len(classes))
        if self.head == "cosine":
            made = CosineHead(self.width, len(classes), self.scale)
        self.heads.append(made)
        self.order += list(classes)
