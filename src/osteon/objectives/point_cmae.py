"""Point-CMAE: a masked autoencoder that hides each sample twice, and whose two decoders must agree on what both miss.

Ren et al. 2024, "Bringing Masked Autoencoders Explicit Contrastive Properties for Point Cloud Self-Supervised
Learning".
The masks give the two sides of a contrast, so that neither augmentation nor negatives are needed. Defined wherever MAE
is: nothing in it belongs to points.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal, cast

from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.objectives._masked import Masked, hidden_mean
from osteon.parts.positions import sincos
from osteon.parts.transformer import TokenDecoder
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step
from osteon.views import make_views
from osteon.views.masks import hidden_count, random_mask, visible_indices

CARD = Card(
    kind="objective",
    name="point_cmae",
    papers=("Bringing Masked Autoencoders Explicit Contrastive Properties for Point Cloud Self-Supervised Learning",),
    modalities=("points", "image", "sound", "series", "text", "table"),
    differs="The agreement is the paper's, of a token hidden in both masks with itself; the released code averages the "
    "distance of such a token to all tokens of the other view, which is the option agreement=code. Decoders are half "
    "as wide as the encoder (rounded to a multiple of 16, at least 64) and 2 blocks deep instead of as wide and 4, and "
    "do not see the class token, which exists only if the backbone has one. Errors are the backbone's own: on points "
    "the Chamfer distance, weighted by 1000 as released; on values squared and on words cross-entropy, weighted by 1.",
    rows=(416,),
    backbones=("tokens",),
    cost="2 encoder forwards on 40 % of the tokens each and 2 small decoders on all",
)


def agreement(first: Tensor, second: Tensor, both: Tensor) -> Tensor:
    """Mean over tokens that both masks hide of 1 - cosine of the token's two features (equation of the paper).

    Args:
        first: (B, N, D) features of the first decoder, in order.
        second: (B, N, D), of the second.
        both: (B, N) bool, hidden in both.

    Returns:
        (B,); 0 where no token is hidden in both.
    """
    return hidden_mean(1 - F.cosine_similarity(first.float(), second.float(), dim=-1), both)


def agreement_of_rows(first: Tensor, second: Tensor, both: Tensor) -> Tensor:
    """The released code's form: 1 - cosine of every such token of the first view with *all* tokens of the second."""
    a, b = F.normalize(first.float(), dim=-1), F.normalize(second.float(), dim=-1)
    return hidden_mean(1 - (a @ b.transpose(1, 2)).mean(-1), both)


