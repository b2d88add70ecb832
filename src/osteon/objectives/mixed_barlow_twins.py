"""Mixed Barlow Twins: a blend of two images must correlate with the views as the blend of their embeddings does.

Bandara et al. 2023, arXiv:2312.02151, sec. 3.2, on top of Zbontar et al. 2021, arXiv:2103.03230.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.objectives._joint import Joint, run_heads, run_views
from osteon.parts.losses.cross_correlation import (
    barlow_loss,
    cross_correlation,
    redundancy_weight,
    standardise,
)
from osteon.parts.projectors import expander, width_of
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step
from osteon.views import make_views

CARD = Card(
    kind="objective",
    name="mixed_barlow_twins",
    papers=("Guarding Barlow Twins Against Overfitting with Mixed Samples",),
    modalities=("image",),
    differs="Follows the README's formula and the CIFAR script: the mixing weight is lambda_reg without the ImageNet "
    "script's factor 0.5 and warm-up, and the second target uses C(z1, z2), not that script's C(z2, z2). "
    "Embeddings are standardised with the biased variance, so the diagonal of C(z, z) is 1 (released: (N-1)/N), and "
    "are not first scaled to unit length as the CIFAR script does. The head scales with the backbone (512 and 1024 "
    "wide for a ResNet-18, as released) and the off-diagonal weight with the head (1/128 at 1024, as released). "
    "AdamW instead of Adam.",
    rows=(49,),
    cost="3 forwards per image",
)


def mixing_term(m_BD: Tensor, a_BD: Tensor, b_BD: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    """Squared distance of the blend's correlations from the blend of correlations.

    With x_m = share * x1 + (1 - share) * x2[partner], ``C(m, a)`` should be
    ``share * C(a, a) + (1 - share) * C(b[partner], a)``, and ``C(m, b)`` should be
    ``share * C(a, b) + (1 - share) * C(b[partner], b)``. Gradient flows through both sides.

    Args:
        m_BD: (B, D) standardised embeddings of the blends.
        a_BD: (B, D) standardised embeddings of the first views.
        b_BD: (B, D) standardised embeddings of the second views.
        partner: (B,) row of the sample each was blended with.
        share: () weight of the sample's own first view.

    Returns:
        () sum of squares over both D x D matrices.
    """
    blend = share * a_BD + (1 - share) * b_BD[partner]
    # C is linear in its first argument: C(m, x) - [share C(a, x) + (1 - share) C(b[partner], x)] = C(m - blend, x).
    excess = m_BD - blend
    return cross_correlation(excess, a_BD).square().sum() + cross_correlation(excess, b_BD).square().sum()


class MixedBarlowTwins(Joint):
    """Barlow Twins and a term that asks embeddings to follow linear blends of images.

    Args:
        backbone: network to train.
        data: what the data look like.
        redundancy: weight of the off-diagonal term (lambda_BT in the paper); 0 = 0.0051, or 8 over the output's
            width where larger.
        mixing: weight of the mixing term on top of ``redundancy`` (lambda_reg); 0 = Barlow Twins, no third forward.
        alpha: both parameters of the Beta distribution of the blend's share; 1 = uniform.
        head_width: width of the hidden layer, half that of the output; 0 = the backbone's width, 256 to 4096.
        head_norm: normalisation in the head, ``batch`` (the paper's) or ``layer`` (exact under accumulation).
        crop_min: smallest area share of a crop; 0 = the rule of the view recipe.
        flip: mirror views left-right at random; None = images are, other samples are not.
        strength: strength of colour jitter.
    """

    recipe: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "lr_per": 256, "lr_rule": "sqrt", "weight_decay": 0.05,
                        "warmup": 0.05}
    concat_views: ClassVar[bool] = False

    def __init__(self, backbone: Backbone, data: DataSpec, *, redundancy: float = 0.0, mixing: float = 4.0,
                 alpha: float = 1.0, head_width: int = 0, head_norm: Literal["batch", "layer"] = "batch",
                 crop_min: float = 0.0, flip: bool | None = None, strength: float = 1.0) -> None:
        width = width_of(backbone.dim, head_width, times=1, most=4096)
        super().__init__(
            backbone, data,
            views=make_views("byol", data, flip=flip, strength=strength, min_scale=crop_min or None),
            projector=expander((backbone.dim, width, 2 * width), norm=head_norm))
        self.redundancy = redundancy_weight(redundancy, 2 * width)
        self.mixing, self.alpha = mixing, alpha

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Embed two views and a blend: ``"z"`` (B, 2, P), ``"m"`` (B, P), ``"partner"`` (B,) rows, ``"share"`` (B,)."""
        views = self.views(batch[self.data.modality], draws)
        features = run_views(self.backbone, views, concat=False)
        encoded = {"features": features[0].detach(), "z": run_heads(self.projector, features, concat=False)}
        if self.mixing:
            mix = draws.fork("mix")
            share, partner = mix.shared_beta(self.alpha, self.alpha), mix.permutation()[draws.rows]
            # The partner may live on another rank or in another micro-batch: draw its second view again from its row.
            other = self.views(draws.take(self.data.modality, partner), draws.at(partner))[1].x
            blend = self.backbone(share * views[0].x + (1 - share) * other).pooled
            encoded |= {"m": self.projector(blend), "partner": partner.to(blend.device),
                        "share": share.expand(len(partner)).clone()}
        return encoded

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """``on + redundancy * off + mixing * redundancy * mixing term``."""
        loss = self.agree(encoded["z"], None, None, step)
        if "m" not in encoded:
            return loss
        a, b = (standardise(z) for z in encoded["z"].unbind(1))
        term = mixing_term(standardise(encoded["m"]), a, b, encoded["partner"], encoded["share"][0])
        return Loss(loss.total + self.mixing * self.redundancy * term, loss.parts | {"mixing": term.detach()})

    def agree(self, z: Tensor, p: Tensor | None, t: Tensor | None, step: Step) -> Loss:
        """Barlow Twins: distance of the cross-correlation from the identity."""
        total, on, off = barlow_loss(z, self.redundancy)
        return Loss(total, {"invariance": on.detach(), "redundancy": off.detach()})
