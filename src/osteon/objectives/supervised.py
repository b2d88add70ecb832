"""Supervised training, the honest from-scratch control: softmax or per-class binary cross-entropy on labels.

The options of the recipe "ResNet strikes back" (Wightman et al. 2021, arXiv:2110.00476): binary cross-entropy on
thresholded mixed targets, Mixup and CutMix, RandAugment, LAMB.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.objective import Objective
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step
from osteon.views import Views, make_views
from osteon.views.mix import Mix

CARD = Card(
    kind="objective",
    name="supervised",
    papers=("ResNet strikes back: An improved training procedure in timm",),
    modalities=("image", "sound", "series", "text", "table", "graph", "points", "volume", "video", "several"),
    backbones=("tokens", "maps", "nodes"),
    differs="Options of the paper's recipe, off by default, since the default is the plain control. Repeated "
    "augmentation is a setting of training (repeats=3), LAMB another (optimizer=lamb). Its three procedures are "
    "recipes of osteon compare (--recipes rsb_a1,rsb_a2,rsb_a3), without their lengths, image sizes and mixed "
    "precision, which are the tournament's.",
    rows=(253,),
    labels=True,
    cost="1 forward per image",
)


def classification_loss(logits: Tensor, targets: Tensor, kind: str, weights: Tensor | None = None,
                        threshold: float = -1.0) -> Tensor:
    """Loss of (B, K) logits against soft targets (B, K), averaged over samples. -> ().

    Args:
        logits: unnormalised scores.
        targets: shares in [0, 1]; rows sum to 1 for ``"ce"``, any for ``"bce"``.
        kind: ``"ce"`` cross-entropy over classes; ``"bce"`` one binary cross-entropy a class, mean over classes.
        weights: (K,) weight of each class. ``"ce"``: a sample weighs as much as its targets' classes and the mean is
            weighted; ``"bce"``: each class's loss is multiplied by its weight.
        threshold: with ``"bce"``, targets above it become 1, so that both classes of a mixture are present
            (timm's reading of Wightman et al. 2021, sec. 2.1); negative = soft targets.
    """
    logits = logits.float()
    if kind == "bce":
        if threshold >= 0:
            targets = (targets > threshold).to(logits.dtype)
        per_class = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return (per_class * weights if weights is not None else per_class).mean()
    log_prob = logits.log_softmax(-1)
    weighted = targets if weights is None else targets * weights
    return -(weighted * log_prob).sum(-1).sum() / weighted.sum()


def regression_loss(told: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of (B, 1) outputs and (B, 1) targets, both in deviations of the training targets. -> ()."""
    return F.mse_loss(told.float(), targets.float())


class Supervised(Objective):
    """Train backbone and classifier on labels, or on numbers that are to be predicted.

    Numbers are learned by their squared error, in deviations from their mean over the training samples
    (``data.target``); the batch holds them so under ``"target"``.

    Args:
        backbone: network to train.
        data: what the data look like; must have classes or a target.
        loss: cross-entropy, or binary cross-entropy per class (the default for multi-label data).
        augment: ``crop_flip``, ``randaugment``, ``simclr`` or ``none``.
        magnitude: mean strength of RandAugment, 0 to 10.
        crop_min: smallest area share of the random crop; None = 0.4 of images, the modality's own of others.
        flip: mirror left-right at random; None = images are, samples of other modalities are not.
        mixup: Beta parameter of Mixup; 0 = off.
        cutmix: Beta parameter of CutMix; 0 = off.
        threshold: targets above it become 1 under binary cross-entropy; negative = soft.
        smoothing: label smoothing.
        weighting: weight classes by inverse frequency (``auto``) or not (``none``).
        head_only: train the classifier alone and leave the backbone as it is.
    """

    any_size: ClassVar[bool] = True
    recipe: ClassVar = {"optimizer": "adamw", "lr": 2e-3, "lr_per": 256, "lr_rule": "sqrt", "weight_decay": 0.05,
                        "warmup": 0.05}

    def __init__(self, backbone: Backbone, data: DataSpec, *, loss: Literal["auto", "ce", "bce"] = "auto",
                 augment: Literal["crop_flip", "randaugment", "simclr", "none"] = "crop_flip",
                 magnitude: float = 7.0, crop_min: float | None = None, flip: bool | None = None,
                 mixup: float = 0.0, cutmix: float = 0.0, threshold: float = -1.0,
                 smoothing: float = 0.0, weighting: Literal["auto", "none"] = "none",
                 head_only: bool = False) -> None:
        super().__init__(backbone, data)
        if data.outputs < 1:
            raise UsageError("Supervised training needs labelled data.")
        self.loss: Literal["ce", "bce", "mse"] = ("bce" if data.multi_label else "ce") if loss == "auto" else loss
        if data.multi_label and self.loss == "ce":
            raise UsageError("Cross-entropy over classes needs one label a sample.", fix="Use loss=bce.")
        if data.target is not None:
            self.loss = "mse"
            if loss != "auto" or smoothing or threshold >= 0 or mixup or cutmix or weighting != "none":
                raise UsageError("Numbers are learned by their squared error: shares of classes have no meaning.",
                                 where="loss, smoothing, threshold, mixup, cutmix, weighting", fix="Leave them out.")
        self.views = _views(augment, data, crop_min, flip, magnitude)
        self.notes = list(self.views.notes)
        if (mixup or cutmix) and (backbone.discrete or backbone.own_error or len(data.extent) != 2):
            raise UsageError(f"Mixing two samples of {data.modality} by their values or areas has no meaning.",
                             where="mixup, cutmix", fix="Leave mixup and cutmix at 0.")
        self.mix = Mix(mixup_alpha=mixup, cutmix_alpha=cutmix) if mixup or cutmix else None
        self.threshold, self.smoothing, self.head_only = threshold, smoothing, head_only
        self.head = nn.Linear(backbone.dim, data.outputs)
        nn.init.zeros_(self.head.bias)
        nn.init.normal_(self.head.weight, std=0.01)
        weights = torch.tensor(data.class_weights) if weighting == "auto" and data.class_weights else None
        self.register_buffer("class_weights", weights, persistent=False)
        if head_only:
            backbone.requires_grad_(False)

    class_weights: Tensor | None

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Logits and (mixed) targets of one view."""
        x = self.views(batch[self.data.modality], draws)[0].x
        targets = self.targets(batch["label"]) if self.data.target is None else batch["target"].float()[:, None]
        if self.mix is not None:
            x, targets = self.mix(x, targets, draws, self._partners)
        if self.head_only:
            self.backbone.eval()
        pooled = self.backbone(x).pooled
        return {"logits": self.head(pooled), "targets": targets, "features": pooled.detach()}

    def _partners(self, rows: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Views and targets of other rows of the global batch."""
        return (self.views(draws.take(self.data.modality, rows), draws)[0].x, self.targets(draws.take("label", rows)))

    def targets(self, label: Tensor) -> Tensor:
        """Labels as smoothed shares. (B,) int or (B, K) -> (B, K) float."""
        k = self.data.num_classes
        hard = label.float() if label.dim() == 2 else F.one_hot(label.long(), k).float()
        return hard if not self.smoothing else hard * (1 - self.smoothing) + self.smoothing / k

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """Loss and training accuracy: of the mixed batch's main label or, with several labels, of every yes and no."""
        if self.data.target is not None:
            total = regression_loss(encoded["logits"], encoded["targets"])
            return Loss(total, {self.loss: total.detach()})
        total = classification_loss(encoded["logits"], encoded["targets"], self.loss, self.class_weights,
                                    self.threshold)
        logits, targets = encoded["logits"].detach(), encoded["targets"]
        right = (logits > 0) == (targets > 0.5) if self.data.multi_label else logits.argmax(-1) == targets.argmax(-1)
        return Loss(total, {self.loss: total.detach(), "train_accuracy": right.float().mean()})

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Class scores (B, K) of normalised images, or predicted numbers (B,) float64 in the unit of the targets."""
        logits = self.head(self.backbone(x).pooled).float()
        if self.data.target is not None:
            return logits[:, 0].cpu().double() * self.data.target[1] + self.data.target[0]
        return logits.sigmoid() if self.data.multi_label else logits.softmax(-1)


def _views(augment: str, data: DataSpec, crop_min: float | None, flip: bool | None, magnitude: float) -> Views:
    if augment == "none":
        return make_views("none", data)
    if augment == "randaugment":
        return make_views("supervised", data, min_scale=crop_min, flip=flip, magnitude=magnitude,
                          usual={"min_scale": 0.4})
    return make_views(augment, data, min_scale=crop_min, flip=flip, n_views=1, usual={"min_scale": 0.4})
