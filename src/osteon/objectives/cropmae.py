"""CropMAE: rebuild a crop of a crop from one or two of its patches and the whole larger crop.

Eymael et al. 2024, arXiv:2403.17823, section 3; order of the decoder, flips and crop sizes from the authors' code.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.objectives._masked import hidden_mean
from osteon.parts.objective import Objective
from osteon.parts.positions import sincos
from osteon.parts.targets import patchify, standardise_patches, unpatchify, unstandardise_patches
from osteon.parts.transformer import Attention
from osteon.parts.types import Batch, DataSpec, Draws, Features, Geometry, Loss, Step, View
from osteon.views.crop import crop_resize, sample_boxes
from osteon.views.masks import random_mask, visible_indices
from osteon.views.pipeline import standardise, to_unit
from osteon.views.recipes import SMALL

CARD = Card(
    kind="objective",
    name="cropmae",
    papers=("Efficient Image Pre-Training with Siamese Cropped Masked Autoencoders",),
    modalities=("image",),
    differs="Dropout of the decoder is off by default (the authors': 0.1), so that a sample's encoding does not depend "
    "on which others share its process; option dropout turns it on, for the branches and the MLP but not inside the "
    "attention. The decoder is half as wide as the encoder (at least 64). Without a class token the patch tokens alone "
    "are queried. Up to 32 pixels a larger crop is at least a fifth of the image, not a tenth. The number of visible "
    "patches is rounded down as in the authors' code, but is at least 1.",
    rows=(437,),
    backbones=("tokens",),
    cost="1 forward on all tokens, 1 on about 1 % of them, and a decoder with cross-attention",
)


def inside(outer: Tensor, inner: Tensor) -> Tensor:
    """A box given as fractions of another box, as fractions of the image: (B, 4) twice -> (B, 4), x0 y0 x1 y1."""
    corner, size = outer[:, :2].repeat(1, 2), (outer[:, 2:] - outer[:, :2]).repeat(1, 2)
    return corner + inner * size


def visible_count(ratio: float, tokens: int) -> int:
    """Patches left visible: ``tokens * (1 - ratio)`` rounded down, at least 1 and at most all but one."""
    if not 0 < ratio < 1:
        raise UsageError(f"{ratio} is not a share of patches to hide.", where="ratio", fix="Give 0 < ratio < 1.")
    if tokens < 2:
        raise UsageError("An image of a single patch cannot be hidden in part.", where="cropmae",
                         fix="Use smaller patches, e.g. --set patch=4.")
    # The slack keeps 1 - 0.9 = 0.09999999999999998 from hiding one patch more.
    return min(tokens - 1, max(1, int(tokens * (1 - ratio) + 1e-9)))


class CrossBlock(nn.Module):
    """Post-norm block in CropMAE's order: attention to the other view, then MLP, then attention to oneself.

    Args:
        dim: width of queries and context.
        heads: attention heads.
        mlp_ratio: width of the hidden layer over ``dim``.
        dropout: probability of dropping a value of the hidden layer or of a branch.
    """

    def __init__(self, dim: int, heads: int, *, mlp_ratio: float = 8.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.cross, self.own = Attention(dim, heads), Attention(dim, heads)
        self.fc1, self.fc2 = nn.Linear(dim, int(dim * mlp_ratio)), nn.Linear(int(dim * mlp_ratio), dim)
        self.norm_cross, self.norm_mlp, self.norm_own = (nn.LayerNorm(dim, eps=1e-6) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(B, N, D), (B, M, D) -> (B, N, D)."""
        x = self.norm_cross(x + self.dropout(self.cross(x, context)))
        x = self.norm_mlp(x + self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x))))))
        return self.norm_own(x + self.dropout(self.own(x)))


