"""Guidance: learn a task while looking at images, layer by layer, the way a network of another kind does.

Subramaniam et al. 2024, "Training the Untrainable: Introducing Inductive Bias via Representational Alignment",
arXiv:2410.20035, section 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from osteon.backbones import Backbone, build_backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.objectives._around import Around
from osteon.objectives._teacher import network_of
from osteon.parts.companion import freeze
from osteon.parts.reparam import Reparam
from osteon.parts.types import Batch, DataSpec, Draws, Loss, Step

CARD = Card(
    kind="objective", name="guidance",
    papers=("Training the Untrainable: Introducing Inductive Bias via Representational Alignment",),
    modalities=("image",),
    differs="the task may be any objective, and both networks see its full view; of attention, the projections are "
            "compared, not the attention module as a whole; our backbones pool without a module, so no pooled layer is "
            "among those compared",
    rows=(239,),
    cost="of the task, and one more forward and backward of the student and a forward of the guide on the full image; "
         "every layer's output is kept",
)
#: modules whose outputs are compared
LAYERS = (nn.Conv2d, nn.Linear, nn.LayerNorm, nn.AdaptiveAvgPool2d, nn.MultiheadAttention, nn.RNNBase, Reparam)


def centred_gram(x_BD: Tensor) -> Tensor:
    """Inner products of samples about their mean. (B, D) -> (B, B)."""
    x_BD = x_BD.float()
    x_BD = x_BD - x_BD.mean(0)
    return x_BD @ x_BD.T


def cka(x_BD: Tensor, y_BE: Tensor, eps: float = 1e-12) -> Tensor:
    """Linear centred kernel alignment, in [0, 1]: 1 for a rotated or scaled copy. (B, D), (B, E) -> ().

    With few samples and many dimensions it is near 1 for anything: use large batches.
    """
    a, b = centred_gram(x_BD), centred_gram(y_BE)
    return (a * b).sum() / (a.norm() * b.norm()).clamp(min=eps)


def match_layers(target: int, guide: int) -> dict[int, int]:
    """Which guide layer each target layer is compared with, by relative depth: target number -> guide number.

    Guide layer i goes to target layer round(i (target - 1) / (guide - 1)); where several meet, the deepest stays.
    """
    if min(target, guide) < 1:
        return {}
    return {round(i * (target - 1) / max(1, guide - 1)): i for i in range(guide)}


@contextmanager
def outputs(network: nn.Module) -> Iterator[list[Tensor]]:
    """Outputs of every layer of :data:`LAYERS`, flattened to (B, D), in the order they run."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, out: Any) -> None:
        seen.append((out if isinstance(out, Tensor) else out[0]).flatten(1))

    # The layer inside a Reparam is never called: its weight is read.
    handles = [m.register_forward_hook(keep) for m in network.modules() if isinstance(m, LAYERS)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class Guidance(Around):
    """Another objective plus 1 - CKA of the student's and a frozen guide's layers, summed over matched layers.

    With an untrained guide it is a control: what it gains comes from the guide's architecture alone.

    Args:
        backbone: network to train.
        data: what the data look like.
        task: objective that is learned; ``auto``: mae for token backbones, spark for convolutional ones.
        options: of the task, as a mapping.
        guide: run folder of a trained guide, or the name of an untrained one such as ``vit_tiny``; empty: an untrained
            network of the other kind.
        weight: of the sum over layers.
        first: steps that are guided; 0: all.
    """

    def __init__(self, backbone: Backbone, data: DataSpec, *, task: str = "auto", options: dict[str, Any] | None = None,
                 guide: str = "", weight: float = 1.0, first: int = 0) -> None:
        if weight < 0 or first < 0:
            raise UsageError(f"weight and first must be 0 or more, not {weight} and {first}.", where="guidance")
        super().__init__(backbone, data, task=task, options=options, own=CARD.name)
        other = guide or ("resnet_tiny" if backbone.kind == "tokens" else "vit_tiny")
        self.guide, trained = _guide(other, data)
        self.weight, self.first = weight, first
        self.notes.insert(1, f"guide: {other}, {'trained' if trained else 'untrained'}"
                          + ("" if guide else ", of the other kind than the backbone"))

    def _guided(self, step: Step) -> bool:
        return self.weight > 0 and (self.first == 0 or step.index < self.first)

    def encode(self, batch: Batch, draws: Draws) -> dict[str, Tensor]:
        """The task's encodings, and ``"target/j"``, ``"guide/j"`` (B, D): outputs of the j-th pair of layers."""
        encoded = self.inner.encode(batch, draws)
        if not self._guided(draws.step):
            return encoded
        x = self.full(batch, draws)
        with outputs(self.backbone) as target:
            self.backbone(x)
        with torch.no_grad(), outputs(self.guide) as guide:
            self.guide(x)
        # The last layer of each is left out.
        for place, (j, i) in enumerate(match_layers(len(target) - 1, len(guide) - 1).items()):
            encoded |= {f"target/{place}": target[j], f"guide/{place}": guide[i]}
        return encoded

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """The task's loss and the weighted sum of 1 - CKA."""
        pairs = sum(key.startswith("target/") for key in encoded)
        found = self.inner.score({k: v for k, v in encoded.items() if not k.startswith(("target/", "guide/"))}, step)
        if not pairs:
            return found
        apart = torch.stack([1 - cka(encoded[f"target/{i}"], encoded[f"guide/{i}"]) for i in range(pairs)]).sum()
        return Loss(found.total + self.weight * apart, {**found.parts, "misaligned": apart.detach() / pairs})

    def companions(self) -> list[nn.Module]:
        """The guide and the task's own."""
        return [self.guide, *self.inner.companions()]

    def train(self, mode: bool = True) -> Guidance:
        """The guide stays in evaluation mode."""
        super().train(mode)
        self.guide.eval()
        return self


def _guide(name: str, data: DataSpec) -> tuple[Backbone, bool]:
    """A frozen network: of a run, or fresh; and whether it was trained."""
    if Path(name, "model.safetensors").is_file():
        return network_of(name, data, "guide")[0], True
    network = build_backbone(name, channels=data.channels, size=data.size)
    freeze(network)
    return network.eval(), False
