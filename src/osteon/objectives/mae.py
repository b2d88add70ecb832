"""MAE: encode a quarter of the patches, rebuild the other three quarters with a light decoder.

He et al. 2021, arXiv:2111.06377, sec. 3 and table 8.
"""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.objectives._masked import Masked
from osteon.parts.positions import sincos
from osteon.parts.targets import standardise_patches, unstandardise_patches
from osteon.parts.transformer import TokenDecoder
from osteon.parts.types import DataSpec, Draws
from osteon.views import make_views
from osteon.views.masks import hidden_count, random_mask, visible_indices

CARD = Card(
    kind="objective",
    name="mae",
    papers=("Masked Autoencoders Are Scalable Vision Learners",),
    modalities=("image", "sound", "series", "text", "table", "graph", "points", "volume", "video", "several"),
    differs="The decoder is half as wide as the encoder (rounded to a multiple of 16, at least 64) and 2 blocks deep "
    "instead of 512 and 8. It does not see the class token, where there is one, and starts from PyTorch's initial "
    "weights instead of Xavier's.",
    backbones=("tokens",),
    cost="1 encoder forward on 25 % of the tokens plus a small decoder on all",
)


class MAE(Masked):
    """Masked autoencoder: the encoder sees only the visible patches.

    Args:
        backbone: network to train.
        data: what the data look like.
        ratio: share of patches hidden.
        decoder_dim: width of the decoder, a multiple of 4; 0 = half the encoder's, at least 64.
        decoder_depth: blocks of the decoder.
        norm_pix: predict patches standardised by their own mean and deviation.
        crop_min: smallest area share of the random crop; None = 0.2 of images, the modality's own of others.
        flip: mirror left-right at random; None = images are, samples of other modalities are not.
    """

    any_size: ClassVar[bool] = True
    # The paper's 2.4e-3 at batch 4096; the square root keeps Adam's noise scale and suits short runs at small batches.
    recipe: ClassVar = {"optimizer": "adamw", "lr": 2.4e-3, "lr_per": 4096, "lr_rule": "sqrt", "betas": (0.9, 0.95),
                        "weight_decay": 0.05, "warmup": 0.05}

    def __init__(self, backbone: Backbone, data: DataSpec, *, ratio: float = 0.75, decoder_dim: int = 0,
                 decoder_depth: int = 2, norm_pix: bool = True, crop_min: float | None = None,
                 flip: bool | None = None) -> None:
        views = make_views("crop_flip", data, flip=flip, min_scale=crop_min, usual={"min_scale": 0.2})
        super().__init__(backbone, data, views=views)
        self.ratio, self.norm_pix = ratio, norm_pix and not (backbone.discrete or backbone.own_error)
        grid, values = backbone.grid(*data.extent), backbone.shown_width
        tokens = math.prod(grid)
        if not 0 < hidden_count(ratio, tokens) < tokens:
            raise UsageError(f"ratio={ratio} hides {hidden_count(ratio, tokens)} of {tokens} patches: some must be "
                             "hidden and some must stay.", where="ratio", fix="Set another ratio or a smaller patch.")
        if self.norm_pix and values < 2:
            raise UsageError("A patch of one value has no deviation to be standardised by.", where="norm_pix",
                             fix="Set norm_pix=false or a larger patch.")
        dim = decoder_dim or max(64, backbone.token_dim // 2 // 16 * 16)
        heads = next(h for h in range(max(1, dim // 32), 0, -1) if dim % h == 0)
        self.decoder = TokenDecoder(backbone.token_dim, values, sincos(grid, dim), depth=decoder_depth, heads=heads,
                                    place_width=backbone.place_width, reference=grid)

    def mask(self, grid: tuple[int, ...], draws: Draws) -> Tensor:
        """Uniformly random patches, the same number in every sample."""
        return random_mask(grid, self.ratio, draws)

    def predict(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode the visible patches only, decode all."""
        keep = visible_indices(mask)
        features = self.backbone(x, keep=keep)
        return self.decoder(features.tokens, keep, self.backbone.places(x), features.grid), features.pooled

    def target(self, x: Tensor) -> Tensor:
        """Values of each patch, standardised within the patch when ``norm_pix``; words as they are."""
        patches = self.backbone.shown(x)
        return standardise_patches(patches) if self.norm_pix else patches

    def to_pixels(self, prediction: Tensor, patches: Tensor) -> Tensor:
        """Undo the standardisation with the true patch's mean and deviation (for pictures only)."""
        if not self.norm_pix:
            return super().to_pixels(prediction, patches)
        return unstandardise_patches(prediction, patches)
