"""DINO: a student learns from a slow copy of itself that sees only large crops, without labels or contrast.

Caron et al. 2021, arXiv:2104.14294, algorithm 1, eq. 1 to 4, sec. 3 and appendix C.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.objectives._joint import Joint
from osteon.parts.companion import Companion, cosine_momentum
from osteon.parts.heads import mlp
from osteon.parts.multicrop import crops_for
from osteon.parts.projectors import width_of
from osteon.parts.prototypes import Prototypes
from osteon.parts.types import DataSpec, Loss, Step
from osteon.views import make_views

CARD = Card(
    kind="objective",
    name="dino",
    papers=("Emerging Properties in Self-Supervised Vision Transformers",),
    modalities=("image",),
    differs="Set for runs of hundreds of steps on small images, where the paper's settings end in uniform outputs: the "
    "teacher's momentum starts at 0.97 instead of 0.996, its temperature is 0.03 instead of 0.04 rising to 0.07, the "
    "head has batch normalisation (an option of the release, off there), and the centre starts at the first batch's "
    "mean instead of zero. Colour jitter is half as strong up to 32 pixels. 4 local crops instead of 8, none under 16 "
    "pixels; 1024 outputs instead of 65,536; hidden layers 4 times as wide as the backbone (256 to 2048) instead of "
    "2048. The warm-up of the teacher's temperature and the freeze of the last layer are shares of training (0.3, "
    "0.01). Pooled features are the backbone's: a mean of patches unless it has a class token. The head keeps "
    "PyTorch's initial values.",
    cost="2 full-size and n_local small forwards per image, and 2 full-size ones of the teacher",
)


def teacher_temperature(step: Step, start: float, end: float, warmup: float) -> float:
    """Linear from ``start`` to ``end`` over the first share ``warmup`` of training, then ``end``."""
    return end if step.progress >= warmup else start + (end - start) * step.progress / warmup


def targets(logits: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """Centred, sharpened distribution ``softmax((logits - centre) / T)``, no gradient. (..., K), (K,) -> (..., K)."""
    return ((logits.detach().float() - centre) / temperature).softmax(-1)


def cross_view_entropy(student_BVK: Tensor, target_BGK: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of every target against the student's prediction from every other view.

    Args:
        student_BVK: (B, V, K) logits of the student for all views.
        target_BGK: (B, G, K) distributions of the first G views; no gradient flows into them.
        temperature: the student's.

    Returns:
        () mean over the pairs g != v and over samples.
    """
    log_p = (student_BVK.float() / temperature).log_softmax(-1)
    crossed = -torch.einsum("bgk,bvk->gv", target_BGK.detach(), log_p) / len(log_p)  # (G, V)
    own = torch.eye(*crossed.shape, dtype=torch.bool, device=crossed.device)
    return crossed.masked_fill(own, 0.0).sum() / (~own).sum()


