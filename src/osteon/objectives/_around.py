"""Skeleton of objectives that add something to another one, which goes on as it is."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from osteon.backbones import Backbone
from osteon.core import registry
from osteon.core.errors import UsageError
from osteon.parts.objective import Objective
from osteon.parts.types import Batch, DataSpec, Draws, Features, Step
from osteon.views import normalise


class Around(Objective):
    """Another objective, to whose loss a method adds a term about features of the full, unmasked image.

    Args:
        backbone: network to train.
        data: what the data look like.
        task: name of the other objective; ``auto``: mae for token backbones, spark for convolutional ones.
        options: of the task, as a mapping.
        own: name of the method, which cannot be its own task.
    """

    def __init__(self, backbone: Backbone, data: DataSpec, *, task: str, options: dict[str, Any] | None,
                 own: str) -> None:
        card = registry.find("objective", ("mae" if backbone.kind == "tokens" else "spark") if task == "auto" else task)
        if card.name == own or backbone.kind not in card.backbones or (card.labels and not data.num_classes):
            why = (f"the task cannot be {own} itself" if card.name == own else
                   f"{card.name} learns from labels, and there are none" if backbone.kind in card.backbones else
                   f"{card.name} trains {' or '.join(card.backbones)}, and {backbone.name} is of {backbone.kind}")
            raise UsageError(why[0].upper() + why[1:] + ".", where="--set task")
        super().__init__(backbone, data)
        self.inner: Objective = registry.build("objective", card.name, backbone, data, **(options or {}))
        # One owner, so that no weight is in a checkpoint twice.
        self.inner._modules.pop("backbone")
        object.__setattr__(self.inner, "backbone", backbone)
        self.recipe = self.inner.recipe  # type: ignore[misc]
        why = ": masked autoencoding for this kind of backbone" if task == "auto" else ""
        self.notes = [f"task={card.name}{why}", *self.inner.notes]

    def full(self, batch: Batch, draws: Draws) -> Tensor:
        """The view the task sees (drawn once more from the same streams), unmasked; the image where it has no such."""
        views = getattr(self.inner, "views", None)
        if callable(views):
            x = views(batch[self.data.modality], draws)[0].x
            if x.shape[2:] == self.data.extent:
                return x
        return normalise(batch[self.data.modality], self.data)

    def after_step(self, step: Step) -> None:
        """What the task does."""
        self.inner.after_step(step)

    def exported(self) -> Backbone:
        """What the task exports."""
        return self.inner.exported()

    def companions(self) -> list[nn.Module]:
        """The task's own."""
        return self.inner.companions()

    def reconstruct(self, batch: Batch, step: Step) -> tuple[Tensor, Tensor, Tensor] | None:
        """The task's reconstruction."""
        return self.inner.reconstruct(batch, step)


def hidden(features: Features) -> Tensor:
    """The class token after the last norm where there is one, else the pooled features. -> (B, D)."""
    return features.pooled if features.cls is None else features.cls
