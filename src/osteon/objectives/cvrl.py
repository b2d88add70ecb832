"""CVRL: two clips of one video attract, clips of all other videos repel.

Qian et al. 2021, "Spatiotemporal Contrastive Video Representation Learning", section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.objectives._joint import Joint
from osteon.parts.contrastive import nt_xent
from osteon.parts.heads import mlp
from osteon.parts.types import DataSpec, Loss, Step
from osteon.views.clips import ClipPair, ClipPlan, clip_plan
from osteon.views.recipes import SMALL

CARD = Card(
    kind="objective",
    name="cvrl",
    papers=("Spatiotemporal Contrastive Video Representation Learning",),
    modalities=("video",),
    differs="Clips are half of the frames that were read, at the rate they were read (the paper: 16 frames, one "
    "of two); what the run leaves may read whole samples. Gaps are whole frames. Mirrors are off unless asked "
    "for, since a mirrored motion may be another one; no blur up to 32 pixels; hue, saturation and grey need three "
    "channels. The loss is the mean over all 2B clips (the authors' code adds the two directions). The head is as wide "
    "as the backbone (at least 128) rather than 2048, the backbone is the user's rather than a 3-D ResNet-50, and "
    "AdamW replaces SGD with a decay inside the loss.",
    rows=(102,),
    backbones=("tokens", "maps"),
    cost="2 forwards on half a sample",
)


def clip_plans(spec: DataSpec, *, crop_min: float, strength: float, flip: bool, blur: float,
               solarise: float) -> list[ClipPlan]:
    """The two views: alike but for the chance of a blur, a tenth in the second, and of solarisation there."""
    first = clip_plan(spec, crop_min=crop_min, ratio=(0.5, 2.0), flip=flip, grey=0.2, blur=blur,
                      jitter=(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength))
    second = clip_plan(spec, crop_min=crop_min, ratio=(0.5, 2.0), flip=flip, solarise=solarise)
    return [first, ClipPlan(replace(first.plan, blur=0.1 * blur, solarise=second.plan.solarise))]


class CVRL(Joint):
    """Contrast two clips of each video against the rest of the batch.

    Args:
        backbone: network to train.
        data: what the data look like.
        frames: frames of a clip; 0 = half of the sample's. In a sample with fewer both clips are the sample, which
            begins again where it ends.
        temperature: T of the softmax.
        head_layers: hidden layers of the projection head.
        head_width: width of the hidden layers; 0 = the backbone's width, at least 128.
        out: width of the embedding.
        crop_min: smallest share of a frame in a crop.
        flip: mirror left-right at random.
        strength: strength of the colour jitter.
        blur: chance that a clip of the first view is blurred; of the second a tenth of it. Negative = 1, or 0 up to
            32 pixels.
        solarise: chance that a clip of the second view is solarised.
    """

    recipe: ClassVar = {"optimizer": "adamw", "lr": 2e-3, "lr_per": 256, "lr_rule": "sqrt", "weight_decay": 0.05,
                        "warmup": 0.05}

    def __init__(self, backbone: Backbone, data: DataSpec, *, frames: int = 0, temperature: float = 0.1,
                 head_layers: int = 3, head_width: int = 0, out: int = 128, crop_min: float = 0.3, flip: bool = False,
                 strength: float = 1.0, blur: float = -1.0, solarise: float = 0.2) -> None:
        if temperature <= 0 or head_layers < 1:
            raise UsageError(f"temperature={temperature} must be positive, and head_layers={head_layers} at least 1.",
                             where="cvrl")
        length, side = clip_length(data.extent, frames), max(data.extent[1:])
        chance = blur if blur >= 0 else float(side > SMALL)
        plans = clip_plans(data, crop_min=crop_min, strength=strength, flip=flip, blur=chance,
                           solarise=solarise)
        notes = [f"clips: {length} of {data.extent[0]} frames "
                 + ("(as asked)" if frames else "(rule: half of the sample)")]
        if blur < 0:
            notes.append(f"blur = {chance:g} because frames are {'>' if chance else '<='} {SMALL} pixels")
        width = head_width or max(backbone.dim, 128)
        super().__init__(backbone, data, views=ClipPair("cvrl", data, plans, notes, {}, length),
                         projector=mlp((backbone.dim, *[width] * head_layers, out)))
        backbone.grid(length, *data.extent[1:])
        self.temperature = temperature

    @classmethod
    def seen(cls, extent: tuple[int, ...], options: Mapping[str, Any]) -> tuple[int, ...]:
        """A clip."""
        return (clip_length(extent, int(options.get("frames", 0))), *extent[1:])

    def agree(self, z: Tensor, p: Tensor | None, t: Tensor | None, step: Step) -> Loss:
        """NT-Xent of the clips' projections."""
        total = nt_xent(z, self.temperature)
        return Loss(total, {"nt_xent": total.detach()})


def clip_length(extent: tuple[int, ...], frames: int) -> int:
    """Frames of a clip of samples with these sides; 0 is half of the sample's."""
    if len(extent) != 3 or frames < 0:
        raise UsageError(f"Clips of {frames} frames cannot be cut from samples of {' x '.join(map(str, extent))}.",
                         where="frames", fix="Give video, and 0 or more frames.")
    return frames or max(1, extent[0] // 2)
