"""SparK: masked modelling for convolutional networks, by sparse convolution and a hierarchical decoder.

Tian et al. 2023, arXiv:2301.03580, sec. 3. Convolutions see only the visible patches and leave hidden positions empty;
the maps of every scale are filled with learned vectors and decoded like a U-Net.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.objectives._masked import Masked
from osteon.parts.norm import BatchNorm
from osteon.parts.targets import enlarge, patchify, standardise_patches, unstandardise_patches
from osteon.parts.types import DataSpec, Draws
from osteon.views import make_views
from osteon.views.masks import hidden_count, random_mask

CARD = Card(
    kind="objective",
    name="spark",
    papers=(
        "Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked Modeling",
        "Self-Supervised Pre-Training with Contrastive and Masked Autoencoder Methods for Dealing with Small Datasets "
        "in Deep Learning for Medical Imaging",
    ),
    modalities=("image", "volume", "video"),
    differs="The decoder is as wide as the last map (at least 64) instead of 768, never narrower than 16, and starts "
    "from PyTorch's initial weights; AdamW instead of LAMB at batch 4096; of several maps of one stride the deepest "
    "is decoded, and a map of stride 1 gets no skip connection, since the decoder ends there.",
    rows=(170, 429),
    backbones=("maps",),
    cost="1 dense forward per image and a light decoder; no compute is saved by masking",
)


class Densify(nn.Module):
    """Turn a sparse map into a dense one: normalise its visible positions, fill the hidden ones, project.

    Args:
        inputs: channels of the map.
        outputs: channels wanted by the decoder.
        kernel: 1 for the smallest map, 3 for the others.
        sides: 2 for images, 3 for volumes and clips.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, sides: int = 2) -> None:
        super().__init__()
        self.norm = BatchNorm(inputs)
        self.token = nn.Parameter(torch.zeros(inputs))
        nn.init.trunc_normal_(self.token, std=0.02)
        self.project = (nn.Conv2d if sides == 2 else nn.Conv3d)(inputs, outputs, kernel, padding=kernel // 2)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        """(B, D, *sides), (B, *sides) bool -> (B, D', *sides)."""
        x = self.norm(x, where=visible)
        token = self.token.to(x.dtype).view(1, -1, *[1] * (x.dim() - 2))
        return self.project(torch.where(visible[:, None], x, token))


class Up(nn.Module):
    """Double the resolution: transposed convolution, then two 3 x 3 convolutions."""

    def __init__(self, inputs: int, outputs: int, sides: int = 2) -> None:
        super().__init__()
        conv, back = (nn.Conv2d, nn.ConvTranspose2d) if sides == 2 else (nn.Conv3d, nn.ConvTranspose3d)
        self.up = back(inputs, inputs, 4, stride=2, padding=1)
        self.conv1 = conv(inputs, inputs, 3, padding=1, bias=False)
        self.norm1 = BatchNorm(inputs)
        self.conv2 = conv(inputs, outputs, 3, padding=1, bias=False)
        self.norm2 = BatchNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, *sides) -> (B, D', *2 sides)."""
        x = F.relu6(self.norm1(self.conv1(self.up(x))))
        return self.norm2(self.conv2(x))


def upsample_mask(mask: Tensor, grid: tuple[int, ...], factor: int) -> Tensor:
    """Visibility of a finer map. (B, N) bool True = hidden -> (B, *grid * factor) bool True = visible."""
    return enlarge((~mask).reshape(-1, *grid), factor)


class SparK(Masked):
    """Rebuild hidden patches from the sparse features of all scales.

    Args:
        backbone: convolutional network to train.
        data: what the data look like.
        ratio: share of cells of the coarsest map that are hidden.
        decoder_dim: width of the decoder at the smallest map, halved at every doubling; 0 = that of the map, at
            least 64.
        crop_min: smallest area share of the random crop.
        flip: mirror left-right at random; None = images are, samples of other modalities are not.
    """

    norm_pix = True
    # The paper's 2e-4 * 4096 / 256 = 3.2e-3 at batch 4096 for LAMB; a square root of the batch for AdamW.
    recipe: ClassVar = {"optimizer": "adamw", "lr": 3.2e-3, "lr_per": 4096, "lr_rule": "sqrt", "weight_decay": 0.04,
                        "weight_decay_end": 0.2, "warmup": 0.05, "clip": 5.0}

    def __init__(self, backbone: Backbone, data: DataSpec, *, ratio: float = 0.6, decoder_dim: int = 0,
                 crop_min: float = 0.67, flip: bool | None = None) -> None:
        super().__init__(backbone, data, views=make_views("crop_flip", data, flip=flip, min_scale=crop_min))
        if any(side % self.patch for side in data.extent) or self.patch & (self.patch - 1) or self.patch < 2:
            raise UsageError(f"SparK's decoder doubles from the last map (stride {self.patch}) to the image of "
                             f"{' x '.join(map(str, data.extent))} pixels: that must be a power of two that divides "
                             "the size.",
                             where="backbone", fix="Set backbone.stride, or size.")
        cells = math.prod(side // self.patch for side in data.extent)
        if not 0 < hidden_count(ratio, cells) < cells:
            raise UsageError(f"ratio={ratio} hides {hidden_count(ratio, cells)} of {cells} cells: some must be hidden "
                             "and some must stay.", where="ratio", fix="Set another ratio, or a smaller stride.")
        self.ratio = ratio
        doublings, sides = self.patch.bit_length() - 1, len(data.extent)
        width = decoder_dim or max(64, backbone.level_dims[-1])
        widths = [max(16, width // 2**i) for i in range(doublings + 1)]
        strides = [self.patch // 2**i for i in range(doublings)]
        at = {s: d for s, d in zip(backbone.level_strides, backbone.level_dims, strict=True) if s > 1}
        self.skips = nn.ModuleDict({str(s): Densify(at[s], widths[i], 1 if i == 0 else 3, sides)
                                    for i, s in enumerate(strides) if s in at})
        self.ups = nn.ModuleList(Up(a, b, sides) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.out = (nn.Conv2d if sides == 2 else nn.Conv3d)(widths[-1], data.channels, 1)

    def mask(self, grid: tuple[int, ...], draws: Draws) -> Tensor:
        """Uniformly random cells of the coarsest map, the same number in every sample."""
        return random_mask(grid, self.ratio, draws)

    def predict(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode sparsely, fill every scale, decode to pixels."""
        features = self.backbone(x, mask=mask)
        levels = dict(zip(self.backbone.level_strides, features.levels, strict=True))
        y: Tensor | None = None
        for i, up in enumerate(self.ups):
            stride = self.patch // 2**i
            if str(stride) in self.skips:
                visible = upsample_mask(mask, features.grid, self.patch // stride)
                skip = self.skips[str(stride)](levels[stride], visible)
                y = skip if y is None else y + skip
            y = up(y)
        return patchify(self.out(y), self.patch), features.pooled

    def target(self, x: Tensor) -> Tensor:
        """Pixels of each patch, standardised within the patch."""
        return standardise_patches(patchify(x, self.patch))

    def to_pixels(self, prediction: Tensor, patches: Tensor) -> Tensor:
        """Undo the standardisation with the true patch's mean and deviation (for pictures only)."""
        return unstandardise_patches(prediction, patches)
