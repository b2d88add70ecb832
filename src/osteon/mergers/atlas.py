"""aTLAS: learn, from few labelled samples, how much of each fine-tuning to take in each tensor.

Zhang et al. 2024, "Knowledge Composition using Task Vectors with Learned Anisotropic Scaling", arXiv:2407.02880,
section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.merging import Merger, Models

CARD = Card(kind="merger", name="atlas",
            papers=("Knowledge Composition using Task Vectors with Learned Anisotropic Scaling",),
            modalities=("any",),
            differs="the few-shot objective alone (no negation, no test-time adaptation, no K random groups); the "
                    "gradient of a coefficient is the inner product of the weights' gradient with the task vector, "
                    "read from disk, so that memory holds one network instead of all task vectors; models without a "
                    "classifier are judged by fixed class means of the base's features; the last coefficients are "
                    "kept, not the best epoch's",
            rows=(281,), labels=True, cost="10 passes over --train, each step reading every model once")


class ATLAS(Merger):
    """``base + sum over models of coefficient[model, tensor] * (model - base)``, the coefficients learned on --train.

    Args:
        epochs: passes over the labelled samples.
        lr: learning rate of AdamW, falling by a cosine.
        weight_decay: pulls the coefficients towards 0, which is the base.
        batch_size: samples a step.
        clip: largest norm of the coefficients' gradient.
    """

    needs: ClassVar[tuple[str, ...]] = ("base", "train")
    statistics: ClassVar[str] = "the base's"

    def __init__(self, *, epochs: int = 10, lr: float = 0.1, weight_decay: float = 0.1, batch_size: int = 128,
                 clip: float = 1.0) -> None:
        if epochs < 1 or lr <= 0 or weight_decay < 0 or batch_size < 1 or clip <= 0:
            raise UsageError("epochs and batch_size are at least 1, lr and clip positive, weight_decay not negative.",
                             where="atlas")
        self.epochs, self.lr, self.weight_decay = epochs, lr, weight_decay
        self.batch_size, self.clip = batch_size, clip
        #: learned scalars, (models, tensors), tensors as in ``blocks``
        self.coefficients = torch.zeros(0, 0)
        self.blocks: list[str] = []

    def prepare(self, models: Models) -> list[str]:
        """Learn the coefficients from zero."""
        assert models.teacher is not None
        self.blocks = models.trained
        scalars = torch.nn.Parameter(torch.zeros(len(models.members), len(self.blocks)))
        self.coefficients = scalars.data
        optimizer = torch.optim.AdamW([scalars], lr=self.lr, weight_decay=self.weight_decay)
        batch = min(self.batch_size, models.teacher.count)
        per_epoch = math.ceil(models.teacher.count / batch)
        losses: list[float] = []
        for step in range(self.epochs * per_epoch):
            if step % per_epoch == 0:
                order = np.random.default_rng([models.seed, step // per_epoch]).permutation(models.teacher.count)
            rows = order[step % per_epoch * batch:(step % per_epoch + 1) * batch]
            loss, slopes = models.teacher.slopes(lambda name: self.tensor(name, models), rows)
            losses.append(loss)
            scalars.grad = self._gradient(models, slopes)
            torch.nn.utils.clip_grad_norm_([scalars], self.clip)
            for group in optimizer.param_groups:
                group["lr"] = self.lr * 0.5 * (1 + math.cos(math.pi * step / (self.epochs * per_epoch)))
            optimizer.step()
        spread = self.coefficients.std(1, correction=0) if self.coefficients.numel() else torch.zeros(1)
        return [f"atlas: {scalars.numel()} scalars learned in {len(losses)} steps on {models.teacher.count} samples; "
                f"loss {losses[0]:.3f} -> {losses[-1]:.3f}",
                "atlas: mean coefficient " + ", ".join(
                    f"{m.label} {float(c.mean()):.2f} (sd {float(s):.2f})"
                    for m, c, s in zip(models.members, self.coefficients, spread, strict=True))]

    def _gradient(self, models: Models, slopes: Mapping[str, Tensor]) -> Tensor:
        """(models, tensors): inner products of the loss's gradient with every task vector, one tensor at a time."""
        out = torch.zeros_like(self.coefficients)
        for column, name in enumerate(self.blocks):
            slope = slopes.get(name)
            if slope is None:  # a tensor the loss does not reach
                continue
            for row in range(len(models.members)):
                out[row, column] = float((slope.double().cpu() * models.task_vector(row, name)).sum())
        return out

    def combine(self, name: str, models: Models) -> Tensor:
        """Base plus the scaled task vectors; the base itself where every coefficient is 0."""
        assert models.base is not None
        base = models.base[name]
        column = self.coefficients[:, self.blocks.index(name)]
        total = base.double()
        for row in range(len(models.members)):
            total = total + float(column[row]) * models.task_vector(row, name)
        return total.to(base.dtype)

    def statistic(self, name: str, models: Models) -> Tensor:
        """The base's: running statistics are not composed."""
        assert models.base is not None
        return models.base[name]