class CrossDecoder(nn.Module):
    """Predict every patch of the masked view from its visible tokens and all tokens of the other view.

    One projection serves both views. Hidden places get a learned mask token; only the masked view gets positions here.

    Args:
        in_dim: width of the encoder's tokens.
        out_dim: width of the prediction.
        positions: (1, N, dim) fixed positions of the masked view's grid.
        depth: number of blocks.
        dropout: see :class:`CrossBlock`.
    """

    positions: Tensor

    def __init__(self, in_dim: int, out_dim: int, positions: Tensor, *, depth: int, dropout: float) -> None:
        super().__init__()
        dim = positions.shape[-1]
        heads = next(h for h in range(max(1, dim // 32), 0, -1) if dim % h == 0)
        self.embed = nn.Linear(in_dim, dim)
        self.mask_token = nn.Parameter(torch.empty(dim))
        nn.init.normal_(self.mask_token, std=0.02)
        self.register_buffer("positions", positions.clone(), persistent=False)
        self.blocks = nn.ModuleList(CrossBlock(dim, heads, dropout=dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.out = nn.Linear(dim, out_dim)

    def forward(self, seen: Features, masked: Features, keep: Tensor) -> Tensor:
        """Features of the full view and of the visible patches ``keep`` (B, K) of the other -> (B, N, out_dim)."""
        context, known = self.embed(all_tokens(seen)), self.embed(masked.tokens)
        index = keep[..., None].expand(-1, -1, known.shape[-1])
        full = self.mask_token.to(known.dtype).expand(len(keep), self.positions.shape[1], -1)
        x = full.scatter(1, index, known) + self.positions.to(known.dtype)
        if masked.cls is not None:  # a query of its own, without position, that predicts nothing
            x = torch.cat([self.embed(masked.cls[:, None]), x], 1)
        for block in self.blocks:
            x = block(x, context)
        return self.out(self.norm(x))[:, -full.shape[1]:]


def all_tokens(features: Features) -> Tensor:
    """Patch tokens, after the class token where there is one: (B, N or 1 + N, D)."""
    return features.tokens if features.cls is None else torch.cat([features.cls[:, None], features.tokens], 1)


class CropMAE(Objective):
    """Siamese masked autoencoder on nested crops: one view is seen whole, the other is nearly all hidden.

    Both pass the same network. The loss is the squared error on the hidden patches of the masked view.

    Args:
        backbone: network to train.
        data: what the data look like.
        ratio: share of patches hidden in the masked view.
        pair: which views: ``global_to_local`` (the masked view is cropped out of the seen one), ``local_to_global``
            (the reverse), ``random`` (two crops of the image) or ``same`` (one view twice).
        crop_min: smallest area share of the larger crop; None = 0.1, or 0.2 up to 32 pixels.
        inner_min: smallest area share of the inner crop, of the larger one.
        inner_max: largest area share of the inner crop, of the larger one.
        flip: mirror each view left-right at random, by itself.
        decoder_dim: width of the decoder, a multiple of 4; 0 = half the encoder's, at least 64.
        decoder_depth: blocks of the decoder.
        dropout: dropout of the decoder; with it a run on several processes is no longer that of one.
        norm_pix: predict patches standardised by their own mean and deviation.
    """

    additive: ClassVar[bool] = True
    # The paper's 1e-4 per 256 at batch 2048 is 8e-4; the square root keeps Adam's noise scale at small batches.
    recipe: ClassVar = {"optimizer": "adamw", "lr": 8e-4, "lr_per": 2048, "lr_rule": "sqrt", "betas": (0.9, 0.95),
                        "weight_decay": 0.05, "warmup": 0.05}

    def __init__(self, backbone: Backbone, data: DataSpec, *, ratio: float = 0.985,
                 pair: Literal["global_to_local", "local_to_global", "random", "same"] = "global_to_local",
                 crop_min: float | None = None, inner_min: float = 0.3, inner_max: float = 0.6, flip: bool = True,
                 decoder_dim: int = 0, decoder_depth: int = 4, dropout: float = 0.0, norm_pix: bool = True) -> None:
        super().__init__(backbone, data)
        if pair not in ("global_to_local", "local_to_global", "random", "same"):
            raise UsageError(f"There is no pair of views {pair!r}.", where="pair",
                             fix="Give global_to_local, local_to_global, random or same.")
        if crop_min is None:
            crop_min, sign = (0.2, "<=") if data.size <= SMALL else (0.1, ">")
            self.notes.append(f"crop_min = {crop_min:g} because the images are {sign} {SMALL} pixels")
        self.grid = backbone.grid(*data.extent)
        tokens = self.grid[0] * self.grid[1]
        self.visible = visible_count(ratio, tokens)
        self.notes.append(f"{self.visible} of {tokens} patches of the masked view are visible")
        self.pair, self.flip, self.norm_pix = pair, flip, norm_pix
        self.outer_scale, self.inner_scale = (crop_min, 1.0), (inner_min, inner_max)
        self.patch = backbone.stride
        dim = decoder_dim or max(64, backbone.dim // 2 // 16 * 16)
        self.decoder = CrossDecoder(backbone.token_dim, backbone.shown_width, sincos(self.grid, dim),
                                    depth=decoder_depth, dropout=dropout)

    def views(self, images: Tensor, draws: Draws) -> tuple[View, View]:
        """The view that is seen and the view that is masked, from images as stored (B, C, H, W)."""
        x = to_unit(images, self.data)
        first, second = draws.fork("view0"), draws.fork("view1")
        side = (self.data.size, self.data.size)
        box = sample_boxes(first.fork("crop"), *x.shape[-2:], scale=self.outer_scale)
        flips = [stream.fork("flip").rand() < 0.5 * self.flip for stream in (first, second)]
        outer = self._view(x, box, box, flips[0])
        if self.pair == "same":
            return outer, outer
        if self.pair == "random":
            other = sample_boxes(second.fork("crop"), *x.shape[-2:], scale=self.outer_scale)
            return outer, self._view(x, other, other, flips[1])
        # The inner crop is cut out of the resized outer one before that is mirrored, as in the authors' code.
        part = sample_boxes(second.fork("crop"), *side, scale=self.inner_scale)
        inner = self._view(crop_resize(x, box, side), part, inside(box, part), flips[1])
        return (outer, inner) if self.pair == "global_to_local" else (inner, outer)

    def _view(self, x: Tensor, box: Tensor, place: Tensor, flip: Tensor) -> View:
        """Cut ``box`` out of x; ``place`` is where that lies in the source image."""
        cut = crop_resize(x, box, (self.data.size, self.data.size), flip)
        return View(standardise(cut, self.data), Geometry(place, flip))

    def mask(self, draws: Draws) -> Tensor:
        """(B, N) bool over the masked view, True = hidden: random patches, all but ``visible`` of them."""
        tokens = self.grid[0] * self.grid[1]
        return random_mask(self.grid, 1 - self.visible / tokens, draws.fork("mask"))

    def predict(self, seen: Tensor, masked: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Predictions (B, N, patch*patch*C) for the masked view, and pooled features (B, D) of the seen one."""
        keep = visible_indices(mask)
        whole = self.backbone(seen)
        return self.decoder(whole, self.backbone(masked, keep=keep), keep), whole.pooled

    def losses(self, prediction: Tensor, masked: Tensor, mask: Tensor) -> Tensor:
        """Mean squared error of each sample's hidden patches, (B,)."""
        target = patchify(masked, self.patch)
        if self.norm_pix:
            target = standardise_patches(target)
        return hidden_mean((prediction.float() - target).square().mean(-1), mask)

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Per-sample loss ``"loss"`` (B,) and pooled ``"features"`` of the view that is seen whole."""
        seen, masked = self.views(batch[self.data.modality], draws)
        mask = self.mask(draws)
        prediction, pooled = self.predict(seen.x, masked.x, mask)
        return {"loss": self.losses(prediction, masked.x, mask), "features": pooled.detach()}

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """Mean over samples."""
        total = encoded["loss"].mean()
        return Loss(total, {"reconstruction": total.detach()})

    @torch.no_grad()
    def reconstruct(self, batch: Batch, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """The masked view, its visible patches, and the predictions pasted into the hidden ones."""
        draws = Draws.of(batch, step)
        seen, masked = self.views(batch[self.data.modality], draws)
        mask = self.mask(draws)
        true, guess = patchify(masked.x, self.patch), self.predict(seen.x, masked.x, mask)[0].float()
        if self.norm_pix:
            guess = unstandardise_patches(guess, true)
        left, filled = (torch.where(mask[..., None], pixels, true) for pixels in (torch.zeros_like(true), guess))
        return masked.x, unpatchify(left, self.patch, self.grid), unpatchify(filled, self.patch, self.grid)
