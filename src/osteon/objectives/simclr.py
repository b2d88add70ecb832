"""SimCLR: two views of a sample attract, all other samples of the batch repel.

Chen et al. 2020, arXiv:2002.05709, eq. 1 and algorithm 1; the deeper head is SimCLRv2's,
Chen et al. 2020, arXiv:2006.10029, sec. 3.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.objectives._joint import Joint
from osteon.parts.contrastive import nt_xent
from osteon.parts.heads import mlp
from osteon.parts.norm import BatchNorm
from osteon.parts.types import DataSpec, Loss, Step
from osteon.views import make_views

CARD = Card(
    kind="objective",
    name="simclr",
    papers=(
        "A Simple Framework for Contrastive Learning of Visual Representations",
        "Big Self-Supervised Models are Strong Semi-Supervised Learners",
    ),
    modalities=("image", "sound", "series", "text", "table", "graph", "points", "volume", "video", "several"),
    backbones=("tokens", "maps", "nodes"),
    differs="The loss is the mean over all 2B views; the authors' release adds the two views' means, twice as much. "
    "The head's width is the backbone's (at least 128) rather than fixed at 2048. SimCLRv2's later stages are "
    "other verbs: `osteon adapt --adapter full --head-layer 1` fine-tunes from inside the head, and the compressor "
    "ssld distils without labels, by its own loss. AdamW instead of LARS.",
    rows=(411,),
    cost="2 forwards per image",
)


class SimCLR(Joint):
    """Contrast two views of each image against the rest of the batch.

    Args:
        backbone: network to train.
        data: what the data look like.
        temperature: T of the softmax.
        head_layers: layers of the projection head (2: SimCLR, 3: SimCLRv2).
        head_width: width of the hidden layers; 0 = the backbone's width, at least 128.
        out: width of the embedding.
        crop_min: smallest area share of a crop; None = by the size of the images.
        flip: mirror views left-right at random; None = images are, other samples are not.
        strength: strength of the colour jitter; None = by the size of the images.
    """

    recipe: ClassVar = {"optimizer": "adamw", "lr": 2e-3, "lr_per": 256, "lr_rule": "sqrt", "weight_decay": 0.05,
                        "warmup": 0.05}

    def __init__(self, backbone: Backbone, data: DataSpec, *, temperature: float = 0.1, head_layers: int = 3,
                 head_width: int = 0, out: int = 128, crop_min: float | None = None, flip: bool | None = None,
                 strength: float | None = None) -> None:
        if temperature <= 0:
            raise UsageError(f"temperature={temperature} must be positive.", where="--set temperature")
        if head_layers < 1:
            raise UsageError(f"A head of {head_layers} layers maps nothing.", where="--set head_layers")
        width = head_width or max(backbone.dim, 128)
        projector = mlp((backbone.dim, *[width] * (head_layers - 1), out), last_norm=True)
        projector[-1] = BatchNorm(out, shift=False)  # the release's last norm has a scale and no shift
        super().__init__(
            backbone,
            data,
            views=make_views("simclr", data, flip=flip, strength=strength, min_scale=crop_min),
            projector=projector,
        )
        self.temperature = temperature

    def agree(self, z: Tensor, p: Tensor | None, t: Tensor | None, step: Step) -> Loss:
        """NT-Xent of the views' projections."""
        total = nt_xent(z, self.temperature)
        return Loss(total, {"nt_xent": total.detach()})
