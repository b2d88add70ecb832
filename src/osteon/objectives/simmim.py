"""SimMIM: replace large patches by a learned token and predict their raw pixels with a single linear layer.

Xie et al. 2022, arXiv:2111.09886, section 3.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.objectives._masked import Masked
from osteon.parts.types import DataSpec, Draws, Step
from osteon.views import make_views
from osteon.views.masks import block_mask

CARD = Card(
    kind="objective",
    name="simmim",
    papers=("SimMIM: A Simple Framework for Masked Image Modeling",),
    modalities=("image", "sound", "series", "text", "table", "graph", "points", "volume", "video", "several"),
    differs="The side of a hidden cell follows the image (a sixth of it, in whole tokens) instead of 32 pixels at 192 "
    "and 224. Positions are the backbone's own instead of a relative bias shared by all layers. Hierarchical "
    "Transformers (Swin) are not covered.",
    rows=(168,),
    backbones=("tokens",),
    cost="1 forward per image on all tokens and one linear layer",
)


def default_unit(grid: tuple[int, ...]) -> int:
    """Side of a hidden cell in tokens: a sixth of the grid (32 of 192 px), rounded, lowered until it divides it."""
    wanted = max(1, round(min(grid) / 6))
    return next(u for u in range(wanted, 0, -1) if all(side % u == 0 for side in grid))


class SimMIM(Masked):
    """Masked image modelling without a decoder: all tokens pass the encoder, hidden ones as a learned token.

    Args:
        backbone: network to train.
        data: what the data look like.
        ratio: share of cells hidden; their number is rounded up.
        unit: side of a hidden cell in tokens, a divisor of the grid; 0 = a sixth of the grid, of words 1.
        crop_min: smallest area share of the random crop; None = 0.67 of images, the modality's own of others.
        flip: mirror left-right at random; None = images are, samples of other modalities are not.
    """

    norm: ClassVar = "l1"
    any_size: ClassVar[bool] = True
    # The paper's 2e-4 per 512 images (100 epochs) is 8e-4 at its batch of 2048; the square root suits small batches.
    recipe: ClassVar = {"optimizer": "adamw", "lr": 8e-4, "lr_per": 2048, "lr_rule": "sqrt", "weight_decay": 0.05,
                        "warmup": 0.1, "clip": 5.0}

    def __init__(self, backbone: Backbone, data: DataSpec, *, ratio: float = 0.6, unit: int = 0,
                 crop_min: float | None = None, flip: bool | None = None) -> None:
        super().__init__(backbone, data, views=make_views("crop_flip", data, flip=flip, min_scale=crop_min,
                                                          usual={"min_scale": 0.67}))
        grid = backbone.grid(*data.extent)
        self.ratio, self.cells, self.unit = ratio, grid, unit or (1 if backbone.discrete else default_unit(grid))
        if not unit and backbone.discrete:
            self.notes.append("unit = 1: words are hidden one by one")
        elif not unit:
            self.notes.append(f"unit = {self.unit}: hidden cells of {self.unit * self.patch} px, rule: a sixth of the "
                              "grid, lowered until it divides it")
        one = Draws(Step(0, 1), torch.zeros(1, dtype=torch.int64), 1)
        hidden = int(self.mask(grid, one).sum())  # the policy checks ratio and unit, and counts
        if not 0 < hidden < math.prod(grid):
            raise UsageError(f"ratio={ratio} hides {hidden} of {math.prod(grid)} tokens: some must be hidden and "
                             "some must stay.", where="ratio", fix="Set another ratio, or a smaller unit.")
        self.mask_token = nn.Parameter(torch.zeros(backbone.token_dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.head = nn.Linear(backbone.token_dim, backbone.shown_width)

    def mask(self, grid: tuple[int, ...], draws: Draws) -> Tensor:
        """Random square cells of tokens, as many in every sample; on smaller grids of a side that divides them."""
        unit = self.unit
        if grid != self.cells:
            unit = next(u for u in range(unit, 0, -1) if all(side % u == 0 for side in grid))
        return block_mask(grid, self.ratio, draws, unit=unit)

    def predict(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode all tokens, hidden ones replaced before positions are added; one linear map a token."""
        features = self.backbone(x, mask=mask, mask_token=self.mask_token)
        return self.head(features.tokens), features.pooled
