"""SSAST: find and rebuild the hidden patches of a spectrogram, each from the same clip's other hidden patches.

Gong et al. 2022, arXiv:2110.09784, section 2 and algorithm 1.
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
from osteon.objectives._masked import hidden_mean
from osteon.parts.objective import Objective
from osteon.parts.targets import unpatchify
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step
from osteon.views import make_views
from osteon.views.masks import cluster_mask, hidden_count, hidden_indices

CARD = Card(
    kind="objective",
    name="ssast",
    papers=("SSAST: Self-Supervised Audio Spectrogram Transformer",),
    modalities=("sound",),
    differs="Masks are drawn so that every place is hidden equally often; the authors' sampler never hides the first "
    "patch and the lowest band half as often as the middle. The softmax runs over patches for each prediction, as in "
    "the paper's equation 1; the authors' code runs it over predictions. The sides of hidden squares are at most half "
    "the grid's. Positions are the backbone's; there are no class tokens. AdamW instead of Adam, warm-up and cosine "
    "instead of halving on a plateau.",
    rows=(377,),
    backbones=("tokens",),
    cost="2 forwards per clip on all tokens, each under its own mask",
)


def match_loss(prediction: Tensor, patches: Tensor) -> Tensor:
    """InfoNCE within a clip: prediction i is to pick patch i among the clip's patches, by plain dot products.

    Args:
        prediction: (B, M, P) outputs of the matching head at hidden places.
        patches: (B, M, P) the true patches there.

    Returns:
        (B,) mean over predictions of ``-log softmax_j(c_i . x_j)`` at j = i.
    """
    scores = prediction.float() @ patches.float().transpose(1, 2)
    return -scores.log_softmax(2).diagonal(dim1=1, dim2=2).mean(1)


class SSAST(Objective):
    """Joint discriminative and generative masked modelling of patches.

    Args:
        backbone: network to train.
        data: what the data look like.
        ratio: share of patches hidden (400 of 512 in the paper).
        cluster_min: smallest side of a hidden square in patches.
        cluster_max: largest side; 1 hides patches one by one, as the paper does with whole frames.
        rebuild: weight of the reconstruction beside the matching (lambda).
        crop_min: smallest share of time in the random span; 1 = the whole clip, as in the paper.
    """

    additive: ClassVar[bool] = True
    # The paper's 1e-4 at batch 24; the square root of the batch keeps Adam's noise scale.
    recipe: ClassVar = {"optimizer": "adamw", "lr": 1e-4, "lr_per": 24, "lr_rule": "sqrt", "betas": (0.95, 0.999),
                        "weight_decay": 5e-7, "warmup": 0.05}

    def __init__(self, backbone: Backbone, data: DataSpec, *, ratio: float = 0.78, cluster_min: int = 3,
                 cluster_max: int = 5, rebuild: float = 10.0, crop_min: float = 1.0) -> None:
        super().__init__(backbone, data)
        self.views = make_views("crop_flip", data, min_scale=crop_min)
        grid = backbone.grid(*data.extent)
        tokens = math.prod(grid)
        if not 1 < hidden_count(ratio, tokens) < tokens:
            raise UsageError(f"ratio={ratio} hides {hidden_count(ratio, tokens)} of {tokens} patches: at least two "
                             "must be hidden, to be told apart, and some must stay.", where="ratio",
                             fix="Set another ratio or a smaller patch.")
        if not 1 <= cluster_min <= cluster_max:
            raise UsageError(f"Squares of {cluster_min} to {cluster_max} patches are impossible.",
                             where="cluster_min, cluster_max")
        most = max(1, min(grid) // 2)
        self.sides = (min(cluster_min, most), min(cluster_max, most))
        self.ratio, self.rebuild = ratio, rebuild
        self.notes = [*self.views.notes, f"hidden squares of {self.sides[0]} to {self.sides[1]} patches: as asked, at "
                      f"most half the grid of {' x '.join(map(str, grid))}"]
        self.mask_token = nn.Parameter(torch.zeros(backbone.token_dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        width = backbone.token_dim
        self.match, self.generate = (nn.Sequential(nn.Linear(width, width), nn.ReLU(),
                                                   nn.Linear(width, backbone.shown_width)) for _ in range(2))

    def hidden(self, x: Tensor, draws: Draws) -> Tensor:
        """One mask, (B, N) bool, True = hidden."""
        return cluster_mask(self.backbone.grid(*x.shape[2:]), self.ratio, draws, sides=self.sides)

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Losses ``"match"`` and ``"rebuild"`` (B,) of two passes, and pooled ``"features"`` of the first."""
        x = self.views(batch[self.data.modality], draws)[0].x
        patches = self.backbone.shown(x)
        first, second = (self.hidden(x, draws.fork(name)) for name in ("match", "rebuild"))
        seen = self.backbone(x, mask=first, mask_token=self.mask_token)
        places = hidden_indices(first)[..., None]
        picked, true = (t.gather(1, places.expand(-1, -1, t.shape[-1])) for t in (seen.tokens, patches))
        rebuilt = self.generate(self.backbone(x, mask=second, mask_token=self.mask_token).tokens)
        error = F.mse_loss(rebuilt.float(), patches.float(), reduction="none").mean(-1)
        return {"match": match_loss(self.match(picked), true), "rebuild": hidden_mean(error, second),
                "features": seen.pooled.detach()}

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """``L = matching + lambda * reconstruction``, means over samples."""
        match, rebuild = encoded["match"].mean(), encoded["rebuild"].mean()
        return Loss(match + self.rebuild * rebuild, {"match": match.detach(), "rebuild": rebuild.detach()})

    @torch.no_grad()
    def reconstruct(self, batch: Batch, step: Step) -> tuple[Tensor, Tensor, Tensor] | None:
        """Input, input with hidden patches at the mean, and what the generative head puts there."""
        draws = Draws.of(batch, step)
        x = self.views(batch[self.data.modality], draws)[0].x
        mask = self.hidden(x, draws.fork("rebuild"))
        grid, shown = self.backbone.grid(*x.shape[2:]), self.backbone.shown(x)
        guess = self.generate(self.backbone(x, mask=mask, mask_token=self.mask_token).tokens).float()
        hole = mask[..., None]
        return (x, unpatchify(torch.where(hole, torch.zeros_like(shown), shown), self.backbone.stride, grid),
                unpatchify(torch.where(hole, guess, shown), self.backbone.stride, grid))
