"""DropPos: show a quarter of the patches, most of them without their position, and ask where each belongs.

Wang et al. 2023, arXiv:2309.03576, section 3. Two softenings: targets are spread over neighbouring places by a Gaussian
that narrows to nothing during training, and patches that look like the whole image count more.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones import Backbone
from osteon.backbones._base import take_kept
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.objective import Objective
from osteon.parts.transformer import Block
from osteon.parts.types import Batch, DataSpec, Draws, Features, Loss, Step
from osteon.views import make_views
from osteon.views.masks import hidden_count, random_mask, visible_indices

CARD = Card(
    kind="objective",
    name="droppos",
    papers=("DropPos: Pre-Training Vision Transformers by Reconstructing Dropped Positions",),
    modalities=("image", "sound", "series", "text", "volume", "video"),
    differs="Soft targets sum to 1 in every row; the authors' code divides by the sums of the wrong axis, so that "
    "theirs range from 0.89 to 1.11. Without a class token the mean of the patch tokens takes its place in the "
    "weights. The Gaussian narrows by the step, not by the epoch. The decoder is half as wide as the encoder (at least "
    "64) instead of 512, and images are resized bilinearly.",
    rows=(435,),
    backbones=("tokens",),
    cost="1 forward on 25 % of the tokens, 1 without gradient on all of them, and a small decoder",
)


def position_targets(grid: tuple[int, ...], sigma: float) -> Tensor:
    """Where a patch may be said to lie: row i is proportional to ``exp(-distance(i, j)^2 / sigma^2)`` and sums to 1.

    Args:
        grid: (rows, columns) of tokens.
        sigma: width of the Gaussian in tokens; 0 gives the identity.

    Returns:
        (N, N) float32.
    """
    n = math.prod(grid)
    if sigma**2 < 1e-6:  # the nearest neighbour's share is below any float's, and the quotient would overflow
        return torch.eye(n)
    place = torch.cartesian_prod(*(torch.arange(side) for side in grid)).view(n, len(grid))
    squared = (place[:, None] - place[None]).square().sum(-1)
    return (-squared / sigma**2).softmax(dim=1)


def resemblance(whole: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """Weight of every patch by its likeness to the image: softmax over patches of the cosine over a temperature.

    Args:
        whole: (B, D) class token, or what stands for the image.
        tokens: (B, N, D) patch tokens.
        temperature: smaller values single out fewer patches.

    Returns:
        (B, N), every row sums to 1.
    """
    cosine = F.cosine_similarity(whole[:, None].float(), tokens.float(), dim=-1)
    return (cosine / temperature).softmax(dim=1)


class PositionDecoder(nn.Module):
    """A few blocks without any position and a linear layer: (B, M, in_dim) tokens -> (B, M, places) logits.

    Args:
        in_dim: width of the encoder's tokens.
        dim: width of the blocks.
        depth: number of blocks.
        places: number N of places to choose from.
    """

    def __init__(self, in_dim: int, dim: int, depth: int, places: int) -> None:
        super().__init__()
        heads = next(h for h in range(max(1, dim // 32), 0, -1) if dim % h == 0)
        self.embed = nn.Linear(in_dim, dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.out = nn.Linear(dim, places)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits over the places of the grid for every token."""
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm(x))


