"""Forecast patch after patch: at every token of a series, the steps that follow, from what came before alone.

The pre-training of Liu et al. 2024, "Generative Pretrained Hierarchical Transformer for Time Series Forecasting"
(GPHT): with the backbone ``gpht_*`` its hierarchy, with a ViT a single causal stage. Any horizon is reached by reading
one's own forecasts.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from osteon.backbones import Backbone
from osteon.backbones.gpht import GPHT
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.objective import Objective
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step
from osteon.parts.windows import own_unit_data, own_units, roll_out
from osteon.views import normalise

CARD = Card(
    kind="objective",
    name="next_patch",
    papers=("Generative Pretrained Hierarchical Transformer for Time Series Forecasting",),
    modalities=("series",),
    differs="One source instead of a mixture of data sets. The window's last token is only a target, so that windows "
    "hold one token more than the context. As in the authors' code a context's mean and deviation are those of all its "
    "tokens, so that only the last token's forecast knows nothing of what it forecasts: its error is logged by itself. "
    "Fine-tuning the forecast heads alone is not part of it. With a ViT there is a single stage, channels are read "
    "together, and the head predicts the patches of all of them. AdamW, warm-up and cosine instead of Adam with the "
    "rate halved every epoch.",
    rows=(386,),
    backbones=("tokens",),
    cost="1 causal forward, of every stage of the hierarchy",
)


class NextPatch(Objective):
    """From tokens 0 to n of a series predict the steps of token n + 1, for every n at once.

    The context is normalised a channel by its own mean and deviation, which forecasts get back.

    Args:
        backbone: network to train; becomes causal.
        data: what the data look like; a window is a context and one token.
    """

    additive: ClassVar[bool] = True
    # The authors' 1e-4 at batch 1024 and width 512; narrower networks take the larger step.
    recipe: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.0, "warmup": 0.05, "clip": 1.0}

    def __init__(self, backbone: Backbone, data: DataSpec) -> None:
        super().__init__(backbone, data)
        if len(data.extent) != 1 or math.prod(backbone.grid(*data.extent)) < 2:
            raise UsageError("Samples with one side and at least two tokens are forecast.", where="next_patch",
                             fix="Use smaller patches, e.g. --set backbone.patch=8.")
        backbone.make_causal()
        self.patch = backbone.stride
        self.register_buffer("context", torch.tensor(data.extent[0] - self.patch))
        self.head = None if isinstance(backbone, GPHT) else nn.Linear(backbone.token_dim, backbone.shown_width)
        self.notes.append(f"forecasts: {self.patch} steps a token, from {int(self.context)} (rule: the window without "
                          "its last token)")

    context: Tensor

    def following(self, past: Tensor) -> tuple[Tensor, Tensor]:
        """What each token says of the next one, (B, C, N, patch), in the units of (B, C, L); pooled features (B, D)."""
        mean, std = own_units(past)
        z = (past - mean) / std
        if isinstance(self.backbone, GPHT):
            states, stages = self.backbone.read(z)
            ahead, pooled = torch.stack(stages).sum(0), self.backbone.join(states).mean(1)
        else:
            assert self.head is not None
            seen = self.backbone(z)
            ahead = self.head(seen.tokens).unflatten(-1, (self.patch, -1)).permute(0, 3, 1, 2)
            pooled = seen.pooled
        return ahead.float() * std[..., None] + mean[..., None], pooled

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Per sample the squared error of all forecasts ``"loss"`` and of the last token's ``"last"``, each (B,)."""
        x = normalise(batch[self.data.modality], self.data)
        ahead, pooled = self.following(x[..., :-self.patch])
        error = (ahead - x[..., self.patch:].unflatten(-1, (-1, self.patch))).square()  # (B, C, N, patch)
        return {"loss": error.mean((1, 2, 3)), "last": error[:, :, -1].mean((1, 2)).detach(),
                "features": pooled.detach()}

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """Mean over samples."""
        total = encoded["loss"].mean()
        return Loss(total, {"mse": total.detach(), "last": encoded["last"].mean().detach()})

    @torch.no_grad()
    def forecast(self, past: Tensor, steps: int) -> Tensor:
        """Steps ahead of contexts in any units of each channel: (B, C, L), L the context -> (B, C, steps)."""
        return roll_out(lambda known: self.following(known)[0][:, :, -1], past, steps)

    def exported_data(self) -> DataSpec:
        """Windows of the context's length in their own units."""
        return own_unit_data(self.data, int(self.context))

    def kept(self) -> dict[str, Tensor]:
        """The head, where the backbone has none of its own, and the context."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("backbone.")}

    @torch.no_grad()
    def reconstruct(self, batch: Batch, step: Step) -> tuple[Tensor, Tensor, Tensor] | None:
        """The window, its last token at the context's mean, and its last token as forecast."""
        x = normalise(batch[self.data.modality], self.data)
        past = x[..., :-self.patch]
        flat = past.mean(-1, keepdim=True).expand(-1, -1, self.patch)
        return x, torch.cat([past, flat], -1), torch.cat([past, self.forecast(past, self.patch)], -1)
