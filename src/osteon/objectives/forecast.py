"""Direct forecasting: the end of each window is predicted at once from its beginning.

The pre-training of Ekambaram et al. 2024 (Tiny Time Mixers, arXiv:2401.03955, section 3) for any token backbone; with a
ViT it is a supervised patch Transformer (Nie et al. 2023, "A Time Series is Worth 64 Words").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.mixer import MixerLayer
from osteon.parts.objective import Objective
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step
from osteon.parts.windows import own_unit_data, own_units, roll_out
from osteon.views import normalise

CARD = Card(
    kind="objective",
    name="forecast",
    papers=("Tiny Time Mixers (TTMs): Fast Pre-trained Models for Enhanced Zero/Few-Shot Forecasting of Multivariate "
            "Time Series", "A Time Series is Worth 64 Words: Long-term Forecasting with Transformers"),
    modalities=("series",),
    differs="Trained on one source, not on a public collection. Horizon and context share the window of the data: "
    "without a horizon a quarter of it is the future. Coarser copies of windows (option coarsest) are drawn for each "
    "sample instead of stored beside the originals, and no resolution prefix tells them apart (off in the authors' "
    "scripts). No mixer of exogenous series. The decoder is off by default, on with decoder_depth. Horizons beyond the "
    "trained one are reached by rolling out. With a ViT: patches do not overlap, pre-norm blocks with layer norm, and "
    "fixed positions; channels apart come from the data's option independent=true.",
    rows=(131,),
    backbones=("tokens",),
    cost="1 forward on the context and one linear map",
)


#: Error of each value by name.
LOSSES: dict[str, Callable[..., Tensor]] = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.huber_loss}


class DirectHead(nn.Module):
    """Tokens -> the whole future: a narrow mixer by choice, then one linear map of all tokens together.

    Where the backbone keeps channels apart, the same head serves each of them.

    Args:
        tokens: N.
        width: of a token.
        apart: parts of a token, one a channel, or 1.
        channels: C.
        horizon: H.
        depth: mixer layers; 0 = none.
        dim: width of the mixer; 0 = two thirds of the part's, even.
        mix: the mixer mixes channels too.
    """

    def __init__(self, tokens: int, width: int, apart: int, channels: int, horizon: int, *, depth: int = 0,
                 dim: int = 0, mix: bool = False) -> None:
        super().__init__()
        each = width // apart
        self.apart, self.channels = apart, channels
        self.adapt: nn.Module = nn.Identity()
        self.mixer: nn.Module = nn.Identity()
        if depth:
            narrow = dim or max(4, each * 2 // 3 // 2 * 2)
            self.adapt = nn.Linear(each, narrow)
            self.mixer = nn.Sequential(*(MixerLayer(tokens, narrow, apart if mix else 1) for _ in range(depth)))
            each = narrow
        self.inputs = tokens * each
        self.out = nn.Linear(self.inputs, channels // apart * horizon)

    def forward(self, tokens: Tensor, drop: Tensor | None = None) -> Tensor:
        """(B, N, width) -> (B, C, H); ``drop`` (B, apart, inputs) multiplies the inputs of the last map."""
        parts = tokens.unflatten(-1, (self.apart, -1)).transpose(1, 2)  # (B, apart, N, each)
        flat = self.mixer(self.adapt(parts)).flatten(2)
        return self.out(flat if drop is None else flat * drop).reshape(len(tokens), self.channels, -1)


class Forecast(Objective):
    """Predict the last ``horizon`` steps of a window from those before; every channel in units of its own context.

    The context is normalised by its mean and deviation a channel, which the forecast gets back; the loss is in the
    units of the data. What the run leaves reads windows of the context's length in their own units, and
    `osteon forecast` also shows the trained head.

    Args:
        backbone: network to train, built for the context.
        data: what the data look like; a window holds context and horizon.
        horizon: steps that are predicted; 0 = a quarter of the window.
        coarsest: windows are also read at rates 2, 4... up to this factor, averaged; 1 = at their own rate alone. The
            window then holds context and horizon at the coarsest rate.
        decoder_depth: mixer layers between backbone and head.
        decoder_dim: width of these layers; 0 = two thirds of a token's.
        mix_channels: these layers mix channels, where the backbone keeps them apart.
        head_dropout: share of the head's inputs that are dropped.
        loss: mean squared, mean absolute, or Huber error.
    """

    additive: ClassVar[bool] = True
    #: Whether training samples are also read whole, context and horizon, as embedding them does.
    reads_whole: ClassVar[bool] = True
    # The authors' 1e-3 at batch 3000; at small batches the same rate does.
    recipe: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.01, "warmup": 0.05}

    def __init__(self, backbone: Backbone, data: DataSpec, *, horizon: int = 0, coarsest: int = 1,
                 decoder_depth: int = 0, decoder_dim: int = 0, mix_channels: bool = False, head_dropout: float = 0.2,
                 loss: Literal["mse", "mae", "huber"] = "mse") -> None:
        super().__init__(backbone, data)
        self.context, self.horizon = split_window(data.extent, horizon, coarsest)
        if loss not in ("mse", "mae", "huber") or not 0 <= head_dropout < 1:
            raise UsageError(f"There is no loss '{loss}', or head_dropout={head_dropout} is not in [0, 1).",
                             where="forecast", fix="Give mse, mae or huber, and a share.")
        if mix_channels and (backbone.apart == 1 or not decoder_depth):
            raise UsageError("Channels are mixed in the decoder of a backbone that keeps several apart.",
                             where="mix_channels", fix="Choose ttm_* for several channels and set decoder_depth=2.")
        if self.reads_whole:
            backbone.grid(*data.extent)
        (tokens,) = backbone.grid(self.context)
        self.rates = tuple(2**i for i in range(coarsest.bit_length()))
        self.dropout, self.loss = head_dropout, loss
        self.head = DirectHead(tokens, backbone.token_dim, backbone.apart, data.channels, self.horizon,
                               depth=decoder_depth, dim=decoder_dim, mix=mix_channels)
        self.notes.append(f"forecasts: {self.horizon} steps from {self.context} "
                          + ("(as asked)" if horizon else "(rule: a quarter of the window)"))

    @classmethod
    def seen(cls, extent: tuple[int, ...], options: Mapping[str, Any]) -> tuple[int, ...]:
        """The context."""
        return (split_window(extent, int(options.get("horizon", 0)), int(options.get("coarsest", 1)))[0],)

    def windows(self, x: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Context (B, C, L) and future (B, C, H) of each sample, at the rate drawn for it."""
        span = self.context + self.horizon
        picked = (draws.fork("rate").rand() * len(self.rates)).long()[:, None, None]
        out = x[..., -span:]
        for i, rate in enumerate(self.rates[1:], 1):
            coarse = x[..., -span * rate:].unflatten(-1, (span, rate)).mean(-1)
            out = torch.where(picked == i, coarse, out)
        return out[..., :self.context], out[..., self.context:]

    def ahead(self, past: Tensor, draws: Draws | None = None) -> tuple[Tensor, Tensor]:
        """Forecast (B, C, H) from a context (B, C, L), in its units, and pooled features (B, D)."""
        mean, std = own_units(past)
        seen = self.backbone((past - mean) / std)
        drop = None
        if draws is not None and self.dropout and self.training:
            kept = draws.fork("dropout").rand(self.head.apart, self.head.inputs) >= self.dropout
            drop = kept / (1 - self.dropout)
        return self.head(seen.tokens, drop).float() * std + mean, seen.pooled

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Per-sample error ``"loss"`` (B,) and pooled ``"features"``."""
        past, future = self.windows(normalise(batch[self.data.modality], self.data), draws)
        guess, pooled = self.ahead(past, draws)
        measure = LOSSES[self.loss]
        return {"loss": measure(guess, future, reduction="none").mean((1, 2)), "features": pooled.detach()}

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """Mean over samples."""
        total = encoded["loss"].mean()
        return Loss(total, {self.loss: total.detach()})

    @torch.no_grad()
    def forecast(self, past: Tensor, steps: int) -> Tensor:
        """Steps ahead of contexts in any units of each channel: (B, C, L), L the context -> (B, C, steps)."""
        return roll_out(lambda known: self.ahead(known)[0], past, steps)

    def exported_data(self) -> DataSpec:
        """Windows of the context's length in their own units."""
        return own_unit_data(self.data, self.context)

    def kept(self) -> dict[str, Tensor]:
        """The head."""
        return {f"head.{name}": value for name, value in self.head.state_dict().items()}

    @torch.no_grad()
    def reconstruct(self, batch: Batch, step: Step) -> tuple[Tensor, Tensor, Tensor] | None:
        """The window at its own rate, its future at the context's mean, and its future as forecast."""
        span = self.context + self.horizon
        x = normalise(batch[self.data.modality], self.data)[..., -span:]
        past = x[..., :self.context]
        flat = past.mean(-1, keepdim=True).expand(-1, -1, self.horizon)
        return x, torch.cat([past, flat], -1), torch.cat([past, self.ahead(past)[0]], -1)


def split_window(extent: tuple[int, ...], horizon: int, coarsest: int) -> tuple[int, int]:
    """Context and horizon of a window; a horizon of 0 is a quarter of it.

    Args:
        extent: sides of a sample.
        horizon: as asked, or 0.
        coarsest: a power of two.
    """
    if len(extent) != 1:
        raise UsageError("Samples with one side, series, are forecast.", where="forecast")
    if coarsest < 1 or coarsest & (coarsest - 1):
        raise UsageError(f"The coarsest rate is a power of two, not {coarsest}.", where="coarsest")
    span = extent[0] // coarsest
    ahead = horizon or span // 4
    if not 0 < ahead < span:
        raise UsageError(f"A window of {extent[0]} steps does not hold a context and {ahead} steps ahead"
                         + (f" at {coarsest} times the step." if coarsest > 1 else "."), where="horizon",
                         fix="Set a longer window (--set window=...) or a shorter horizon.")
    return span - ahead, ahead
