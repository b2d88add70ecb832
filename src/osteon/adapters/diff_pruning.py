"""Diff pruning: learn a change of every weight together with the gates that switch most of it off; store what is left.

Guo et al. 2021, arXiv:2012.07463, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn

from osteon.adapters._rewrite import Rewrite
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.adapter import RECIPE
from osteon.parts.reparam import Change, Layer
from osteon.parts.types import DataSpec, Draws, Step

if TYPE_CHECKING:
    from osteon.backbones import Backbone

CARD = Card(
    kind="adapter",
    name="diff_pruning",
    papers=("Parameter-Efficient Transfer Learning with Diff Pruning",),
    modalities=("any",),
    differs="Weights and biases of linear layers and convolutions, not norms and embeddings. The penalty is a mean "
    "over parameters, weighted as the paper's sum over BERT-large; the share is met exactly, counted over the adapted "
    "tensors without the head, by the size of the expected change (the code bisects on sampled ones); gates learn at "
    "a multiple of the rate by being stored divided by it; one schedule runs through all stages.",
    rows=(258,),
    labels=True,
    cost="1 forward and backward per image; twice the network's numbers train",
)

#: the hard-concrete gate is stretched to this interval before it is clipped to [0, 1]
LOW, HIGH = -1.5, 1.5


def hard_concrete(alpha: Tensor, noise: Tensor | None) -> Tensor:
    """Gates in [0, 1] from their logits.

    Args:
        alpha: logits, any shape.
        noise: uniform in (0, 1), the same shape; None for the gate without noise.
    """
    shifted = alpha if noise is None else alpha + noise.log() - (-noise).log1p()
    return (torch.sigmoid(shifted) * (HIGH - LOW) + LOW).clamp(0, 1)


def open_probability(alpha: Tensor) -> Tensor:
    """How likely each gate is not zero: ``sigmoid(alpha - log(-l / r))``."""
    return torch.sigmoid(alpha - math.log(-LOW / HIGH))


class GatedDiff(Change):
    """``dW = z * z_group * w`` until the change is pruned, ``mask * w`` after; likewise for the bias.

    Args:
        layer: whose weight (and bias) changes.
        gate_rate: the gates' logits are this times what is stored.

    Attributes:
        draws: of the noise of this step; asked again in the same step, it gives the same.
    """

    draws: Draws
    mask_weight: Tensor
    mask_bias: Tensor
    pruned: Tensor

    def __init__(self, layer: Layer, gate_rate: float) -> None:
        super().__init__()
        self.gate_rate = gate_rate
        tensors = {name: value for name, value in (("weight", layer.weight), ("bias", layer.bias)) if value is not None}
        self.parts = list(tensors)
        start = 5.0 / gate_rate
        for name in self.parts:
            like = tensors[name].detach()
            self.register_parameter(name, nn.Parameter(torch.zeros_like(like)))
            self.register_parameter(f"gate_{name}", nn.Parameter(torch.full_like(like, start)))
            self.register_parameter(f"group_{name}", nn.Parameter(torch.full_like(like.flatten()[0], start)))
            self.register_buffer(f"mask_{name}", torch.ones_like(like, dtype=torch.bool))
        self.register_buffer("pruned", torch.zeros((), dtype=torch.bool))

    def weight_delta(self) -> Tensor:
        """The change of the weight."""
        return self.diff("weight", noisy=self.training)

    def bias_delta(self) -> Tensor | None:
        """The change of the bias."""
        return self.diff("bias", noisy=self.training) if "bias" in self.parts else None

    def diff(self, name: str, *, noisy: bool) -> Tensor:
        """The change of one tensor, gates sampled or not."""
        w = self.get_parameter(name)
        if self.pruned:
            return self.get_buffer(f"mask_{name}") * w
        gate, group = self.logits(name)
        noise: Sequence[Tensor | None] = self.noise(name, gate, group) if noisy else (None, None)
        return hard_concrete(gate, noise[0]) * hard_concrete(group, noise[1]) * w

    def noise(self, name: str, *like: Tensor) -> tuple[Tensor, ...]:
        """Uniform noise of this step for one tensor, drawn where it lies: up to as many numbers as the network has."""
        seed = self.draws.fork(name).generator().initial_seed()
        generator = torch.Generator(like[0].device).manual_seed(seed)
        return tuple(torch.empty_like(a).uniform_(1e-4, 1 - 1e-4, generator=generator) for a in like)

    def logits(self, name: str) -> tuple[Tensor, Tensor]:
        """Logits of a tensor's gates, one a number, and of the gate of them all."""
        return (self.gate_rate * self.get_parameter(f"gate_{name}"),
                self.gate_rate * self.get_parameter(f"group_{name}"))


