"""SSLD: a small student learns only to give a teacher's soft class shares, so unlabelled images serve.

Cui et al. 2021, arXiv:2103.05959, section 3. With ``loss=ce``: the third step of SimCLRv2 (Chen et al. 2020,
arXiv:2006.10029, section 2.3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones import Backbone, build_backbone
from osteon.compressors._distil import RECIPE, Distil, need_training_data
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.calibration import Calibration
from osteon.parts.compressor import Budget, Compressor, Fit, search
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step

if TYPE_CHECKING:
    from collections.abc import Mapping

CARD = Card(
    kind="compressor",
    name="ssld",
    papers=("Beyond Self-Supervision: A Simple Yet Effective Network Distillation Alternative to Improve Backbones",
            "Big Self-Supervised Models are Strong Semi-Supervised Learners"),
    modalities=("image", "sound", "series", "text", "table", "graph", "points", "volume", "video", "several"),
    differs="The default loss is the released code's symmetric KL over two, which the paper calls JS; js is the "
    "true, bounded divergence. The teacher's classes are those of its head (an adapted run), else of a linear "
    "classifier on its features fitted to the calibration labels, else clusters of its features. No mining of an "
    "extra pool and no short fine-tuning at the end: give the pool as data, and use adapt. The student is a thinner "
    "network of the same kind.",
    rows=(85, 411),
    cost="2 forwards and 1 backward per image",
)

Divergence = Literal["jeffreys", "js", "ce"]


class SSLD(Compressor):
    """Distil into a thinner network of the same family that is trained from scratch, without any label term.

    Args:
        student: ``auto``, or the name of one of osteon's backbones.
        loss: ``jeffreys`` (symmetric KL over two), ``js`` (Jensen-Shannon), or ``ce`` (SimCLRv2).
        temperature: softens both outputs; ``ce`` is scaled with its square.
        clusters: classes where there is neither a head nor labels.
        augment: views to train on: ``crop_flip`` or ``none``.
    """

    recipe: ClassVar[dict[str, Any]] = {**RECIPE, "steps": 1000, "weight_decay": 0.05}

    def __init__(self, *, student: str = "auto", loss: Divergence = "jeffreys", temperature: float = 1.0,
                 clusters: int = 64, augment: Literal["crop_flip", "none"] = "crop_flip") -> None:
        super().__init__()
        if temperature <= 0 or clusters < 2:
            raise UsageError("temperature is above 0 and there are at least 2 clusters.", where="ssld")
        self.student, self.loss, self.temperature = student, loss, temperature
        self.clusters, self.augment = clusters, augment

    def compress(self, backbone: Backbone, budget: Budget, calibration: Calibration, fit: Fit | None,
                 seed: int) -> Backbone:
        """Choose the student's width, find the teacher's classes, train."""
        trainer = self.trainer(fit)
        need_training_data(calibration)

        def make(strength: float) -> Backbone:
            torch.manual_seed(seed)
            return thinner(backbone, strength, self.student).eval()

        result, _ = search(self.name, backbone, budget, make)
        head = self.classes(backbone, calibration, seed)
        self.notes.append(f"student: {result.name} of width {result.dim}, {head.out_features} classes")
        trainer(SoftLabels(result, backbone, head, calibration.spec, self), self.recipe)
        return result

    def classes(self, teacher: Backbone, calibration: Calibration, seed: int) -> nn.Linear:
        """The linear map from the teacher's features to the classes the student is to tell apart."""
        if isinstance(calibration.head, nn.Linear):
            self.notes.append("classes: those of the run's own head")
            return calibration.head
        features = calibration.features(teacher)
        labels = calibration.labels
        if labels is not None and labels.ndim == 1:
            self.notes.append("classes: a linear classifier on the teacher's features, fitted to calibration labels")
            return linear_classifier(features, torch.from_numpy(labels).long())
        count = min(self.clusters, len(features) // 2)
        calibration.need(4, "clustering")
        self.notes.append(f"classes: {count} clusters of the teacher's features, since there are no single labels")
        return cluster_classifier(features, count, seed)


class SoftLabels(Distil):
    """Divergence of the student's class shares from the teacher's, a sample at a time."""

    def __init__(self, student: Backbone, teacher: Backbone, head: nn.Linear, data: DataSpec, method: SSLD) -> None:
        super().__init__(student, teacher, data, method.augment)
        self.teacher_head = nn.Linear(head.in_features, head.out_features).requires_grad_(False)
        self.teacher_head.load_state_dict(head.state_dict())
        self.student_head = nn.Linear(student.dim, head.out_features)
        self.loss, self.temperature = method.loss, method.temperature

    def companions(self) -> list[nn.Module]:
        """The teacher and its classifier."""
        return [self.teacher, self.teacher_head]

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """One divergence a sample, (B,)."""
        mine, wanted, _ = self.look(batch, draws)
        with torch.no_grad():
            target = self.teacher_head(wanted.pooled)
        value = divergence(self.student_head(mine.pooled), target, self.loss, self.temperature)
        return {"divergence": value, "features": mine.pooled.detach()}

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """Their mean."""
        total = encoded["divergence"].mean()
        return Loss(total, {self.loss: total.detach()})


def divergence(student: Tensor, teacher: Tensor, kind: Divergence, temperature: float = 1.0) -> Tensor:
    """How far two sets of class shares lie apart, a row at a time: (B, K), (B, K) logits -> (B,).

    ``jeffreys``: [KL(t||s) + KL(s||t)] / 2, unbounded. ``js``: [KL(t||m) + KL(s||m)] / 2 with m their mean, at most
    ln 2. ``ce``: T^2 times the cross-entropy of the student to the teacher, at least T^2 times the teacher's entropy.
    """
    s, t = F.log_softmax(student / temperature, -1), F.log_softmax(teacher / temperature, -1)
    if kind == "ce":
        return -temperature**2 * (t.exp() * s).sum(-1)
    if kind == "jeffreys":
        return ((t.exp() - s.exp()) * (t - s)).sum(-1) / 2
    m = torch.logaddexp(s, t) - np.log(2)
    return ((t.exp() * (t - m)).sum(-1) + (s.exp() * (s - m)).sum(-1)) / 2


def thinner(backbone: Backbone, strength: float, student: str) -> Backbone:
    """A fresh network of the backbone's kind with widths times ``1 - strength``, in steps that its heads allow.

    Raises:
        UsageError: a network of another library, for which a student must be named.
    """
    size: dict[str, Any] = {"channels": backbone.channels, "size": backbone.size}
    if student != "auto":
        return build_backbone(student, **size)
    options: Mapping[str, Any] = backbone.options
    if "heads" in options and "dim" in options:
        heads = int(options["heads"])
        each = int(options["dim"]) // heads
        step = 4 // int(np.gcd(4, heads))
        width = max(step, round(each * (1 - strength) / step) * step)
        return build_backbone(backbone.name, **size, **{**options, "dim": heads * width})
    if "widths" in options:
        widths = [max(1, round(w * (1 - strength))) for w in options["widths"]]
        return build_backbone(backbone.name, **size, **{**options, "widths": widths})
    raise UsageError(f"For {backbone.name} there is no rule for a thinner student.", where="student",
                     fix="Name one: --set student=vit_tiny, or resnet_tiny.")


def linear_classifier(features: Tensor, labels: Tensor, *, decay: float = 1e-3) -> nn.Linear:
    """Multinomial logistic regression on standardised features, folded into one linear map. (N, D), (N,) -> D -> K."""
    mean, std = features.mean(0), features.std(0, unbiased=False).clamp(min=1e-6)
    x, classes = (features - mean) / std, int(labels.max()) + 1
    head = nn.Linear(x.shape[1], max(2, classes))
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(head(x), labels) + decay / 2 * head.weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[arg-type]
    with torch.no_grad():
        head.weight.div_(std)
        head.bias.sub_(head.weight @ mean)
    return head


def cluster_classifier(features: Tensor, count: int, seed: int) -> nn.Linear:
    """Clusters as classes: ``softmax(-|f - c|^2 / t)``, linear in f, with t the mean squared distance inside."""
    from sklearn.cluster import KMeans

    found = KMeans(count, n_init=2, random_state=seed).fit(features.numpy())
    centres = torch.from_numpy(found.cluster_centers_).float()
    heat = max(float(found.inertia_) / len(features), 1e-6)
    head = nn.Linear(features.shape[1], count)
    with torch.no_grad():
        head.weight.copy_(2 * centres / heat)
        head.bias.copy_(-centres.square().sum(1) / heat)
    return head