class PointCMAE(Masked):
    """Two masks, one encoder, two decoders: reconstruction of both hidden parts, and agreement where they meet.

    Args:
        backbone: network to train.
        data: what the data look like.
        ratio: share of tokens hidden by each mask; about ``ratio**2`` of them are hidden by both.
        weight: of the agreement.
        reconstruction_weight: of the sum of both reconstructions; 0 = 1000 where tokens are judged by the Chamfer
            distance of points in a sphere of radius 1 (the paper), else 1.
        agreement: ``paper`` (a token with itself) or ``code`` (a token with all tokens of the other view).
        decoder_dim: width of the decoders, a multiple of 4; 0 = half the encoder's, at least 64.
        decoder_depth: blocks of each decoder.
        crop_min: smallest share of a sample in the random crop; None = 0.2 of images, the modality's own of others.
        flip: mirror left-right at random; None = images are, samples of other modalities are not.
    """

    # The paper's 1e-3 at batch 128, wd 0.05, 10 of 300 epochs of warm-up; the square root suits other batches.
    recipe: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "lr_per": 128, "lr_rule": "sqrt", "weight_decay": 0.05,
                        "warmup": 0.033}

    def __init__(self, backbone: Backbone, data: DataSpec, *, ratio: float = 0.6, weight: float = 1.0,
                 reconstruction_weight: float = 0.0, agreement: Literal["paper", "code"] = "paper",
                 decoder_dim: int = 0, decoder_depth: int = 2, crop_min: float | None = None,
                 flip: bool | None = None) -> None:
        views = make_views("crop_flip", data, flip=flip, min_scale=crop_min, usual={"min_scale": 0.2})
        super().__init__(backbone, data, views=views)
        grid = backbone.grid(*data.extent)
        hidden = hidden_count(ratio, math.prod(grid))
        if not 0 < hidden < math.prod(grid):
            raise UsageError(f"ratio={ratio} hides {hidden} of {math.prod(grid)} tokens: some must be hidden and some "
                             "must stay.", where="ratio", fix="Set another ratio or smaller tokens.")
        if agreement not in ("paper", "code") or weight < 0 or reconstruction_weight < 0:
            raise UsageError(f"agreement={agreement!r}, weight={weight:g}, reconstruction_weight="
                             f"{reconstruction_weight:g} make no loss.", where="point_cmae",
                             fix="Give agreement paper or code, and weights of 0 or more.")
        self.ratio, self.weight, self.agreement = ratio, weight, agreement
        self.scale = reconstruction_weight or (1000.0 if data.modality == "points" else 1.0)
        dim = decoder_dim or max(64, backbone.token_dim // 2 // 16 * 16)
        heads = next(h for h in range(max(1, dim // 32), 0, -1) if dim % h == 0)
        self.decoders = nn.ModuleList(
            TokenDecoder(backbone.token_dim, backbone.shown_width, sincos(grid, dim), depth=decoder_depth, heads=heads,
                         place_width=backbone.place_width) for _ in range(2))
        self.notes += [f"reconstruction_weight = {self.scale:g}, of the sum of both",
                       f"masks: {hidden} of {math.prod(grid)} tokens each, "
                       f"{hidden**2 / math.prod(grid):.1f} of them hidden by both on average"]

    def mask(self, grid: tuple[int, ...], draws: Draws) -> Tensor:
        """Uniformly random tokens, the same number in every sample."""
        return random_mask(grid, self.ratio, draws)

    def predict(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Prediction of the first decoder and pooled features, for pictures."""
        prediction, _, pooled = self.look(x, mask, 0)
        return prediction, pooled

    def look(self, x: Tensor, mask: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
        """What one decoder makes of the visible tokens.

        Args:
            x: (B, C, *extent).
            mask: (B, N) bool, True = hidden.
            side: 0 or 1, which decoder.

        Returns:
            Predictions (B, N, shown_width), the decoder's features (B, N, d), pooled features (B, D).
        """
        keep, decoder = visible_indices(mask), self.decoders[side]
        features = self.backbone(x, keep=keep)
        held: list[Tensor] = []
        hook = cast(nn.Module, decoder.norm).register_forward_hook(lambda _module, _given, out: held.append(out))
        try:
            prediction = decoder(features.tokens, keep, self.backbone.places(x))
        finally:
            hook.remove()
        return prediction, held[0], features.pooled

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Per-sample ``"loss"``, its terms (B,) each, how many tokens both masks hide, and pooled ``"features"``."""
        x = self.views(batch[self.data.modality], draws)[0].x
        grid, target, present = self.backbone.grid(*x.shape[2:]), self.target(x), self.backbone.present(x)
        errors, states, masks, pooled = [], [], [], []
        for side in range(2):
            mask = self.mask(grid, draws.fork(f"mask{side}"))
            prediction, state, features = self.look(x, mask, side)
            asked = mask if present is None else mask & present
            errors.append(hidden_mean(self.error(prediction, target), asked))
            states.append(state)
            masks.append(asked)
            pooled.append(features.detach())
        both = masks[0] & masks[1]
        agree = (agreement if self.agreement == "paper" else agreement_of_rows)(states[0], states[1], both)
        rebuilt = errors[0] + errors[1]
        return {"loss": self.scale * rebuilt + self.weight * agree, "reconstruction": rebuilt.detach(),
                "agreement": agree.detach(), "both": both.sum(1).float(), "features": pooled[0]}

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """Mean over samples."""
        parts = {key: encoded[key].mean().detach() for key in ("reconstruction", "agreement", "both")}
        return Loss(encoded["loss"].mean(), parts)