class DINO(Joint):
    """Match the output distributions of a student and its moving average across crops.

    The teacher is what the run leaves (:meth:`exported`), as in the authors' evaluation.

    Args:
        backbone: network to train.
        data: what the data look like.
        outputs: number K of outputs (dimensions of the distribution).
        temperature: the student's.
        teacher_start: the teacher's temperature at the start (the paper: 0.04).
        teacher_end: the teacher's temperature after its warm-up (the paper: 0.07 for ViTs, 0.04 elsewhere).
        teacher_warmup: share of training over which it rises.
        momentum: start of the teacher's momentum; rises to 1 by a half cosine (the paper: 0.996).
        centre_momentum: share of the old centre kept at every step.
        freeze: share of training in which the last layer keeps its initial values.
        n_local: number of small crops, which only the student sees; -1 = 4, or none under 16 pixels.
        global_size: side of the two full crops in pixels; 0 = that of the data.
        local_size: side of the small crops in pixels; 0 = half of the full ones.
        head_width: width of the head's two hidden layers; 0 = 4 times the backbone's width, 256 to 2048.
        head_norm: normalisation in the head: ``batch``, or ``layer`` and ``none`` (the paper's), which are exact under
            accumulation.
        bottleneck: width before the last layer.
        crop_min: smallest area share of a full crop, largest of a small one; 0 = the paper's 0.4, 0.5 for
            images under 16 pixels.
        flip: mirror views left-right at random; None = images are, other samples are not.
        strength: strength of the colour jitter; None = 1 (the paper's), 0.5 up to 32 pixels.
    """

    recipe: ClassVar = {"optimizer": "adamw", "lr": 2e-3, "lr_per": 256, "lr_rule": "sqrt", "weight_decay": 0.04,
                        "weight_decay_end": 0.4, "warmup": 0.1, "clip": 3.0}
    centre: Tensor
    centred: Tensor

    def __init__(self, backbone: Backbone, data: DataSpec, *, outputs: int = 1024, temperature: float = 0.1,
                 teacher_start: float = 0.03, teacher_end: float = 0.03, teacher_warmup: float = 0.3,
                 momentum: float = 0.97, centre_momentum: float = 0.9, freeze: float = 0.01, n_local: int = -1,
                 global_size: int = 0, local_size: int = 0, head_width: int = 0,
                 head_norm: Literal["none", "batch", "layer"] = "batch", bottleneck: int = 256,
                 crop_min: float = 0.0, flip: bool | None = None, strength: float | None = None) -> None:
        for name, value in (("temperature", temperature), ("teacher_start", teacher_start),
                            ("teacher_end", teacher_end)):
            if value <= 0:
                raise UsageError(f"{name}={value} must be positive.", where=f"--set {name}")
        width = width_of(backbone.dim, head_width, times=4, most=2048)
        side = global_size or data.size
        n_local, share, notes = crops_for(n_local, crop_min, side, usual=4)
        if strength is None:
            strength = 0.5 if side <= 32 else 1.0
            notes.append(f"strength = {strength:g}: 0.5 up to 32 pixels, else 1")
        super().__init__(
            backbone, data,
            views=make_views("multicrop", data, size=global_size or None, style="dino", n_local=n_local,
                             local_size=local_size or None, stride=backbone.stride, global_scale=share,
                             flip=flip, strength=strength),
            projector=mlp((backbone.dim, width, width, bottleneck), norm=head_norm, activation=nn.GELU),
            momentum=momentum)
        self.last = Prototypes(bottleneck, outputs)
        self.taught_last = Companion(last=self.last)
        self.register_buffer("centre", torch.zeros(outputs))
        self.register_buffer("centred", torch.tensor(False))  # whether the centre has seen a batch
        self.temperature, self.centre_momentum, self.freeze = temperature, centre_momentum, freeze
        self.teacher = (teacher_start, teacher_end, teacher_warmup)
        self.notes += notes
        self._mean: Tensor | None = None

    def agree(self, z: Tensor, p: Tensor | None, t: Tensor | None, step: Step) -> Loss:
        """Cross-entropy of the teacher's distributions of full crops and the student's of all other crops."""
        assert t is not None
        with torch.no_grad():
            logits = self.taught_last["last"](F.normalize(t.float(), dim=-1))
            self._mean = logits.mean((0, 1))
            centre = self.centre if self.centred else self._mean
            q = targets(logits, centre, teacher_temperature(step, *self.teacher))
            entropy = -torch.special.xlogy(q, q).sum(-1).mean()
        student = self.last(F.normalize(z.float(), dim=-1), held=step.progress < self.freeze)
        total = cross_view_entropy(student, q, self.temperature)
        return Loss(total, {"cross_entropy": total.detach(), "teacher_entropy": entropy})

    def after_step(self, step: Step) -> None:
        """Move the teacher towards the student and the centre towards the teacher's mean output."""
        super().after_step(step)
        assert self.momentum is not None
        self.taught_last.update(cosine_momentum(self.momentum, step), last=self.last)
        if self._mean is not None:
            self.centre.lerp_(self._mean, 1 - self.centre_momentum if self.centred else 1.0)
            self.centred.fill_(True)
            self._mean = None

    def exported(self) -> Backbone:
        """The teacher's backbone."""
        assert self.companion is not None
        teacher = self.companion["backbone"]
        assert isinstance(teacher, Backbone)
        return teacher

    def companions(self) -> list[nn.Module]:
        """The teacher: backbone and head, and its last layer."""
        return [*super().companions(), self.taught_last]
