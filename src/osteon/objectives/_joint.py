"""Skeleton of joint-embedding objectives: views x projector x predictor x companion x agreement loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from osteon.backbones import Backbone
from osteon.parts.companion import Companion, cosine_momentum
from osteon.parts.objective import Objective
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step, View
from osteon.views import Views


class Joint(Objective):
    """Several views of a sample are embedded and a loss rewards their agreement without collapse.

    A method fills in :meth:`agree`. The encoding holds ``"z"`` (B, V, P) projections of every view, ``"p"`` (B, V, P)
    predictions where there is a predictor, and ``"t"`` (B, G, P) projections by the companion of the first
    ``n_global`` views, without gradient.

    Args:
        backbone: network to train.
        data: what the data look like.
        views: maker of views; full-size views come first.
        projector: head from pooled features to embeddings.
        predictor: head from online embeddings to companion embeddings.
        momentum: start of the companion's momentum (rises to 1 by a half cosine); None = no companion.

    Attributes:
        concat_views: views of one size pass the network together and share batch statistics.
    """

    any_size: ClassVar[bool] = True
    compared: ClassVar[str] = "z"
    concat_views: ClassVar[bool] = True
    n_global: ClassVar[int] = 2

    def __init__(self, backbone: Backbone, data: DataSpec, *, views: Views, projector: nn.Module,
                 predictor: nn.Module | None = None, momentum: float | None = None) -> None:
        super().__init__(backbone, data)
        self.views, self.projector, self.predictor = views, projector, predictor
        self.momentum = momentum
        self.companion = None if momentum is None else Companion(backbone=backbone, projector=projector)
        self.notes = list(views.notes)

    @abstractmethod
    def agree(self, z: Tensor, p: Tensor | None, t: Tensor | None, step: Step) -> Loss:
        """Loss from projections z (B, V, P), predictions p (B, V, P) and companion projections t (B, G, P)."""

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """Embed every view; see the class docstring for the entries."""
        views = self.views(batch[self.data.modality], draws)
        features = run_views(self.backbone, views, concat=self.concat_views)
        encoded = {"features": features[0].detach()}
        encoded["z"] = run_heads(self.projector, features, concat=self.concat_views)
        if self.predictor is not None:
            encoded["p"] = run_heads(self.predictor, list(encoded["z"].unbind(1)), concat=self.concat_views)
        if self.companion is not None:
            with torch.no_grad():
                taught = run_views(self.companion["backbone"], views[: self.n_global], concat=self.concat_views)
                encoded["t"] = run_heads(self.companion["projector"], taught, concat=self.concat_views)
        return encoded

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """Hand the gathered embeddings to :meth:`agree`."""
        return self.agree(encoded["z"], encoded.get("p"), encoded.get("t"), step)

    def after_step(self, step: Step) -> None:
        """Move the companion towards the student."""
        if self.companion is not None and self.momentum is not None:
            self.companion.update(cosine_momentum(self.momentum, step), backbone=self.backbone,
                                  projector=self.projector)

    def kept(self) -> dict[str, Tensor]:
        """The projection head: fine-tuning may start inside it."""
        return {f"projector.{name}": value for name, value in self.projector.state_dict().items()}

    def companions(self) -> list[nn.Module]:
        """The moving-average copy, if any."""
        return [] if self.companion is None else [self.companion]


def run_views(backbone: nn.Module, views: Sequence[View], *, concat: bool) -> list[Tensor]:
    """Pooled features of every view, (B, D) each; views of one size share a forward when ``concat``."""
    if not concat:
        return [backbone(v.x).pooled for v in views]
    out: list[Tensor] = []
    start = 0
    while start < len(views):  # neighbours of one size go together
        stop = start
        while stop < len(views) and views[stop].x.shape == views[start].x.shape:
            stop += 1
        pooled = backbone(torch.cat([v.x for v in views[start:stop]])).pooled
        out.extend(pooled.chunk(stop - start))
        start = stop
    return out


def run_heads(head: nn.Module, features: Sequence[Tensor], *, concat: bool) -> Tensor:
    """Apply a head to every view. V x (B, D) -> (B, V, P)."""
    if concat:
        return torch.stack(head(torch.cat(list(features))).chunk(len(features)), dim=1)
    return torch.stack([head(f) for f in features], dim=1)
