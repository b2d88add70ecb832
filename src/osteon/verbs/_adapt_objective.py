"""Supervised training of an adapter, as an objective for the training loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from osteon.core.errors import UsageError
from osteon.objectives.supervised import classification_loss, regression_loss
from osteon.parts.adapter import Adapter
from osteon.parts.objective import Objective
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step
from osteon.views import make_views

if TYPE_CHECKING:
    from osteon.backbones import Backbone


class AdaptObjective(Objective):
    """Cross-entropy of an adapter's logits on augmented views, plus what the adapter itself penalises.

    Numbers are learned by their squared error; the batch holds them under ``"target"``, in deviations from their mean
    over the training samples.

    Args:
        adapter: what is trained.
        data: what the data look like, classes or target included.
        augment: ``crop_flip``, ``randaugment`` or ``none``.
        crop_min: smallest share of the random crop; None = 0.6 of images, the modality's own of others.
        flip: mirror left-right at random; None = images are, samples of other modalities are not.
        smoothing: label smoothing.
        weighting: weight classes by inverse frequency (``auto``) or not (``none``).
    """

    recipe: ClassVar[dict[str, Any]] = {}

    def __init__(self, adapter: Adapter, data: DataSpec, *, augment: Literal["crop_flip", "randaugment", "none"] =
                 "crop_flip", crop_min: float | None = None, flip: bool | None = None, smoothing: float = 0.0,
                 weighting: Literal["auto", "none"] = "none") -> None:
        # The adapter stands where other objectives have their backbone, so that layers are numbered as usual.
        super().__init__(cast("Backbone", adapter), data)
        if not 0 <= smoothing < 1:
            raise UsageError(f"smoothing lies in [0, 1), not {smoothing}.", where="--set smoothing")
        recipe = {"randaugment": "supervised"}.get(augment, augment)
        one: dict[str, Any] = {"n_views": 1} if augment == "crop_flip" else {}
        self.views = (make_views("none", data) if augment == "none"
                      else make_views(recipe, data, min_scale=crop_min, flip=flip, usual={"min_scale": 0.6}, **one))
        self.smoothing = smoothing
        if data.target is not None and (smoothing or weighting != "none"):
            raise UsageError("Numbers have no shares of classes.", where="--set smoothing, weighting",
                             fix="Leave them out.")
        self.notes = list(self.views.notes)
        weights = torch.tensor(data.class_weights) if weighting == "auto" and data.class_weights else None
        self.register_buffer("class_weights", weights, persistent=False)

    class_weights: Tensor | None

    @property
    def adapter(self) -> Adapter:
        """What is trained."""
        return cast(Adapter, self.backbone)

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Logits (B, K) and targets (B, K) of one view."""
        features = self.adapter.encode(self.views(batch[self.data.modality], draws)[0].x)
        targets = self.targets(batch["label"]) if self.data.target is None else batch["target"].float()[:, None]
        return {"logits": self.adapter.head(features), "targets": targets, "features": features.detach()}

    def targets(self, label: Tensor) -> Tensor:
        """Labels as smoothed shares. (B,) int or (B, K) -> (B, K) float."""
        k = self.data.num_classes
        hard = label.float() if label.dim() == 2 else F.one_hot(label.long(), k).float()
        return hard * (1 - self.smoothing) + self.smoothing / k if self.smoothing else hard

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """Loss over the batch: cross-entropy, or one binary cross-entropy a class where samples have several."""
        logits, targets = encoded["logits"], encoded["targets"]
        kind = "mse" if self.data.target is not None else "bce" if self.data.multi_label else "ce"
        total = (regression_loss(logits, targets) if kind == "mse" else
                 classification_loss(logits, targets, kind, self.class_weights))
        parts = {kind: total.detach()}
        extra = self.adapter.penalty()
        if extra is not None:
            total, parts["penalty"] = total + extra, extra.detach()
        if kind == "mse":
            return Loss(total, parts)
        right = (logits > 0) == (targets > 0.5) if kind == "bce" else logits.argmax(-1) == targets.argmax(-1)
        return Loss(total, {**parts, "train_accuracy": right.float().mean()})

    def after_step(self, step: Step) -> None:
        """Let the adapter update what gradient does not train."""
        self.adapter.after_step(step)
