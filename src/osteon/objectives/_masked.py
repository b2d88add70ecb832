"""Skeleton of masked objectives: mask policy x drop-or-replace x decoder x target x loss on the hidden part."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from osteon.backbones import Backbone
from osteon.parts.judged import CHAMFER, NATS, Judged
from osteon.parts.objective import Objective
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step
from osteon.views import Views


class Masked(Objective):
    """Hide part of a sample and predict it from the rest.

    A method fills in :meth:`mask` and :meth:`predict`, and may change :meth:`target` and :meth:`error`. The loss is
    the mean over hidden tokens of the per-token error, then the mean over samples; tokens that only fill a sample up
    do not count. Where a token shows a member of a vocabulary rather than values, its error is the cross-entropy of
    the predicted scores.

    Args:
        backbone: network to train.
        data: what the data look like.
        views: maker of the single view that is hidden in part.
    """

    additive: ClassVar[bool] = True
    norm: ClassVar[Literal["l1", "l2"]] = "l2"
    norm_pix: bool = False  # what is predicted is standardised token by token
    causal: ClassVar[bool] = False  # tokens are predicted from all those before them

    def __init__(self, backbone: Backbone, data: DataSpec, *, views: Views) -> None:
        super().__init__(backbone, data)
        self.views = views
        self.patch = backbone.stride
        self.notes = list(views.notes)

    @abstractmethod
    def mask(self, grid: tuple[int, ...], draws: Draws) -> Tensor:
        """(B, N) bool over the token grid, True = hidden, the same count in every sample."""

    @abstractmethod
    def predict(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions (B, N, shown_width) from the visible part of x (B, C, *extent), and pooled features (B, D)."""

    def target(self, x: Tensor) -> Tensor:
        """What is to be predicted for every token: its values (B, N, shown_width), or its word (B, N)."""
        return self.backbone.shown(x)

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Error of every token, (B, N)."""
        if self.backbone.discrete:
            return F.cross_entropy(prediction.float().transpose(1, 2), target, reduction="none")
        if self.backbone.own_error:
            return self.backbone.shown_error(prediction, target)
        difference = prediction.float() - target.float()
        return (difference.abs() if self.norm == "l1" else difference.square()).mean(-1)

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Per-sample loss ``"loss"`` (B,) and pooled ``"features"``."""
        x = self.views(batch[self.data.modality], draws)[0].x
        mask = self.mask(self.backbone.grid(*x.shape[2:]), draws.fork("mask"))
        prediction, pooled = self.predict(x, mask)
        present = self.backbone.present(x)
        asked = mask if present is None else mask & present
        return {"loss": hidden_mean(self.error(prediction, self.target(x)), asked), "features": pooled.detach()}

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """Mean over samples."""
        total = encoded["loss"].mean()
        return Loss(total, {"reconstruction": total.detach()})

    @torch.no_grad()
    def judge(self, x: Tensor, draws: Draws) -> Judged:
        """Costs of the hidden tokens of whole samples."""
        mask, present = self.mask(self.backbone.grid(*x.shape[2:]), draws.fork("mask")), self.backbone.present(x)
        truth, words = self.target(x), self.backbone.discrete
        return Judged(self.error(self.predict(x, mask)[0], truth), mask if present is None else mask & present, truth,
                      self.measured_in(), None if words else self.error, self.causal, self.backbone.places(x))

    def measured_in(self) -> str:
        """The unit of the costs."""
        if self.backbone.discrete:
            return NATS
        if self.backbone.own_error:
            return CHAMFER if self.data.modality == "points" else "error of what a token shows"
        of = "a token standardised by itself" if self.norm_pix else "standardised values"
        return f"{'absolute' if self.norm == 'l1' else 'squared'} error of {of}"

    @torch.no_grad()
    def reconstruct(self, batch: Batch, step: Step) -> tuple[Tensor, Tensor, Tensor] | None:
        """Input, input with hidden patches at zero (the data's mean), and prediction pasted into the hidden part."""
        if self.backbone.discrete:
            return self._rewrite(batch, step)
        draws = Draws.of(batch, step)
        x = self.views(batch[self.data.modality], draws)[0].x
        grid = self.backbone.grid(*x.shape[2:])
        mask = self.mask(grid, draws.fork("mask"))
        prediction, _ = self.predict(x, mask)
        shown = self.backbone.shown(x)
        pixels = self.to_pixels(prediction.float(), shown)
        hidden = mask[..., None]
        corrupted = torch.where(hidden, self.backbone.shown_blank(shown), shown)
        output = torch.where(hidden, pixels, shown)
        return x, self.backbone.assemble(corrupted, x), self.backbone.assemble(output, x)

    def _rewrite(self, batch: Batch, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """The same in words (B, 1, T): hidden ones are -1 in the corrupted text, the likeliest word in the output."""
        draws = Draws.of(batch, step)
        x = self.views(batch[self.data.modality], draws)[0].x
        mask = self.mask(self.backbone.grid(*x.shape[2:]), draws.fork("mask"))
        words, guess = self.backbone.shown(x), self.predict(x, mask)[0].argmax(-1)
        corrupted = words.masked_fill(mask, -1)
        return x, corrupted[:, None], torch.where(mask, guess, words)[:, None]

    def to_pixels(self, prediction: Tensor, patches: Tensor) -> Tensor:
        """Turn predictions into normalised values (B, N, shown_width), for pictures only."""
        return self.backbone.shown_values(prediction)


def hidden_mean(error: Tensor, mask: Tensor) -> Tensor:
    """Mean of the error over each sample's hidden tokens. (B, N), (B, N) -> (B,)."""
    weight = mask.to(error.dtype)
    return (error * weight).sum(1) / weight.sum(1).clamp(min=1)
