"""What every adapter is: a frozen backbone, a small trained part, a head, and a delta that holds only what changed."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from osteon.core.errors import UsageError, nearest
from osteon.core.tensorfile import digest
from osteon.parts.types import DataSpec, Step

if TYPE_CHECKING:
    from osteon.backbones import Backbone

#: entry of a delta that says which base it belongs to: (32,) uint8
BASE = "base_fingerprint"
#: defaults of training that all adapters share; a network trained on labels may well collapse onto its classes
RECIPE: dict[str, Any] = {"optimizer": "adamw", "lr": 3e-3, "weight_decay": 0.0, "warmup": 0.05, "collapse_stop": False}


def fingerprint(network: nn.Module) -> str:
    """SHA-256 of the names, types, shapes and values of everything a network holds."""
    return digest({k: v.detach().cpu() for k, v in network.state_dict().items()}, "")


class Adapter(nn.Module, ABC):
    """A classifier, or a regression, made of a pre-trained backbone and little that is new.

    Frozen parts run in evaluation mode, also in training: dropout is off and BatchNorm keeps its statistics.

    Args:
        backbone: pre-trained network; copied, so the given one is left alone.
        task: what is to be told apart (``num_classes``, ``multi_label``) or predicted (``target``).

    Attributes:
        recipe: defaults of optimiser and schedule (keys of :class:`osteon.train.settings.TrainSettings`).
        mergeable: the adapted features can be computed by a plain backbone; not so for what works beside the weights.
        fingerprint: of the base the adapter was built on.
    """

    recipe: ClassVar[dict[str, Any]] = RECIPE
    mergeable: ClassVar[bool] = True

    def __init__(self, backbone: Backbone, task: DataSpec) -> None:
        super().__init__()
        if task.target is None and task.num_classes < 2:
            raise UsageError(f"Adapting needs at least two classes; the task has {task.num_classes}.", where="adapt",
                             fix="Give labelled data.")
        self.task = task
        self.fingerprint = fingerprint(backbone)
        self.backbone = copy.deepcopy(backbone).requires_grad_(False)
        self.notes: list[str] = []
        self._kept: dict[str, dict[str, Tensor]] = {}
        self.head = new_head(backbone.dim, task.outputs)

    # -- what runs -----------------------------------------------------------------------------------------------

    def encode(self, images: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) -> what the head reads, (B, width)."""
        return self.backbone(images).pooled

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) -> logits (B, K)."""
        return self.head(self.encode(images))

    def train(self, mode: bool = True) -> Adapter:
        """Training mode for what trains; the frozen backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def penalty(self) -> Tensor | None:
        """What the method adds to the loss, (); None when it adds nothing."""
        return None

    def after_step(self, step: Step) -> None:  # noqa: B027  (a hook: most adapters keep no such state)
        """Update state that gradient does not train, once an optimiser step."""

    # -- what trains ---------------------------------------------------------------------------------------------

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters that train, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    @abstractmethod
    def expected_trainable(self) -> int:
        """How many numbers train, head included, by the method's own formula."""

    @property
    def head_size(self) -> int:
        """Numbers of the head: width * K + K."""
        return sum(p.numel() for p in self.head.parameters())

    def state_kept(self) -> dict[str, Tensor]:
        """Buffers that belong into the delta because training changes them."""
        return {}

    # -- what is stored ------------------------------------------------------------------------------------------

    def learned(self) -> dict[str, Tensor]:
        """The tensors of the delta themselves, by name: trained parameters and :meth:`state_kept`."""
        return {**self.trainable(), **self.state_kept()}

    def delta(self) -> dict[str, Tensor]:
        """Copies of what training changed, head included, and the fingerprint of the base."""
        out = {name: t.detach().cpu().clone() for name, t in self.learned().items()}
        return {**out, BASE: _bytes(self.fingerprint)}

    def load_delta(self, delta: Mapping[str, Tensor]) -> None:
        """Put a delta in place of what is there. Nothing is changed if it does not fit.

        Raises:
            UsageError: it belongs to another base or another adapter; the tensor is named.
        """
        self._refuse_other_base(delta)
        mine = self.learned()
        self._refuse_other_names(mine, delta)
        for name, tensor in mine.items():
            if tensor.shape != delta[name].shape and name not in ("head.weight", "head.bias"):
                raise UsageError(f"{name} is {tuple(delta[name].shape)} in the delta, {tuple(tensor.shape)} here.",
                                 where=name, fix="Build the adapter with the options the delta was trained with.")
        self._fit_head(delta["head.weight"].shape)
        with torch.no_grad():
            for name, tensor in self.learned().items():
                tensor.copy_(delta[name])

    def _refuse_other_base(self, delta: Mapping[str, Tensor]) -> None:
        if BASE not in delta:
            raise UsageError("This is no delta of an adapter: it does not say which base it belongs to.", where=BASE)
        if bytes(delta[BASE].tolist()).hex() != self.fingerprint:
            raise UsageError("The delta belongs to another base: the fingerprints differ.", where=BASE,
                             fix="Load it onto the network it was trained on.")

    def _refuse_other_names(self, mine: Mapping[str, Any], delta: Mapping[str, Tensor]) -> None:
        missing = [n for n in mine if n not in delta]
        foreign = [n for n in delta if n not in mine and n != BASE]
        if missing or foreign:
            raise UsageError("The delta belongs to another adapter: "
                             + (f"it lacks {missing[0]}." if missing else f"it holds {foreign[0]}."),
                             where=(missing or foreign)[0],
                             fix="Build the adapter with the options the delta was trained with.")

    def _fit_head(self, shape: torch.Size) -> None:
        """Another task may have another number of classes."""
        if tuple(shape) != tuple(self.head.weight.shape):
            if shape[1] != self.head.weight.shape[1]:
                raise UsageError(f"The head reads {shape[1]} features in the delta, {self.head.weight.shape[1]} here.",
                                 where="head.weight")
            like = self.head.weight
            self.head = new_head(int(shape[1]), int(shape[0])).to(like.device, like.dtype)
            self.task = replace(self.task, num_classes=int(shape[0]), class_weights=(), target=None)

    # -- several deltas on one base ------------------------------------------------------------------------------

    def keep(self, name: str, delta: Mapping[str, Tensor] | None = None) -> None:
        """Remember a delta (the present one by default) under a name, in memory."""
        if delta is not None:
            self._refuse_other_base(delta)
        self._kept[name] = dict(self.delta() if delta is None else delta)

    def use(self, name: str) -> None:
        """Put the delta kept under a name in place.

        Raises:
            UsageError: there is none of that name.
        """
        if name not in self._kept:
            raise UsageError(f"No delta is kept as {name!r}.{nearest(name, self._kept)}", where="use",
                             fix=f"Kept: {', '.join(self._kept) or 'none'}.")
        self.load_delta(self._kept[name])

    def kept(self) -> list[str]:
        """Names of the deltas in memory."""
        return list(self._kept)

    # -- what it becomes -----------------------------------------------------------------------------------------

    @abstractmethod
    def merge(self) -> Backbone:
        """A plain backbone of its own that computes the adapted features, without any trace of the adapter.

        Raises:
            UsageError: the method works beside the backbone's weights.
        """

    def write_peft(self, folder: Path) -> bool:
        """Write the adapter in PEFT's format; False where the method has none there."""
        return False

    def _refuse_merge(self) -> UsageError:
        name = type(self).__module__.rpartition(".")[2]
        return UsageError(f"{name} works beside the backbone's weights, not in them: there is no plain backbone to "
                          "merge into.", where="merge",
                          fix="Keep base and delta; embed and evaluate take them as they are.")


def new_head(width: int, classes: int) -> nn.Linear:
    """A linear classifier with small weights and no offset, so that training starts near equal scores."""
    head = nn.Linear(width, classes)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return head


def _bytes(text: str) -> Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)