class DiffPruning(Rewrite):
    """Learn a change of every weight with gates, keep the largest part of it half-way, and train only that on.

    Gates are drawn once an optimiser step, the same for every micro-batch and on every rank.

    Args:
        backbone: pre-trained network.
        task: what is to be told apart.
        targets: layers to change: ``auto``, ``attention``, or comma-separated names or patterns.
        share: of the numbers of these layers, how many may change in the end (0.005 in the paper).
        penalty: weight of the mean probability that a gate is open (the paper's 1.25e-7 times 335 million numbers).
        gate_rate: how much faster gates learn than changes.
        until: share of the steps after which the change is pruned.
    """

    recipe: ClassVar = {**RECIPE, "lr": 1e-3}
    drawn: Tensor

    def __init__(self, backbone: Backbone, task: DataSpec, *, targets: str = "auto", share: float = 0.005,
                 penalty: float = 42.0, gate_rate: float = 100.0, until: float = 0.5) -> None:
        super().__init__(backbone, task)
        if not 0 < share <= 1 or penalty < 0 or gate_rate <= 0 or not 0 < until < 1:
            raise UsageError("share lies in (0, 1], penalty is 0 or more, gate_rate positive and until in (0, 1), not "
                             f"{share}, {penalty}, {gate_rate} and {until}.", where="diff_pruning")
        self.share, self.weight, self.gate_rate, self.until = share, penalty, gate_rate, until
        self.rewrite(targets)
        #: key of the gates' noise and optimiser steps done, (2,) int64; a resumed run goes on with the same gates
        self.register_buffer("drawn", torch.stack([torch.randint(2**62, ()), torch.tensor(0)]))
        self.draw()
        total = sum(self.sizes())
        self.kept_numbers = max(1, round(share * total))
        self.notes.append(f"{self.kept_numbers:,} of {total:,} numbers may change in the end")

    def change(self, name: str, layer: Layer) -> Change:
        """Gated change of one layer."""
        return GatedDiff(layer, self.gate_rate)

    def count(self, name: str, layer: Layer) -> int:
        """A change and a gate for every number, and a gate for each tensor."""
        return sum(2 * t.numel() + 1 for t in (layer.weight, layer.bias) if t is not None)

    def diffs(self) -> dict[str, tuple[GatedDiff, str]]:
        """Change and tensor of everything that is gated, by name."""
        changes = {name: cast(GatedDiff, r.change) for name, r in self.layers().items()}
        return {f"{name}.{part}": (change, part) for name, change in changes.items() for part in change.parts}

    def sizes(self) -> list[int]:
        """Numbers of every gated tensor."""
        return [change.get_parameter(part).numel() for change, part in self.diffs().values()]

    def penalty(self) -> Tensor | None:
        """Weighted mean of the probabilities that gates are open, those of whole tensors added, until pruning, ()."""
        every = list(self.diffs().values())
        if bool(every[0][0].pruned) or not self.weight:
            return None
        logits = [change.logits(part) for change, part in every]
        total = sum(open_probability(a).sum() for pair in logits for a in pair)
        return self.weight * cast(Tensor, total) / sum(self.sizes())

    def draw(self) -> None:
        """Say to every change which noise is this step's."""
        key, done = self.drawn.tolist()
        for name, layer in self.layers().items():
            cast(GatedDiff, layer.change).draws = Draws(Step(done, done, key), torch.arange(0), 0, name=name)

    def encode(self, images: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) -> what the head reads, (B, width); in training with this step's gates."""
        if self.training:
            self.draw()
        return super().encode(images)

    def after_step(self, step: Step) -> None:
        """Go on to the next step's gates; prune at the end of the first stage."""
        self.drawn[1] = step.index + 1
        if not self.is_pruned() and step.index + 1 >= max(1, round(self.until * step.total)):
            self.prune()

    def is_pruned(self) -> bool:
        """Whether only the kept part of the change is left."""
        return bool(next(iter(self.diffs().values()))[0].pruned)

    @torch.no_grad()
    def prune(self) -> None:
        """Keep exactly the largest :attr:`kept_numbers` numbers of the expected change; gates are gone from here on."""
        chosen = self.chosen()
        for name, (change, part) in self.diffs().items():
            mask, values = chosen[name]
            change.get_buffer(f"mask_{part}").copy_(mask)
            change.get_parameter(part).copy_(values * mask)
        for change, _ in self.diffs().values():
            change.pruned.fill_(True)

    @torch.no_grad()
    def chosen(self) -> dict[str, tuple[Tensor, Tensor]]:
        """For every gated tensor, which numbers of its change stay (bool) and the expected change itself."""
        every = self.diffs()
        if self.is_pruned():
            return {name: (change.get_buffer(f"mask_{part}"), change.get_parameter(part).detach())
                    for name, (change, part) in every.items()}
        values = {name: change.diff(part, noisy=False).detach() for name, (change, part) in every.items()}
        flat = torch.cat([v.abs().flatten() for v in values.values()])
        keep = torch.zeros_like(flat, dtype=torch.bool)
        keep[flat.topk(self.kept_numbers).indices] = True
        return {name: (mask.view_as(values[name]), values[name])
                for name, mask in zip(every, keep.split(self.sizes()), strict=True)}

    def learned(self) -> dict[str, Tensor]:
        """The head; the change itself is stored as positions and values, and has no gates to be drawn any more."""
        return {name: p for name, p in self.named_parameters() if name.startswith("head.")}

    @torch.no_grad()
    def delta(self) -> dict[str, Tensor]:
        """Head, fingerprint, and for every changed tensor the positions (int64) and values of its change, pruned."""
        out = super().delta()
        for name, (mask, values) in self.chosen().items():
            where = mask.flatten().nonzero().flatten()
            if len(where):
                out[f"{name}.index"] = where.cpu()
                out[f"{name}.value"] = values.flatten()[where].cpu()
        return out

    @torch.no_grad()
    def load_delta(self, delta: Mapping[str, Tensor]) -> None:
        """Put a stored change in place; see :meth:`Adapter.load_delta`."""
        every = self.diffs()
        known = {f"{name}.{end}" for name in every for end in ("index", "value")}
        super().load_delta({k: v for k, v in delta.items() if k not in known})
        for name, (change, part) in every.items():
            w, mask = change.get_parameter(part), change.get_buffer(f"mask_{part}")
            w.zero_()
            mask.zero_()
            if f"{name}.index" in delta:
                where = delta[f"{name}.index"].to(w.device)
                w.view(-1)[where] = delta[f"{name}.value"].to(w)
                mask.view(-1)[where] = True
            change.pruned.fill_(True)
