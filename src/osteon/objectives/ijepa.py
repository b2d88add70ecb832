"""I-JEPA: from one large block of an image, predict the features of other blocks, not their pixels.

Assran et al. 2023, arXiv:2301.08243, section 3 and appendix A.1.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.cells import need_cells
from osteon.parts.companion import Companion
from osteon.parts.objective import Objective
from osteon.parts.positions import PlaceEmbed, sincos
from osteon.parts.transformer import Block
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step
from osteon.views import make_views
from osteon.views.masks import ijepa_blocks

CARD = Card(
    kind="objective",
    name="ijepa",
    papers=("Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture",),
    modalities=("image", "sound", "series", "text", "table", "graph", "points", "volume", "video", "several"),
    differs="The loss is the authors' code's smooth L1 distance to layer-normalised targets, not the paper's squared "
    "distance to plain ones (option loss=l2 squares it). The predictor is half as wide as the encoder and 3 blocks "
    "deep instead of 384 and 6 to 12. Context is cut to the smallest count of the global batch, not of each process's.",
    backbones=("tokens",),
    cost="1 encoder forward on the context, 1 teacher forward on all tokens, 4 passes of a narrow predictor",
)


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Tokens (B, N, D) at raster places (B, K): (B, K, D)."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def feature_distance(prediction: Tensor, target: Tensor, kind: str) -> Tensor:
    """Mean distance of predicted to target features of each sample: (B, ..., D) twice -> (B,)."""
    prediction, target = prediction.float(), target.float()
    if kind == "l2":
        return (prediction - target).square().flatten(1).mean(1)
    return F.smooth_l1_loss(prediction, target, reduction="none").flatten(1).mean(1)


class Predictor(nn.Module):
    """A narrow Transformer that predicts features at given places from the features of the context.

    Args:
        in_dim: width of the encoder's tokens.
        positions: (1, N, dim) fixed positions of the full grid; ``dim`` is the width.
        depth: number of blocks.
        place_width: coordinates of tokens that have places of their own, which then count instead of ``positions``.
    """

    def __init__(self, in_dim: int, positions: Tensor, depth: int, place_width: int = 0) -> None:
        super().__init__()
        dim = positions.shape[-1]
        self.embed = nn.Linear(in_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(dim))
        self.register_buffer("positions", positions.clone(), persistent=False)
        self.place_embed = PlaceEmbed(place_width, dim) if place_width else None
        heads = next(h for h in range(max(1, dim // 32), 0, -1) if dim % h == 0)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.out = nn.Linear(dim, in_dim)
        self._initialise()

    positions: Tensor

    def forward(self, context: Tensor, at: Tensor, wanted: Tensor, lie: Tensor | None = None) -> Tensor:
        """Predict every target block by itself.

        Args:
            context: (B, K, D) features of the context.
            at: (B, K) raster places of the context.
            wanted: (B, T, M) raster places of T target blocks of M tokens.
            lie: (B, N, place_width) where all tokens lie, if not on the grid.

        Returns:
            (B, T, M, D) predicted features.
        """
        b, t, m = wanted.shape
        k, width = context.shape[1], self.positions.shape[-1]
        places = (self.positions if self.place_embed is None else self.place_embed(lie)).to(context.dtype)
        places = places.expand(b, -1, -1)
        known = self.embed(context) + gather_tokens(places, at)
        asked = self.mask_token + gather_tokens(places, wanted.flatten(1)).view(b * t, m, width)
        x = torch.cat([known.repeat_interleave(t, 0), asked.to(known.dtype)], 1)  # (B*T, K+M, width)
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm(x[:, k:])).view(b, t, m, -1)

    def _initialise(self) -> None:
        """Normal weights of deviation 0.02, those that end a residual branch smaller by sqrt(2 l) in block l."""
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            for layer, block in enumerate(self.blocks, 1):
                block = cast(Block, block)
                block.attn.proj.weight.div_(math.sqrt(2.0 * layer))
                block.mlp.fc2.weight.div_(math.sqrt(2.0 * layer))


class IJEPA(Objective):
    """Joint-embedding prediction: features of hidden blocks from a context block, targets from a moving average.

    The network a run leaves is the moving average, which is the one the authors evaluate (appendix A.1).

    Args:
        backbone: network to train, the encoder of the context.
        data: what the data look like.
        targets: number of target blocks.
        target_min: smallest share of the grid in a target block.
        target_max: largest share of the grid in a target block.
        context_min: smallest share of the grid in the context block, before the targets are taken out.
        predictor_dim: width of the predictor, a multiple of 4; 0 = half the encoder's, at least 32.
        predictor_depth: blocks of the predictor.
        momentum: start of the moving average's momentum, which rises linearly to 1.
        loss: ``smooth_l1`` (the authors' code) or ``l2`` (the paper).
        crop_min: smallest area share of the random crop; None = 0.3 of images, the modality's own of others.
        flip: mirror left-right at random; None = images are, samples of other modalities are not.
    """

    additive: ClassVar[bool] = True
    # The paper's 1e-3 at batch 2048; a square root of the batch keeps Adam's noise scale at small ones.
    recipe: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "lr_per": 2048, "lr_rule": "sqrt", "end_lr": 1e-3,
                        "weight_decay": 0.04, "weight_decay_end": 0.4, "warmup": 0.13}

    def __init__(self, backbone: Backbone, data: DataSpec, *, targets: int = 4, target_min: float = 0.15,
                 target_max: float = 0.2, context_min: float = 0.85, predictor_dim: int = 0, predictor_depth: int = 3,
                 momentum: float = 0.996, loss: Literal["smooth_l1", "l2"] = "smooth_l1", crop_min: float | None = None,
                 flip: bool = False) -> None:
        super().__init__(backbone, data)
        need_cells(backbone.options)
        if loss not in ("smooth_l1", "l2"):
            raise UsageError(f"There is no loss {loss!r}.", where="loss", fix="Give smooth_l1 or l2.")
        self.views = make_views("crop_flip", data, flip=flip, min_scale=crop_min, usual={"min_scale": 0.3})
        self.notes = list(self.views.notes)
        self.targets, self.momentum, self.loss = targets, momentum, loss
        self.target_scale, self.context_scale = (target_min, target_max), (context_min, 1.0)
        dim = predictor_dim or max(32, backbone.token_dim // 2 // 16 * 16)
        grid = backbone.grid(*data.extent)
        self.predictor = Predictor(backbone.token_dim, sincos(grid, dim), predictor_depth,
                                   backbone.place_width)
        self.companion = Companion(backbone=backbone)

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Per-sample distance ``"loss"`` (B,) and pooled ``"features"`` of the context."""
        x = self.views(batch[self.data.modality], draws)[0].x
        at, blocks = ijepa_blocks(self.backbone.grid(*x.shape[2:]), draws.fork("mask"), targets=self.targets,
                                  target_scale=self.target_scale, context_scale=self.context_scale)
        wanted = torch.stack(blocks, 1)  # (B, T, M)
        features = self.backbone(x, keep=at)
        prediction = self.predictor(features.tokens, at, wanted, self.backbone.places(x))
        loss = feature_distance(prediction, self.taught(x, wanted), self.loss)
        return {"loss": loss, "features": features.pooled.detach()}

    @torch.no_grad()
    def taught(self, x: Tensor, wanted: Tensor) -> Tensor:
        """The moving average's features of the whole image, normalised over their width, at the wanted places."""
        tokens = self.companion["backbone"](x).tokens
        tokens = F.layer_norm(tokens, tokens.shape[-1:])
        return gather_tokens(tokens, wanted.flatten(1)).view(*wanted.shape, -1)

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """Mean over samples."""
        total = encoded["loss"].mean()
        return Loss(total, {self.loss: total.detach()})

    def after_step(self, step: Step) -> None:
        """Move the companion towards the student; momentum rises linearly to 1."""
        self.companion.update(self.momentum + (1 - self.momentum) * step.progress, backbone=self.backbone)

    def exported(self) -> Backbone:
        """The moving average of the encoder, which the authors evaluate."""
        return cast(Backbone, self.companion["backbone"])

    def companions(self) -> list[nn.Module]:
        """The moving average."""
        return [self.companion]
