"""A model beside the student that never receives gradient: exponential moving average or frozen copy."""

from __future__ import annotations

import copy
import math
from itertools import chain

import torch
from torch import nn

from osteon.parts.types import Step


class Companion(nn.Module):
    """Copies of modules whose parameters follow the originals by exponential moving average.

    Statistics of normalisation layers are the companion's own, from its own forward passes; other buffers are copied.
    Call a member as ``companion["backbone"](x)`` under ``torch.no_grad()``.

    Args:
        members: the student's modules by name.
    """

    def __init__(self, **members: nn.Module) -> None:
        super().__init__()
        self.members = nn.ModuleDict({name: copy.deepcopy(m) for name, m in members.items()})
        for p in self.parameters():
            p.requires_grad_(False)

    def __getitem__(self, name: str) -> nn.Module:
        return self.members[name]

    @torch.no_grad()
    def update(self, momentum: float, **sources: nn.Module) -> None:
        """``companion = momentum * companion + (1 - momentum) * source`` for every parameter."""
        for name, source in sources.items():
            mine: list[torch.Tensor] = list(self.members[name].parameters())
            theirs: list[torch.Tensor] = [p.detach() for p in source.parameters()]
            torch._foreach_mul_(mine, momentum)
            torch._foreach_add_(mine, theirs, alpha=1.0 - momentum)


def cosine_momentum(base: float, step: Step) -> float:
    """Teacher momentum rising from ``base`` to 1 by a half cosine (BYOL, sec. 3.2)."""
    return 1.0 - (1.0 - base) * (math.cos(math.pi * step.progress) + 1.0) / 2.0


def freeze(*modules: nn.Module) -> None:
    """Switch off gradient for every parameter of the modules."""
    for p in chain.from_iterable(m.parameters() for m in modules):
        p.requires_grad_(False)
