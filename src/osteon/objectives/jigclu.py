"""JigClu: cut images into parts, shuffle them into montages, then find which parts belong together and where each sat.

Chen et al. 2021, arXiv:2104.00323, sec. 3, eq. 1 to 3.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.losses.supcon import supcon
from osteon.parts.objective import Objective
from osteon.parts.types import Batch, DataSpec, Draws, Features, Loss, Step
from osteon.views import make_views

CARD = Card(
    kind="objective",
    name="jigclu",
    papers=("Jigsaw Clustering for Unsupervised Visual Representation Learning",),
    modalities=("image",),
    differs="The factor temperature / 0.07 of the released contrastive loss is kept and stated as an option. On a ViT, "
    "parts of a montage see each other through attention and positions; the paper's networks are convolutional. The "
    "head's hidden layer is the backbone's width, at least 128. Parts are cut on whole pixels. Blur and crops follow "
    "the view recipe's rules for small images. AdamW instead of SGD.",
    rows=(229,),
    cost="1 forward per image",
)

#: Parts of an image: 2 x 2, in raster order.
PARTS = 4


def cut(images: Tensor, part: int, overlap: float) -> Tensor:
    """One quadrant with a margin beyond the middle. (B, C, H, W) -> (B, C, about (0.5 + overlap) H, ... W).

    Args:
        images: whole images.
        part: 0 to 3: top left, top right, bottom left, bottom right.
        overlap: margin as a share of the side; 0 = the quadrants meet, 0.5 = each is the whole image.
    """
    height, width = images.shape[-2:]
    h, w = round(height * (0.5 + overlap)), round(width * (0.5 + overlap))
    rows = slice(0, h) if part < 2 else slice(height - h, height)
    columns = slice(0, w) if part % 2 == 0 else slice(width - w, width)
    return images[..., rows, columns]


def stitch(tiles_BPChw: Tensor) -> Tensor:
    """Four tiles in raster order become one picture. (B, 4, C, h, w) -> (B, C, 2h, 2w)."""
    a, b, c, d = tiles_BPChw.unbind(1)
    return torch.cat([torch.cat([a, b], -1), torch.cat([c, d], -1)], -2)


def unstitch(features: Features) -> Tensor:
    """Mean token of each quarter of the grid, in raster order. -> (B, 4, D)."""
    maps = features.tokens.transpose(1, 2).unflatten(2, features.grid)
    return F.adaptive_avg_pool2d(maps, 2).flatten(2).transpose(1, 2)


class JigClu(Objective):
    """Cluster the parts of shuffled montages by source image, and tell where each part came from.

    Args:
        backbone: network to train.
        data: what the data look like.
        temperature: T of the contrastive softmax over parts.
        base_temperature: the clustering loss is multiplied by temperature / base_temperature, as released.
        cluster: weight of the clustering loss.
        location: weight of the location loss.
        overlap: how far a part reaches beyond the middle, as a share of the side.
        head_width: hidden width of the clustering head; 0 = the backbone's width, 128 to 2048.
        out: width of the embedding.
        crop_min: smallest area share of the crop from each part.
        flip: mirror parts left-right at random.
        strength: strength of colour jitter; 0.5 = the paper's.
    """

    recipe: ClassVar = {"optimizer": "adamw", "lr": 2e-3, "lr_per": 256, "lr_rule": "sqrt", "weight_decay": 0.05,
                        "warmup": 0.05}

    def __init__(self, backbone: Backbone, data: DataSpec, *, temperature: float = 0.3,
                 base_temperature: float = 0.07, cluster: float = 1.0, location: float = 1.0, overlap: float = 0.3,
                 head_width: int = 0, out: int = 128, crop_min: float = 0.2, flip: bool = True,
                 strength: float = 0.5) -> None:
        super().__init__(backbone, data)
        if not 0 <= overlap <= 0.5:
            raise UsageError(f"overlap={overlap} is not a share between 0 and 0.5.", where="--set overlap")
        if min(temperature, base_temperature) <= 0:
            raise UsageError("Temperatures must be positive.", where="--set temperature, base_temperature")
        # Tiles of whole cells, so that no cell of the grid lies across a seam.
        self.side = max(1, round(data.size / 2 / backbone.stride)) * backbone.stride
        if min(backbone.grid(2 * self.side, 2 * self.side)) < 2:
            raise UsageError(f"{backbone.name} sees a montage of {2 * self.side} pixels as one cell.",
                             where="backbone", fix="Use a smaller stride or larger images.")
        self.views = make_views("simclr", data, size=self.side, flip=flip, strength=strength, min_scale=crop_min,
                                n_views=1)
        self.notes = [*self.views.notes, f"montages of 2 x 2 parts of {self.side} pixels: half of {data.size}, rounded "
                      f"to a multiple of {backbone.stride}"]
        width = head_width or min(2048, max(128, backbone.dim))
        self.head = nn.Sequential(nn.Linear(backbone.dim, width), nn.ReLU(), nn.Linear(width, out))
        self.locator = nn.Linear(backbone.dim, PARTS)
        self.temperature, self.base_temperature = temperature, base_temperature
        self.cluster, self.location, self.overlap = cluster, location, overlap

    def montage(self, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Montages of the rows held here, from parts of any image of the global batch.

        Returns:
            Montages (B, C, S, S), and of each of their four tiles the global row of its image (B, 4) and which part
            of it it is (B, 4), int64.
        """
        order = torch.randperm(PARTS * draws.total, generator=draws.fork("montage").generator())
        item = order.view(draws.total, PARTS)[draws.rows]
        source, part = item // PARTS, item % PARTS
        images = draws.take(self.data.modality, source.flatten())  # whole images, wherever they live
        tiles: Tensor | None = None
        for which in range(PARTS):
            places = (part.flatten() == which).nonzero()[:, 0]
            if not len(places):
                continue
            at = draws.at(source.flatten()[places]).fork(f"part{which}")
            view = self.views(cut(images[places.to(images.device)], which, self.overlap), at)[0].x
            if tiles is None:
                tiles = view.new_empty(len(images), *view.shape[1:])
            tiles[places.to(view.device)] = view
        assert tiles is not None
        return stitch(tiles.unflatten(0, item.shape)), source, part

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Encode one montage an image: ``"z"`` (B, 4, P), ``"where"`` (B, 4, 4) logits, ``"source"``, ``"part"``."""
        montage, source, part = self.montage(draws)
        features = self.backbone(montage)
        parts = unstitch(features)
        return {"features": features.pooled.detach(), "z": self.head(parts), "where": self.locator(parts),
                "source": source.to(parts.device), "part": part.to(parts.device)}

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """``cluster * (T / T0) * clustering + location * cross-entropy of the quadrant``."""
        clustering = supcon(encoded["z"].flatten(0, 1), encoded["source"].flatten(), self.temperature)
        placing = F.cross_entropy(encoded["where"].flatten(0, 1).float(), encoded["part"].flatten())
        total = self.cluster * self.temperature / self.base_temperature * clustering + self.location * placing
        return Loss(total, {"clustering": clustering.detach(), "location": placing.detach()})
