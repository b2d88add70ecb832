"""VideoMAE V2: encode a tenth of a clip's cubes, rebuild half of the others with a decoder that sees no more.

Wang et al. 2023, "VideoMAE V2: Scaling Video Masked Autoencoders with Dual Masking", arXiv:2303.16727, section 3.2.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.objectives._masked import Masked, hidden_mean
from osteon.parts.positions import sincos
from osteon.parts.transformer import TokenDecoder
from osteon.parts.types import Batch, DataSpec, Draws
from osteon.views import denormalise, make_views
from osteon.views.masks import hidden_indices, lowest, visible_indices

CARD = Card(
    kind="objective",
    name="videomae_v2",
    papers=("VideoMAE V2: Scaling Video Masked Autoencoders with Dual Masking",
            "VideoMAE: Masked Autoencoders are Data-Efficient Learners for Self-Supervised Video Pre-Training"),
    modalities=("video",),
    differs="The self-supervised stage alone: training on labels and fine-tuning follow by other verbs. The decoder is "
    "half as wide as the encoder, the paper's 384 for ViT-B. The loss is the mean over each clip's counted cubes, then "
    "over clips (the authors' code: over all counted cubes of the batch; the same where 4 divides the time slices). "
    "Cubes have one side for time and space unless backbone.stem=tubes cuts 2 frames as in the paper. Crops keep at "
    "least half of a frame, and a span of time in proportion. Repeated samples (4 in the paper) are the setting "
    "repeats.",
    rows=(151,),
    backbones=("tokens",),
    cost="1 encoder forward on 10 % of the tokens plus a small decoder on 60 %",
)


def tube_mask(grid: tuple[int, ...], ratio: float, draws: Draws) -> Tensor:
    """The same random places hidden at every time, ``int(ratio * places)`` of them: (B, N) bool, True = hidden.

    Args:
        grid: (times, rows, columns) of tokens.
        ratio: share hidden.
        draws: the stream.
    """
    places = math.prod(grid[1:])
    hidden = lowest(draws.rand(places), int(ratio * places + 1e-9))
    return hidden[:, None].expand(-1, grid[0], -1).flatten(1)


def running_cell(grid: tuple[int, ...], ratio: float, draws: Draws) -> Tensor:
    """What the decoder rebuilds: cells of 2 x 2 tokens that share one pattern, which runs on by one token a time.

    (B, N) bool, True = rebuilt, ``1 - ratio`` of the tokens at every time and, over four times, of every place. Each
    clip starts at a random one of the four phases.

    Args:
        grid: (times, rows, columns); rows and columns are even.
        ratio: share left out: 0.25, 0.5 or 0.75.
        draws: the stream.
    """
    times, rows, columns = grid
    phase = (draws.rand() * 4).long().clamp(max=3)
    row, column = torch.arange(rows, device=phase.device), torch.arange(columns, device=phase.device)
    cell = 2 * (row[:, None] % 2) + column % 2  # (rows, columns), 0 to 3 in raster order
    time = torch.arange(times, device=phase.device)[:, None, None]
    return ((cell + time + phase[:, None, None, None]) % 4 >= round(4 * ratio)).flatten(1)


def standardise_cubes(shown: Tensor, channels: int) -> Tensor:
    """Each cube's values standardised a colour channel: (B, N, cells * C), channels last -> the same shape.

    The unbiased deviation plus 1e-6 divides, as in the authors' code.
    """
    cube = shown.unflatten(-1, (-1, channels))
    out = (cube - cube.mean(-2, keepdim=True)) / (cube.std(-2, keepdim=True) + 1e-6)
    return out.flatten(-2)


class VideoMAEV2(Masked):
    """Masked autoencoder of clips whose decoder, too, works on a part.

    Args:
        backbone: network to train.
        data: what the data look like.
        ratio: share of places hidden from the encoder, at every time the same.
        decoder_ratio: share of cubes that are not rebuilt: 0.25, 0.5 or 0.75; 0 rebuilds all hidden ones (VideoMAE).
        decoder_dim: width of the decoder, a multiple of 2; 0 = half the encoder's, at least 64.
        decoder_depth: blocks of the decoder.
        crop_min: smallest share of a frame in the random crop.
        flip: mirror left-right at random.
    """

    norm_pix = True
    # The authors' 1e-3 at batch 256 and warm-up over a tenth; the square root suits short runs at small batches.
    recipe: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "lr_per": 256, "lr_rule": "sqrt", "betas": (0.9, 0.95),
                        "weight_decay": 0.05, "warmup": 0.1}

    def __init__(self, backbone: Backbone, data: DataSpec, *, ratio: float = 0.9, decoder_ratio: float = 0.5,
                 decoder_dim: int = 0, decoder_depth: int = 4, crop_min: float = 0.5, flip: bool = False) -> None:
        super().__init__(backbone, data, views=make_views("crop_flip", data, flip=flip, min_scale=crop_min))
        if len(data.extent) != 3 or backbone.discrete or backbone.own_error:
            raise UsageError("Clips of pixels are masked so, samples with three sides.", where="videomae_v2")
        grid = backbone.grid(*data.extent)
        places = math.prod(grid[1:])
        if not 0 < int(ratio * places + 1e-9) < places:
            raise UsageError(f"ratio={ratio} leaves nothing hidden or nothing visible of {places} places.",
                             where="ratio", fix="Set another ratio or smaller patches.")
        if decoder_ratio not in (0, 0.25, 0.5, 0.75):
            raise UsageError(f"A cell of 2 x 2 tokens cannot leave out a share of {decoder_ratio}.",
                             where="decoder_ratio", fix="Give 0, 0.25, 0.5 or 0.75.")
        if decoder_ratio and any(side % 2 for side in grid[1:]):
            raise UsageError(f"{grid[1]} x {grid[2]} tokens of a frame hold no whole cells of 2 x 2.",
                             where="decoder_ratio", fix="Set decoder_ratio=0, or patches that leave even sides.")
        if backbone.shown_width < 2 * data.channels:
            raise UsageError("A cube of one pixel has no deviation to be standardised by.", where="patch",
                             fix="Set larger patches.")
        self.ratio, self.decoder_ratio = ratio, decoder_ratio
        dim = decoder_dim or max(64, backbone.token_dim // 2 // 16 * 16)
        heads = next(h for h in range(max(1, dim // 32), 0, -1) if dim % h == 0)
        self.decoder = TokenDecoder(backbone.token_dim, backbone.shown_width, sincos(grid, dim), depth=decoder_depth,
                                    heads=heads)

    def mask(self, grid: tuple[int, ...], draws: Draws) -> Tensor:
        """Tubes hidden from the encoder."""
        return tube_mask(grid, self.ratio, draws)

    def asked(self, grid: tuple[int, ...], hidden: Tensor, draws: Draws) -> Tensor:
        """What the decoder rebuilds, (B, N) bool: the running cell wherever it falls, or exactly what is hidden."""
        return running_cell(grid, self.decoder_ratio, draws) if self.decoder_ratio else hidden

    def predict(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """All hidden cubes rebuilt, zeros elsewhere (B, N, shown_width), as VideoMAE does; pooled features (B, D)."""
        prediction, pooled = self._decode(x, mask, mask)
        where = hidden_indices(mask)[..., None].expand(-1, -1, prediction.shape[-1])
        return prediction.new_zeros(*mask.shape, prediction.shape[-1]).scatter(1, where, prediction), pooled

    def _decode(self, x: Tensor, hidden: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions (B, M, shown_width) of the M cubes that are asked for, and pooled features."""
        keep = visible_indices(hidden)
        features = self.backbone(x, keep=keep)
        return self.decoder.at(features.tokens, keep, hidden_indices(asked)), features.pooled

    def target(self, x: Tensor) -> Tensor:
        """Pixels in [0, 1], each cube standardised a colour channel: (B, N, shown_width)."""
        return standardise_cubes(self.backbone.shown(denormalise(x, self.data)), self.data.channels)

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Per-sample loss ``"loss"`` (B,) of what is both hidden and asked for, and pooled ``"features"``."""
        x = self.views(batch[self.data.modality], draws)[0].x
        grid = self.backbone.grid(*x.shape[2:])
        hidden = self.mask(grid, draws.fork("mask"))
        asked = self.asked(grid, hidden, draws.fork("decoder"))
        prediction, pooled = self._decode(x, hidden, asked)
        rows = hidden_indices(asked)
        target = self.target(x).gather(1, rows[..., None].expand(-1, -1, prediction.shape[-1]))
        loss = hidden_mean(self.error(prediction, target), hidden.gather(1, rows))
        return {"loss": loss, "features": pooled.detach()}

    def to_pixels(self, prediction: Tensor, patches: Tensor) -> Tensor:
        """Undo the standardisation with the true cube's mean and deviation (for pictures only)."""
        cube = patches.unflatten(-1, (-1, self.data.channels))
        guess = prediction.unflatten(-1, (-1, self.data.channels))
        return (guess * cube.std(-2, keepdim=True) + cube.mean(-2, keepdim=True)).flatten(-2)
