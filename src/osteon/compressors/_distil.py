"""What compressors that train share: a small network learns to give a frozen one's features."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from osteon.core.errors import UsageError
from osteon.parts.calibration import Calibration
from osteon.parts.compressor import Fit
from osteon.parts.objective import Objective
from osteon.parts.real_tokens import RealTokens
from osteon.parts.types import Batch, DataSpec, Draws, Features, Loss, Step
from osteon.views import make_views

if TYPE_CHECKING:
    from osteon.backbones import Backbone

#: defaults of training that repairs; the features are those of the teacher, so collapse is the teacher's
RECIPE: dict[str, Any] = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.0, "warmup": 0.05, "steps": 300,
                          "collapse_stop": False}


class Distil(Objective):
    """Student and frozen teacher see the same view; the teacher stays in evaluation mode and gets no gradient.

    Args:
        student: what trains.
        teacher: what it is to resemble; copied.
        data: what the data look like.
        augment: ``crop_flip`` or ``none``.
        spread: variance of the teacher's pooled features and of its tokens over some samples: the units of errors.
    """

    additive = True

    def __init__(self, student: Backbone, teacher: Backbone, data: DataSpec, augment: str,
                 spread: tuple[float, float] = (1.0, 1.0)) -> None:
        super().__init__(student, data)
        self.teacher = copy.deepcopy(teacher).requires_grad_(False).eval()
        self.spread = spread
        self.views = (make_views("none", data) if augment == "none"
                      else make_views("crop_flip", data, min_scale=None, usual={"min_scale": 0.6}, n_views=1))

    def train(self, mode: bool = True) -> Distil:
        """Training mode for the student alone."""
        super().train(mode)
        self.teacher.eval()
        return self

    def companions(self) -> list[nn.Module]:
        """The teacher."""
        return [self.teacher]

    def look(self, batch: Batch, draws: Draws) -> tuple[Features, Features, Tensor]:
        """Features of student and teacher for one view, and the view."""
        x = self.views(batch[self.data.modality], draws)[0].x
        with torch.no_grad():
            wanted = self.teacher(x)
        return self.backbone(x), wanted, x


class MatchFeatures(Distil):
    """Mean squared error between the student's and the teacher's tokens and pooled features, a sample at a time."""

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """One error a sample, (B,)."""
        mine, wanted, x = self.look(batch, draws)
        error = feature_error(mine, wanted, self.spread, RealTokens(self.teacher, x))
        return {"error": error, "features": mine.pooled.detach()}

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """Their mean, and what a method adds."""
        error = encoded["error"].mean()
        parts, total = {"features": error.detach()}, error
        for name, extra in self.extras(step).items():
            total, parts[name] = total + extra, extra.detach()
        return Loss(total, parts)

    def extras(self, step: Step) -> dict[str, Tensor]:
        """Further terms of the loss, by name."""
        return {}


def feature_error(mine: Features, wanted: Features, spread: tuple[float, float], real: RealTokens) -> Tensor:
    """Squared error a sample over the spread of pooled features and, where both have equally many, of tokens. (B,)."""
    error = (mine.pooled - wanted.pooled).square().mean(1) / spread[0]
    if mine.tokens.shape == wanted.tokens.shape:
        error = error + real.mean((mine.tokens - wanted.tokens).square(), real.tokens).mean(1) / spread[1]
    return error


@torch.no_grad()
def spread_of(teacher: Backbone, calibration: Calibration) -> tuple[float, float]:
    """Mean variance of the teacher's pooled features and tokens over the first calibration batch."""
    batch = next(calibration.batches())
    found = teacher.eval()(batch)
    there = RealTokens(teacher, batch).tokens
    tokens = found.tokens.flatten(0, 1) if there is None else found.tokens[there]
    values = [float(x.var(0, unbiased=False).mean()) for x in (found.pooled, tokens)]
    return max(values[0], 1e-6), max(values[1], 1e-6)


def match_features(student: Backbone, teacher: Backbone, calibration: Calibration, fit: Fit,
                   recipe: Mapping[str, Any], augment: str) -> None:
    """Train a student in place to give a teacher's features."""
    need_training_data(calibration)
    for parameter in student.parameters():
        parameter.requires_grad_(True)
    fit(MatchFeatures(student, teacher, calibration.spec, augment, spread_of(teacher, calibration)), recipe)


def need_training_data(calibration: Calibration) -> None:
    """Insist on samples to train on.

    Raises:
        UsageError: there are none, or too few.
    """
    if calibration.stored is None:
        raise UsageError("This method trains; the calibration holds no samples to train on.", where="calibration")
    calibration.need(2, "training")

