"""VFS: frames from different parts of a video predict each other's embeddings, and correspondence emerges.

Xu and Wang 2021, "Rethinking Self-supervised Correspondence Learning: A Video Frame-level Similarity Perspective",
section 3. Without negatives, as in the authors' released recipes.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.objectives._joint import Joint
from osteon.parts.heads import mlp
from osteon.parts.projectors import width_of
from osteon.parts.types import DataSpec, Loss, Step
from osteon.views.clips import SegmentFrames, clip_plan

CARD = Card(
    kind="objective",
    name="vfs",
    papers=("Rethinking Self-supervised Correspondence Learning: A Video Frame-level Similarity Perspective",),
    modalities=("video",),
    differs="The network reads a frame as a clip of one: `per_frame` (a 2-D network) is the paper's, a 3-D ResNet "
    "works too, its taps in time on padding. Frames are drawn from those that were read, not from the whole film. "
    "With more than 2 frames the two groups are the first and the second half of the segments, and batch statistics "
    "are those of one segment's frames. The projector is as wide as the backbone, 256 to 2048. AdamW instead of "
    "SGD. Labels are propagated by `osteon.parts.label_propagation`; box tracking with a fine-tuned layer is left out.",
    rows=(340,),
    backbones=("maps",),
    cost="1 forward a frame drawn, 2 by default",
)


def pair_distance(p_BVP: Tensor, z_BVP: Tensor) -> Tensor:
    """Mean of ``2 - 2 cos(p, z)`` over every pair of a frame of one half and one of the other, both ways.

    No gradient reaches z. (B, V, P) twice, V even -> (B,) between 0 and 4.
    """
    p, z = F.normalize(p_BVP.float(), dim=-1), F.normalize(z_BVP.detach().float(), dim=-1)
    half = p.shape[1] // 2
    there = (p[:, :half] @ z[:, half:].transpose(1, 2)).mean((1, 2))
    back = (p[:, half:] @ z[:, :half].transpose(1, 2)).mean((1, 2))
    return 2 - there - back


class VFS(Joint):
    """A frame of every segment of a video is embedded; frames of the two halves predict each other, held still.

    Args:
        backbone: network to train.
        data: what the data look like.
        frames: frames drawn from each video, one of each equal segment; even.
        head_width: width of the projector's three layers and of the embedding; 0 = the backbone's, 256 to 2048.
        bottleneck: hidden width of the predictor; 0 = a quarter of the embedding's.
        crop_min: smallest share of a frame in a crop.
        flip: mirror left-right at random.
        colour: also change colours, remove them and blur, which suits objects and harms fine correspondence.
    """

    recipe: ClassVar = {"optimizer": "adamw", "lr": 1.5e-3, "lr_per": 256, "lr_rule": "sqrt", "weight_decay": 0.05,
                        "warmup": 0.05}
    additive: ClassVar[bool] = True
    concat_views: ClassVar[bool] = False

    def __init__(self, backbone: Backbone, data: DataSpec, *, frames: int = 2, head_width: int = 0,
                 bottleneck: int = 0, crop_min: float = 0.2, flip: bool = True, colour: bool = False) -> None:
        if len(data.extent) != 3 or frames < 2 or frames % 2 or frames > data.extent[0]:
            raise UsageError(f"{frames} frames do not make two groups of {' x '.join(map(str, data.extent))} samples.",
                             where="frames", fix="Give an even number, at most the frames of a sample.")
        backbone.grid(1, *data.extent[1:])  # a clip of one frame
        plan = clip_plan(data, crop_min=crop_min, ratio=(3 / 4, 4 / 3), flip=flip,
                         jitter=(0.4, 0.4, 0.4, 0.1) if colour else (0.0, 0.0, 0.0, 0.0), grey=0.2 * colour,
                         blur=0.5 * colour)
        width = width_of(backbone.dim, head_width, times=1, most=2048)
        super().__init__(backbone, data, views=SegmentFrames("vfs", data, [plan] * frames, [], {}),
                         projector=mlp((backbone.dim, width, width, width), last_norm=True),
                         predictor=mlp((width, bottleneck or width // 4, width)))
        if not hasattr(backbone, "encoder"):
            self.notes.append(f"{backbone.name} is three-dimensional and trained on single frames; the paper's 2-D "
                              "network is --backbone per_frame")

    def agree(self, z: Tensor, p: Tensor | None, t: Tensor | None, step: Step) -> Loss:
        """Mean over samples of the distance between predictions and embeddings of the other half's frames."""
        assert p is not None
        total = pair_distance(p, z).mean()
        unit = F.normalize(z.detach().float(), dim=-1)
        spread = unit.std(0, correction=0).mean() * z.shape[-1] ** 0.5  # 0 after collapse, near 1 without
        return Loss(total, {"distance": total.detach(), "spread": spread})
