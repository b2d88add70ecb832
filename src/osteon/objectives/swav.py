"""SwAV: sort views into evenly used clusters and predict a view's cluster from another view of the same sample.

Caron et al. 2020, arXiv:2006.09882, eq. 1 to 5, sec. 3.2 and appendix A.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.objectives._joint import Joint
from osteon.parts.heads import mlp
from osteon.parts.multicrop import crops_for
from osteon.parts.projectors import width_of
from osteon.parts.prototypes import Prototypes, busiest, count_for, sinkhorn
from osteon.parts.queue import Queue
from osteon.parts.types import DataSpec, Loss, Step
from osteon.views import make_views

CARD = Card(
    kind="objective",
    name="swav",
    papers=("Unsupervised Learning of Visual Features by Contrasting Cluster Assignments",),
    modalities=("image", "sound", "series", "text", "table", "graph", "points", "volume", "video", "several"),
    backbones=("tokens", "maps", "nodes"),
    differs="eps is 0.03 instead of 0.05: the authors' first remedy where the loss stays near log K, as short runs on "
    "small images did. 4 local crops instead of 6, none under 16 pixels. The number of prototypes follows the number "
    "of classes (200 to 3000, 300 if unknown) instead of always 3000. The queue is off by default and, if asked for, "
    "starts at a share of training; it serves once full, as in the release. Prototypes are held for a share of "
    "training (1 %) instead of a number of steps, and their gradient is taken through the scaling to unit length, "
    "which leaves out the radial part that the release removes by rescaling after the step. The head's hidden layer "
    "is as wide as the backbone (256 to 2048). AdamW instead of LARS.",
    rows=(278,),
    cost="2 full-size and n_local small forwards per image",
)


def swapped_prediction(scores_BVK: Tensor, codes_BGK: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of every code against every other view's prediction.

    Mean over assigning views i < G of the mean over all other views v of ``-sum_k q_ik log softmax(s_v / T)_k``,
    averaged over samples.

    Args:
        scores_BVK: (B, V, K) scores of every view.
        codes_BGK: (B, G, K) codes of the first G views; no gradient flows into them.
        temperature: T of the softmax.

    Returns:
        () about log K at the start and after collapse.
    """
    views = scores_BVK.shape[1]
    log_p = (scores_BVK.float() / temperature).log_softmax(-1)
    crossed = -torch.einsum("bgk,bvk->gv", codes_BGK.detach().float(), log_p) / len(log_p)  # (G, V)
    own = torch.eye(*crossed.shape, dtype=torch.bool, device=crossed.device)
    return crossed.masked_fill(own, 0.0).sum(1).mean() / (views - 1)


class SwAV(Joint):
    """Swap cluster assignments between views of a sample.

    Args:
        backbone: network to train.
        data: what the data look like.
        prototypes: number of clusters K; 0 = ten a class, at least 200, or 300 where classes are unknown.
        temperature: T of the softmax over prototypes.
        eps: softness of the codes (the paper: 0.05, and 0.03 where the loss stays near log K, as in short runs).
        sinkhorn_iterations: rounds of balancing the codes.
        queue: past samples that help to balance the codes, for batches smaller than the number of prototypes; 0 = off.
            Start late or make it shorter if the loss rises when it begins to serve.
        queue_start: share of training after which the queue fills.
        freeze: share of training in which the prototypes keep their initial values.
        n_local: number of small crops, which only predict; -1 = 4, or none under 16 pixels.
        global_size: side of the two full crops in pixels; 0 = that of the data.
        local_size: side of the small crops in pixels; 0 = half of the full ones.
        head_width: hidden width of the head; 0 = the backbone's width, 256 to 2048.
        out: width of the embedding.
        crop_min: smallest area share of a full crop, largest of a small one; 0 = by the
            size of the images.
        flip: mirror views left-right at random; None = images are, other samples are not.
        strength: strength of the colour jitter; None = by the size of the images.
    """

    recipe: ClassVar = {"optimizer": "adamw", "lr": 2e-3, "lr_per": 256, "lr_rule": "sqrt", "weight_decay": 0.05,
                        "warmup": 0.05}

    def __init__(self, backbone: Backbone, data: DataSpec, *, prototypes: int = 0, temperature: float = 0.1,
                 eps: float = 0.03, sinkhorn_iterations: int = 3, queue: int = 0, queue_start: float = 0.15,
                 freeze: float = 0.01, n_local: int = -1, global_size: int = 0, local_size: int = 0,
                 head_width: int = 0, out: int = 128, crop_min: float = 0.0, flip: bool | None = None,
                 strength: float | None = None) -> None:
        if temperature <= 0:
            raise UsageError(f"temperature={temperature} must be positive.", where="--set temperature")
        width = width_of(backbone.dim, head_width, times=1, most=2048)
        count, note = count_for(prototypes, data.num_classes)
        n_local, share, notes = crops_for(n_local, crop_min, global_size or data.size, usual=4)
        super().__init__(
            backbone, data,
            views=make_views("multicrop", data, size=global_size or None, style="swav", n_local=n_local,
                             local_size=local_size or None, stride=backbone.stride, global_scale=share,
                             flip=flip, strength=strength),
            projector=mlp((backbone.dim, width, out)))
        self.prototypes = Prototypes(out, count)
        self.queue = Queue(queue, (self.n_global, out))
        self.temperature, self.eps, self.iterations = temperature, eps, sinkhorn_iterations
        self.queue_start, self.freeze = queue_start, freeze
        self.notes += [*notes, note]
        self._fresh: Tensor | None = None

    @torch.no_grad()
    def codes(self, z_BGP: Tensor) -> Tensor:
        """Balanced codes of the assigning views' unit embeddings, each view on its own. (B, G, P) -> (B, G, K).

        A full queue's entries of the same view, scored with the present prototypes, take part in the balancing.
        """
        if self.queue.full:
            z_BGP = torch.cat([self.queue.read(), z_BGP])
        past = self.queue.length if self.queue.full else 0
        scores = self.prototypes(z_BGP)
        return torch.stack([sinkhorn(s, eps=self.eps, iterations=self.iterations)[past:] for s in scores.unbind(1)], 1)

    def agree(self, z: Tensor, p: Tensor | None, t: Tensor | None, step: Step) -> Loss:
        """Predict the codes of the two full views from all other views."""
        z = F.normalize(z.float(), dim=-1)
        fresh = z[:, : self.n_global].detach()
        codes = self.codes(fresh)
        scores = self.prototypes(z, held=step.progress < self.freeze)
        total = swapped_prediction(scores, codes, self.temperature)
        self._fresh = fresh
        return Loss(total, {"swapped_prediction": total.detach(), "busiest": busiest(codes.flatten(0, 1))})

    def after_step(self, step: Step) -> None:
        """Scale prototypes back to unit length and remember the scored batch."""
        super().after_step(step)
        self.prototypes.renormalise()
        if self._fresh is not None and step.progress >= self.queue_start:
            self.queue.push(self._fresh)
        self._fresh = None
