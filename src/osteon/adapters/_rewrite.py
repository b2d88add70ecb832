"""The skeleton of adapters that write weights as base plus change with osteon's own tuner."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from osteon.parts.adapter import Adapter
from osteon.parts.reparam import Change, Layer, Reparam, merged, reparametrise, select_layers
from osteon.parts.types import DataSpec

if TYPE_CHECKING:
    from osteon.backbones import Backbone


class Rewrite(Adapter):
    """An adapter that is one :class:`Change` a layer.

    A subclass sets its own options, then calls :meth:`rewrite`.

    Args:
        backbone: pre-trained network.
        task: what is to be told apart.
    """

    def __init__(self, backbone: Backbone, task: DataSpec) -> None:
        super().__init__(backbone, task)
        self.names: list[str] = []

    def rewrite(self, targets: str | Iterable[str], *, grouped: bool = True) -> None:
        """Put a change on every layer that ``targets`` stands for; see :func:`select_layers`."""
        layers = select_layers(self.backbone, targets, grouped=grouped)
        self.names = list(reparametrise(self.backbone, layers, self.change))

    def train(self, mode: bool = True) -> Rewrite:
        """Training mode for the changes; the frozen backbone stays in evaluation mode."""
        super().train(mode)
        for module in self.backbone.modules():
            if isinstance(module, Change):
                module.train(mode)
        return self

    @abstractmethod
    def change(self, name: str, layer: Layer) -> Change:
        """The change of one layer."""

    def layers(self) -> dict[str, Reparam]:
        """The rewritten layers by name."""
        return {name: cast(Reparam, self.backbone.get_submodule(name)) for name in self.names}

    def expected_trainable(self) -> int:
        """The formula of one layer, summed over the layers, and the head."""
        return sum(self.count(name, r.base) for name, r in self.layers().items()) + self.head_size

    @abstractmethod
    def count(self, name: str, layer: Layer) -> int:
        """How many numbers train in one layer, by the method's formula."""

    def merge(self) -> Backbone:
        """A plain backbone with every change folded into its layer."""
        return cast("Backbone", merged(self.backbone))
