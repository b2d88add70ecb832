"""LOOK: a sample should share its class with most of its nearest neighbours, so a class may fall into several groups.

Feng et al. 2021, arXiv:2110.06014. The authors published no code; this follows the abstract's leave-one-out weighted
k-nearest-neighbour classifier.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.companion import Companion, cosine_momentum
from osteon.parts.heads import mlp
from osteon.parts.objective import Objective
from osteon.parts.queue import Queue
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step
from osteon.views import make_views

CARD = Card(
    kind="objective",
    name="look",
    papers=("Rethinking Supervised Pre-training for Better Downstream Transferring",),
    modalities=("image",),
    differs="No code or defaults are published, so k, temperature, queue, momentum and head are our own, as is the "
    "rule for a sample none of whose k neighbours shares its class: its nearest one of its class is added to them.",
    rows=(17,),
    labels=True,
    cost="1 forward per image, and 1 of the companion",
)


def leave_one_out(z_BP: Tensor, label: Tensor, index: Tensor, bank_MP: Tensor, bank_label: Tensor, bank_index: Tensor,
                  k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """How badly a weighted k-NN classifier that leaves the sample out predicts its class.

    ``-log(sum of w over same-class neighbours / sum of w over all neighbours)`` with ``w = exp(cos / T)`` and the k
    nearest entries of the bank as neighbours; entries of the sample itself never count. If no neighbour has the
    sample's class, its nearest entry of that class becomes one.

    Args:
        z_BP: (B, P) embeddings.
        label: (B,) classes.
        index: (B,) numbers by which a sample is known again.
        bank_MP: (M, P) embeddings to look among; no gradient flows into them.
        bank_label: (M,) classes.
        bank_index: (M,) numbers.
        k: number of neighbours; all entries where there are fewer.
        temperature: T of the weights.

    Returns:
        () mean over the samples whose class occurs in the bank (0 if there is none), and () the share of neighbours
        that have their sample's class.
    """
    cosine = F.normalize(z_BP.float(), dim=-1) @ F.normalize(bank_MP.detach().float(), dim=-1).T
    with torch.no_grad():
        other = index[:, None] != bank_index[None, :]
        same = (label[:, None] == bank_label[None, :]) & other
        near = torch.zeros_like(other)
        far = float("-inf")
        near.scatter_(1, cosine.masked_fill(~other, far).topk(min(k, len(bank_MP)), dim=1).indices, True)
        near &= other
        # The nearest of the class is among the k already unless none of the class is.
        nearest = cosine.masked_fill(~same, far).argmax(1, keepdim=True)
        near |= torch.zeros_like(near).scatter_(1, nearest, True) & same
        counted = same.any(1)
    logits = cosine / temperature
    # A large finite number, not -inf, where nothing is summed: rows that do not count must not turn gradients to NaN.
    none = -1e4 / temperature
    wrong = logits.masked_fill(~near, none).logsumexp(1) - logits.masked_fill(~(near & same), none).logsumexp(1)
    loss = torch.where(counted, wrong, 0.0).sum() / counted.sum().clamp(min=1)
    return loss, (near & same).sum() / near.sum().clamp(min=1)


class LOOK(Objective):
    """Train with labels so that nearest neighbours, not whole classes, agree.

    Args:
        backbone: network to train.
        data: what the data look like; must have one class a sample.
        k: number of neighbours that are asked.
        temperature: T of the neighbours' weights.
        queue: past embeddings among which neighbours are sought, beside the batch; 0 = the batch alone.
        momentum: start of the companion's momentum, which embeds the neighbours; rises to 1 by a half cosine.
        head_layers: layers of the head; 0 = none, so that the features themselves are compared.
        head_width: hidden width of the head; 0 = the backbone's width, 128 to 2048.
        out: width of the head's output.
        crop_min: smallest area share of the random crop.
        flip: mirror left-right at random; None = images are, samples of other modalities are not.
    """

    recipe: ClassVar = {"optimizer": "adamw", "lr": 2e-3, "lr_per": 256, "lr_rule": "sqrt", "weight_decay": 0.05,
                        "warmup": 0.05}

    def __init__(self, backbone: Backbone, data: DataSpec, *, k: int = 50, temperature: float = 0.1,
                 queue: int = 1024, momentum: float = 0.9, head_layers: int = 2, head_width: int = 0,
                 out: int = 128, crop_min: float = 0.4, flip: bool | None = None) -> None:
        if data.num_classes < 2 or data.multi_label:
            raise UsageError("LOOK needs labelled data with one class a sample, and at least two classes.",
                             where="objective look")
        if k < 1 or temperature <= 0:
            raise UsageError(f"LOOK needs k of at least 1 and a positive temperature, not {k} and {temperature}.",
                             where="--set k, temperature")
        if head_layers < 0:
            raise UsageError(f"head_layers={head_layers} is not a number of layers.", where="--set head_layers")
        width = head_width or min(2048, max(128, backbone.dim))
        super().__init__(backbone, data)
        self.views = make_views("crop_flip", data, min_scale=crop_min, flip=flip)
        self.notes = list(self.views.notes)
        widths = (backbone.dim, *[width] * (head_layers - 1), out) if head_layers else (backbone.dim,)
        self.projector = mlp(widths, norm="none") if head_layers else nn.Identity()
        self.companion, self.momentum = Companion(backbone=backbone, projector=self.projector), momentum
        self.k, self.temperature = k, temperature
        self.past = Queue(queue, widths[-1:])
        self.past_label = Queue(queue, (), dtype=torch.long)
        self.past_index = Queue(queue, (), dtype=torch.long)
        self._fresh: tuple[Tensor, Tensor, Tensor] | None = None

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Embed one view: ``"z"`` and, by the companion, ``"t"`` (B, P), with ``"label"`` and ``"index"`` (B,)."""
        for key in ("label", "index"):
            if key not in batch:
                raise UsageError(f"LOOK needs the {key} of every sample.", where=f"batch entries {sorted(batch)}")
        x = self.views(batch[self.data.modality], draws)[0].x
        pooled = self.backbone(x).pooled
        with torch.no_grad():
            t = self.companion["projector"](self.companion["backbone"](x).pooled)
        return {"features": pooled.detach(), "z": self.projector(pooled), "t": t, "label": batch["label"].long(),
                "index": batch["index"]}

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """Leave-one-out k-NN loss among the batch's companion embeddings and those of the queue."""
        label, index, t = encoded["label"], encoded["index"], encoded["t"].detach()
        total, agree = leave_one_out(
            encoded["z"], label, index, torch.cat([t, self.past.read()]),
            torch.cat([label, self.past_label.read()]), torch.cat([index, self.past_index.read()]),
            self.k, self.temperature)
        self._fresh = (t, label, index)
        return Loss(total, {"leave_one_out": total.detach(), "neighbours_agree": agree})

    def after_step(self, step: Step) -> None:
        """Move the companion and remember the scored batch."""
        followed: dict[str, nn.Module] = {"backbone": self.backbone}
        if list(self.projector.parameters()):
            followed["projector"] = self.projector
        self.companion.update(cosine_momentum(self.momentum, step), **followed)
        if self._fresh is not None:
            for queue, entries in zip((self.past, self.past_label, self.past_index), self._fresh, strict=True):
                queue.push(entries)
            self._fresh = None

    def companions(self) -> list[nn.Module]:
        """The moving-average copy."""
        return [self.companion]
