"""Say at every moment what the near future will be like as a whole: its mean, spread and range, or its words.

Generative summary pretraining after Kumar et al. 2023, "SANSformers: Self-Supervised Forecasting in Electronic Health
Records with Attention-Free Models".
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.objective import Objective
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step
from osteon.parts.words import PAD
from osteon.views import normalise

CARD = Card(
    kind="objective",
    name="future_summary",
    papers=("SANSformers: Self-Supervised Forecasting in Electronic Health Records with Attention-Free Models",),
    modalities=("series", "text"),
    differs="The pre-training alone: the paper's attention-free mixers over visits and within a visit are left out, "
    "any causal token backbone takes their place. The public code has no pre-training, so that the "
    "statistics, the loss and the supervision at every token are ours: mean, deviation, least and greatest "
    "value of each channel, or the counts of words; a horizon in tokens instead of time.",
    rows=(372,),
    backbones=("tokens",),
    cost="1 causal forward on all tokens",
)

#: What is said of the values of a channel in the future window, in this order.
STATISTICS = ("mean", "deviation", "least", "greatest")


def future_windows(tokens: Tensor, horizon: int) -> Tensor:
    """What tokens t + 1 to t + horizon show, for each t that has so many after it.

    (B, N, ...) -> (B, N - h, ..., h).
    """
    return tokens.unfold(1, horizon, 1)[:, 1:]


def summarise(values: Tensor) -> Tensor:
    """Statistics over the last side, :data:`STATISTICS` of each channel: (..., C, V) -> (..., C * 4)."""
    deviation = values.std(-1, unbiased=False)
    return torch.stack([values.mean(-1), deviation, values.amin(-1), values.amax(-1)], -1).flatten(-2)


class FutureSummary(Objective):
    """From tokens 0 to t regress statistics of tokens t + 1 to t + h, at every t with a whole future window.

    Of words, it is their share in the future window: the cross-entropy between that and the predicted distribution.
    Padding of texts is neither counted nor asked.

    Args:
        backbone: network to train; becomes causal.
        data: what the data look like.
        horizon: tokens of the future window; 0 = a quarter of a sample.
    """

    additive: ClassVar[bool] = True
    recipe: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.01, "warmup": 0.05,
                        "clip": 10.0}

    def __init__(self, backbone: Backbone, data: DataSpec, *, horizon: int = 0) -> None:
        super().__init__(backbone, data)
        tokens = math.prod(backbone.grid(*data.extent))
        self.horizon = horizon or max(1, tokens // 4)
        if len(data.extent) != 1 or not 1 <= self.horizon < tokens:
            raise UsageError(f"A sample of {tokens} tokens on one side has no future of {self.horizon} tokens.",
                             where="horizon", fix="Set a shorter horizon or smaller patches.")
        backbone.make_causal()
        width = backbone.shown_width if backbone.discrete else data.channels * len(STATISTICS)
        self.head = nn.Linear(backbone.token_dim, width)
        self.notes.append(f"future window: {self.horizon} of {tokens} tokens "
                          + ("(as asked)" if horizon else "(rule: a quarter)"))

    def targets(self, x: Tensor) -> Tensor:
        """Statistics (B, N - h, C * 4) of the windows after each token, or their words (B, N - h, h)."""
        shown = self.backbone.shown(x)
        windows = future_windows(shown, self.horizon)
        if self.backbone.discrete:
            return windows
        return summarise(windows.unflatten(2, (-1, self.data.channels)).transpose(2, 3).flatten(3))

    def errors(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Error of each token (B, N - h): mean squared over statistics, or cross-entropy over the window's words."""
        if not self.backbone.discrete:
            return (prediction.float() - target.float()).square().mean(-1)
        counts = (target != PAD).float()
        asked = -prediction.float().log_softmax(-1).gather(-1, target)
        return (asked * counts).sum(-1) / counts.sum(-1).clamp(min=1)

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Per-sample error ``"loss"`` (B,) and pooled ``"features"``."""
        x = normalise(batch[self.data.modality], self.data)
        seen = self.backbone(x)
        target = self.targets(x)
        error = self.errors(self.head(seen.tokens[:, :-self.horizon]), target)
        asked = torch.ones_like(error) if not self.backbone.discrete else (target != PAD).any(-1).float()
        return {"loss": (error * asked).sum(1) / asked.sum(1).clamp(min=1), "features": seen.pooled.detach()}

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """Mean over samples."""
        total = encoded["loss"].mean()
        return Loss(total, {"summary": total.detach()})