class DropPos(Objective):
    """Say of patches without a position where in the grid they belong.

    The loss is the weighted mean, over all patches of the batch that lost their position, of the cross-entropy with
    the soft targets.

    Args:
        backbone: network to train.
        data: what the data look like.
        ratio: share of patches left out altogether.
        position_ratio: share of the remaining patches that lose their position.
        sigma: width in tokens of the Gaussian on the targets at the start; falls linearly to 0 over training.
        attentive: weigh patches by their likeness to the image, at the price of a second forward without gradient.
        attention_temperature: temperature of these weights.
        decoder_dim: width of the decoder; 0 = half the encoder's, at least 64.
        decoder_depth: blocks of the decoder.
        crop_min: smallest area share of the random crop; None = 0.2 of images, the modality's own of others.
        flip: mirror left-right at random; None = images are, samples of other modalities are not.
    """

    # The paper's 1.5e-4 per 256 at batch 2048 is 1.2e-3; the square root keeps Adam's noise scale at small batches.
    recipe: ClassVar = {"optimizer": "adamw", "lr": 1.2e-3, "lr_per": 2048, "lr_rule": "sqrt", "betas": (0.9, 0.95),
                        "weight_decay": 0.05, "warmup": 0.05, "clip": 5.0}

    def __init__(self, backbone: Backbone, data: DataSpec, *, ratio: float = 0.75, position_ratio: float = 0.75,
                 sigma: float = 1.0, attentive: bool = True, attention_temperature: float = 0.1, decoder_dim: int = 0,
                 decoder_depth: int = 2, crop_min: float | None = None, flip: bool | None = None) -> None:
        super().__init__(backbone, data)
        self.grid = backbone.grid(*data.extent)
        backbone.positions(self.grid)  # a network without this door is refused here, not at the first step
        places = math.prod(self.grid)
        shown = places - hidden_count(ratio, places)
        if not hidden_count(position_ratio, shown):
            raise UsageError(f"Of {places} patches {shown} are shown and none of them loses its position.",
                             where="ratio, position_ratio", fix="Show more patches or use smaller ones.")
        if sigma < 0 or attention_temperature <= 0:
            raise UsageError(f"sigma = {sigma} or attention_temperature = {attention_temperature} is out of range.",
                             where="droppos", fix="Give sigma >= 0 and attention_temperature > 0.")
        self.views = make_views("crop_flip", data, flip=flip, min_scale=crop_min, usual={"min_scale": 0.2})
        self.notes = list(self.views.notes)
        self.ratio, self.position_ratio, self.sigma = ratio, position_ratio, sigma
        self.attentive, self.attention_temperature = attentive, attention_temperature
        self.position_token = nn.Parameter(torch.empty(backbone.token_dim))
        nn.init.normal_(self.position_token, std=0.02)
        dim = decoder_dim or max(64, backbone.dim // 2 // 16 * 16)
        self.decoder = PositionDecoder(backbone.token_dim, dim, decoder_depth, places)

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Per sample, summed over lost positions: weighted ``"error"``, ``"hits"`` and the weights, each (B,)."""
        x = self.views(batch[self.data.modality], draws)[0].x
        keep = visible_indices(random_mask(self.grid, self.ratio, draws.fork("mask")))  # (B, K)
        lost = random_mask((1, keep.shape[1]), self.position_ratio, draws.fork("positions"))  # (B, K)
        features = self.look(x, keep, lost)
        logits = self.locate(features).float()
        targets = position_targets(self.grid, self.sigma * (1 - draws.step.progress)).to(logits.device)[keep]
        error = -(targets * logits.log_softmax(-1)).sum(-1)  # (B, K)
        weight = lost * (self.weights(x, keep) if self.attentive else torch.ones_like(error))
        return {"error": (weight * error).sum(1), "weight": weight.sum(1), "features": features.pooled.detach(),
                "hits": (weight * (logits.argmax(-1) == keep)).sum(1)}

    def look(self, x: Tensor, keep: Tensor, lost: Tensor) -> Features:
        """Encode the kept patches (B, K) only, with a learned vector in place of the lost positions."""
        tokens = take_kept(self.backbone.stem(x), keep)
        places = take_kept(self.backbone.positions(self.grid).expand(len(x), -1, -1), keep)
        places = torch.where(lost[..., None], self.position_token.to(places.dtype), places)
        present = self.backbone.present(x)
        return self.backbone.finish(tokens + places, self.grid, None if present is None else present.gather(1, keep))

    def locate(self, features: Features) -> Tensor:
        """Logits over all N places for every kept patch, (B, K, N); the class token takes part where there is one."""
        if features.cls is None:
            return self.decoder(features.tokens)
        return self.decoder(torch.cat([features.cls[:, None], features.tokens], 1))[:, 1:]

    @torch.no_grad()
    def weights(self, x: Tensor, keep: Tensor) -> Tensor:
        """Resemblance of the kept patches to the image as the present encoder sees it whole, (B, K), rows sum to 1."""
        whole = self.backbone(x)
        image = whole.tokens.mean(1) if whole.cls is None else whole.cls
        kept = resemblance(image, whole.tokens, self.attention_temperature).gather(1, keep)
        return kept / kept.sum(1, keepdim=True)

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """Weighted mean over every lost position of the batch."""
        weight = encoded["weight"].sum()
        total = encoded["error"].sum() / weight
        return Loss(total, {"position": total.detach(), "accuracy": (encoded["hits"].sum() / weight).detach()})
