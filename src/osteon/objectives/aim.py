"""AIM: read an image patch by patch and predict the next one, as language models predict the next word.

El-Nouby et al. 2024, arXiv:2401.08541, sections 4.1 and 4.2. The patches at the start see each other freely, so that
the network can look at whole images afterwards.
"""

from __future__ import annotations

import math
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.objectives._masked import Masked
from osteon.parts.attend import prefix_attention
from osteon.parts.targets import standardise_patches, unstandardise_patches
from osteon.parts.transformer import Mlp
from osteon.parts.types import DataSpec, Draws
from osteon.views import make_views

CARD = Card(
    kind="objective",
    name="aim",
    papers=("Scalable Pre-training of Large Autoregressive Image Models",),
    modalities=("image", "sound", "series", "text", "table", "graph", "points", "volume", "video"),
    differs="The loss is the mean over the patches after each sample's prefix, then over samples, so that every sample "
    "counts alike whatever its prefix. The head is as wide as the trunk and 4 blocks deep instead of 2048 and 12. The "
    "trunk and the MLPs keep their biases. Class and register tokens, which the paper's trunk lacks, belong to the "
    "prefix.",
    rows=(308,),
    backbones=("tokens",),
    cost="1 forward on all tokens under a mask, and a head of MLPs on each",
)


def draw_prefix(tokens: int, draws: Draws) -> Tensor:
    """Length of each sample's prefix, uniform in {1, ..., tokens - 1}: (B,) int64."""
    return (draws.rand() * (tokens - 1)).long().clamp(max=tokens - 2) + 1


class PatchHead(nn.Module):
    """Residual MLPs on every token alone, then its prediction: (B, N, in_dim) -> (B, N, out_dim).

    Args:
        in_dim: width of the tokens.
        dim: width of the head.
        depth: number of blocks ``x + mlp(norm(x))``.
        out_dim: width of the prediction.
    """

    def __init__(self, in_dim: int, dim: int, depth: int, out_dim: int) -> None:
        super().__init__()
        self.embed = nn.Linear(in_dim, dim, bias=False)
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=1e-6) for _ in range(depth))
        self.mlps = nn.ModuleList(Mlp(dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.out = nn.Linear(dim, out_dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Predict from every token."""
        x = self.embed(tokens)
        for norm, mlp in zip(self.norms, self.mlps, strict=True):
            x = x + mlp(norm(x))
        return self.out(self.norm(x))


class AIM(Masked):
    """Autoregressive image model: from the patches so far, in raster order, predict the pixels of the next one.

    "Hidden" are the patches after the prefix: each is predicted from the true patches before it.

    Args:
        backbone: network to train.
        data: what the data look like.
        head_dim: width of the prediction head; 0 = the backbone's.
        head_depth: residual MLP blocks of the head.
        norm_pix: predict patches standardised by their own mean and deviation.
        crop_min: smallest area share of the random crop; None = 0.4 of images, the modality's own of others.
        flip: mirror left-right at random; None = images are, samples of other modalities are not.
    """

    causal: ClassVar[bool] = True
    # The paper's rate at batch 4096, though its trunks are far larger; the square root keeps Adam's noise scale.
    recipe: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "lr_per": 4096, "lr_rule": "sqrt", "betas": (0.9, 0.95),
                        "weight_decay": 0.05, "warmup": 0.05, "clip": 1.0}

    def __init__(self, backbone: Backbone, data: DataSpec, *, head_dim: int = 0, head_depth: int = 4,
                 norm_pix: bool = True, crop_min: float | None = None, flip: bool | None = None) -> None:
        super().__init__(backbone, data, views=make_views("crop_flip", data, flip=flip, min_scale=crop_min,
                                                          usual={"min_scale": 0.4}))
        grid = backbone.grid(*data.extent)
        if not backbone.place_width:
            backbone.positions(grid)  # a network without this door is refused here, not at the first step
        if math.prod(grid) < 2:
            raise UsageError("An image of a single patch has no next patch.", where="aim",
                             fix="Use smaller patches, e.g. --set patch=4.")
        self.norm_pix = norm_pix and not (backbone.discrete or backbone.own_error)
        width = backbone.token_dim
        self.head = PatchHead(width, head_dim or width, head_depth, backbone.shown_width)

    def mask(self, grid: tuple[int, ...], draws: Draws) -> Tensor:
        """The patches after each sample's prefix, (B, N); their number differs between samples."""
        n = math.prod(grid)
        prefix = draw_prefix(n, draws)
        return torch.arange(n, device=prefix.device) >= prefix[:, None]

    def predict(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Entry t + 1 is what token t predicts; entry 0, which nothing predicts, is zero and always in the prefix."""
        places = self.backbone.positions(self.backbone.grid(*x.shape[2:]), x)
        tokens = self.backbone.stem(x) + places
        special = self.backbone.prefix(len(x)).to(tokens.dtype)  # class and register tokens
        count = special.shape[1]
        attend = prefix_attention(torch.cat([mask.new_ones(len(x), count), ~mask], 1))
        present = self.backbone.present(x)
        if present is not None:  # nothing looks at padding, but for padding itself
            there = F.pad(present, (count, 0), value=True)
            attend = attend & (there[:, None] | torch.eye(there.shape[1], dtype=torch.bool, device=there.device))
        out = self.backbone.trunk(torch.cat([special, tokens], 1), attend=attend)
        read = cast(Tensor, out)[:, count:]
        following = self.head(read[:, :-1] + places[:, :-1])
        return torch.cat([torch.zeros_like(following[:, :1]), following], 1), read.mean(1)

    def target(self, x: Tensor) -> Tensor:
        """Values of each patch, standardised within the patch when ``norm_pix``; words as they are."""
        patches = self.backbone.shown(x)
        return standardise_patches(patches) if self.norm_pix else patches

    def to_pixels(self, prediction: Tensor, patches: Tensor) -> Tensor:
        """Give predictions the true patch's mean and deviation (for pictures only)."""
        return unstandardise_patches(prediction, patches) if self.norm_pix else super().to_pixels(prediction, patches)
