"""Frame prediction: the second part of a clip, pixel by pixel and all frames at once, from the first.

The training of "PredFormer: Transformers Are Effective Spatial-Temporal Predictive Learners", Tang et al. 2024,
section 3, for any Transformer that reads clips. Shape letters: B batch, C channels, T frames known, S frames ahead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.objective import Objective
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step
from osteon.parts.windows import roll_out
from osteon.views import normalise

CARD = Card(
    kind="objective",
    name="frame_prediction",
    papers=("PredFormer: Transformers Are Effective Spatial-Temporal Predictive Learners",),
    modalities=("video",),
    differs="Pixels are predicted in units of the data's deviation (the paper: in [0, 1]), so the loss is the paper's "
    "times a constant. Known and predicted frames share a clip, half each unless horizon says otherwise. Warm-up and "
    "cosine of the run's own length instead of OneCycle. The network may be any token backbone on clips; the paper's "
    "is `predformer_*`.",
    rows=(51,),
    backbones=("tokens",),
    cost="1 forward on the known frames for every T frames ahead",
)


def copy_last(past: Tensor, steps: int) -> Tensor:
    """The last frame again and again: (B, C, T, H, W) -> (B, C, steps, H, W)."""
    return past[:, :, -1:].expand(-1, -1, steps, -1, -1)


def extrapolate(past: Tensor, steps: int) -> Tensor:
    """Every pixel goes on changing as between the last two frames: (B, C, T, H, W), T >= 2 -> (B, C, steps, H, W)."""
    ahead = torch.arange(1, steps + 1, dtype=past.dtype, device=past.device).view(-1, 1, 1)
    return past[:, :, -1:] + ahead * (past[:, :, -1:] - past[:, :, -2:-1])


def split_clip(extent: tuple[int, ...], horizon: int) -> tuple[int, int]:
    """Frames known and frames ahead of a clip; a horizon of 0 is half of it."""
    if len(extent) != 3:
        raise UsageError("Clips are what frames are predicted of, samples with three sides.", where="frame_prediction")
    ahead = horizon or extent[0] // 2
    if ahead < 1 or extent[0] - ahead < 2:
        raise UsageError(f"A clip of {extent[0]} frames does not hold two known frames and {ahead} ahead.",
                         where="horizon", fix="Set more frames (--set frames=...) or a shorter horizon.")
    return extent[0] - ahead, ahead


class FramePrediction(Objective):
    """Predict the last ``horizon`` frames of a clip from those before.

    As many frames are predicted as are known; a shorter horizon is cut from them, a longer one is reached by reading
    one's own predictions, in training too. Beside the error the log shows what two forecasts cost that know nothing:
    the last frame copied, and every pixel extrapolated linearly.

    Args:
        backbone: network to train, built for the known frames.
        data: what the data look like; a clip holds known frames and those ahead.
        horizon: frames that are predicted; 0 = half of the clip.
    """

    additive: ClassVar[bool] = True
    recipe: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.01, "warmup": 0.1}

    def __init__(self, backbone: Backbone, data: DataSpec, *, horizon: int = 0) -> None:
        super().__init__(backbone, data)
        self.context, self.horizon = split_clip(data.extent, horizon)
        backbone.grid(self.context, *data.extent[1:])
        self.head = nn.Sequential(nn.LayerNorm(backbone.token_dim), nn.Linear(backbone.token_dim, backbone.shown_width))
        self.notes.append(f"predicts: {self.horizon} frames from {self.context} "
                          + ("(as asked)" if horizon else "(rule: half of the clip)"))

    @classmethod
    def seen(cls, extent: tuple[int, ...], options: Mapping[str, Any]) -> tuple[int, ...]:
        """The known frames."""
        return (split_clip(extent, int(options.get("horizon", 0)))[0], *extent[1:])

    def ahead(self, past: Tensor) -> tuple[Tensor, Tensor]:
        """The T frames that follow T known ones, (B, C, T, H, W) -> the same, and pooled features (B, D)."""
        features = self.backbone(past)
        return self.backbone.assemble(self.head(features.tokens).float(), past), features.pooled

    def predict(self, past: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Any number of frames ahead, (B, C, T, H, W) -> (B, C, steps, H, W), and pooled features of the known."""
        pooled = list[Tensor]()

        def on(known: Tensor) -> Tensor:
            frames, features = self.ahead(known.movedim(-1, 2))
            pooled.append(features)
            return frames.movedim(2, -1)

        return roll_out(on, past.movedim(2, -1), steps).movedim(-1, 2), pooled[0]

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Per-sample errors ``"loss"``, ``"copy_last"`` and ``"linear"`` (B,), and pooled ``"features"``."""
        x = normalise(batch[self.data.modality], self.data)
        past, future = x[:, :, :self.context], x[:, :, self.context:]
        guess, pooled = self.predict(past, self.horizon)
        error = {"loss": guess, "copy_last": copy_last(past, self.horizon), "linear": extrapolate(past, self.horizon)}
        return {**{name: (each - future).square().mean((1, 2, 3, 4)) for name, each in error.items()},
                "features": pooled.detach()}

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """Mean over samples."""
        total = encoded["loss"].mean()
        return Loss(total, {"mse": total.detach(), **{k: encoded[k].mean().detach() for k in ("copy_last", "linear")}})

    @torch.no_grad()
    def forecast(self, past: Tensor, steps: int) -> Tensor:
        """Frames ahead of known ones in normalised values, (B, C, T, H, W) -> (B, C, steps, H, W)."""
        return self.predict(past, steps)[0]

    def exported_data(self) -> DataSpec:
        """Clips of as many frames as are known."""
        shape = (self.context, *self.data.extent[1:])
        return replace(self.data, shape=shape, size=max(shape))

    def kept(self) -> dict[str, Tensor]:
        """The head."""
        return {f"head.{name}": value for name, value in self.head.state_dict().items()}

    @torch.no_grad()
    def reconstruct(self, batch: Batch, step: Step) -> tuple[Tensor, Tensor, Tensor] | None:
        """The clip, its known frames with the last one copied, and its known frames with those predicted."""
        x = normalise(batch[self.data.modality], self.data)
        past = x[:, :, :self.context]
        return (x, torch.cat([past, copy_last(past, self.horizon)], 2),
                torch.cat([past, self.forecast(past, self.horizon)], 2))
