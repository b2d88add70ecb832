"""Skeleton of masked objectives: mask policy x drop-or-replace x decoder x target x loss on the hidden part."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from osteon.backbones import Backbone
from osteon.parts.objective import Objective
from osteon.parts.targets import patchify, unpatchify
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step
from osteon.views import Views


class Masked(Objective):
    """Hide part of a sample and predict it from the rest.

    A method fills in :meth:`mask` and :meth:`predict`, and may change :meth:`target` and :meth:`error`. The loss is
    the mean over hidden tokens of the per-token error, then the mean over samples.

    Args:
        backbone: network to train.
        data: what the data look like.
        views: maker of the single view that is hidden in part.
    """

    additive: ClassVar[bool] = True
    norm: ClassVar[Literal["l1", "l2"]] = "l2"

    def __init__(self, backbone: Backbone, data: DataSpec, *, views: Views) -> None:
        super().__init__(backbone, data)
        self.views = views
        self.patch = backbone.stride
        self.notes = list(views.notes)

    @abstractmethod
    def mask(self, grid: tuple[int, int], draws: Draws) -> Tensor:
        """(B, N) bool over the token grid, True = hidden, the same count in every sample."""

    @abstractmethod
    def predict(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions (B, N, patch*patch*C) from the visible part of x (B, C, H, W), and pooled features (B, D)."""

    def target(self, x: Tensor) -> Tensor:
        """What is to be predicted for every token, (B, N, patch*patch*C): normalised pixels by default."""
        return patchify(x, self.patch)

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Error of every token, (B, N)."""
        difference = prediction.float() - target.float()
        return (difference.abs() if self.norm == "l1" else difference.square()).mean(-1)

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Per-sample loss ``"loss"`` (B,) and pooled ``"features"``."""
        x = self.views(batch["image"], draws)[0].x
        mask = self.mask(self.backbone.grid(*x.shape[-2:]), draws.fork("mask"))
        prediction, pooled = self.predict(x, mask)
        return {"loss": hidden_mean(self.error(prediction, self.target(x)), mask), "features": pooled.detach()}

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """Mean over samples."""
        total = encoded["loss"].mean()
        return Loss(total, {"reconstruction": total.detach()})

    @torch.no_grad()
    def reconstruct(self, batch: Batch, step: Step) -> tuple[Tensor, Tensor, Tensor] | None:
        """Input, input with hidden patches at zero (the data's mean), and prediction pasted into the hidden part."""
        draws = Draws.of(batch, step)
        x = self.views(batch["image"], draws)[0].x
        grid = self.backbone.grid(*x.shape[-2:])
        mask = self.mask(grid, draws.fork("mask"))
        prediction, _ = self.predict(x, mask)
        shown = patchify(x, self.patch)
        pixels = self.to_pixels(prediction.float(), shown)
        hidden = mask[..., None]
        corrupted = torch.where(hidden, torch.zeros_like(shown), shown)
        output = torch.where(hidden, pixels, shown)
        return x, unpatchify(corrupted, self.patch, grid), unpatchify(output, self.patch, grid)

    def to_pixels(self, prediction: Tensor, patches: Tensor) -> Tensor:
        """Turn predictions into normalised pixels (B, N, patch*patch*C), for pictures only."""
        return prediction


def hidden_mean(error: Tensor, mask: Tensor) -> Tensor:
    """Mean of the error over each sample's hidden tokens. (B, N), (B, N) -> (B,)."""
    weight = mask.to(error.dtype)
    return (error * weight).sum(1) / weight.sum(1).clamp(min=1)
