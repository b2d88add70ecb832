"""Intrinsic dimension: in how many random directions a network must be trained to learn a task nearly as well.

Li et al. 2018, "Measuring the Intrinsic Dimension of Objective Landscapes", arXiv:1804.08838, section 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from osteon.core.card import Card
from osteon.core.errors import UsageError

CARD = Card(
    kind="analysis",
    name="intrinsic_dimension",
    papers=("Measuring the Intrinsic Dimension of Objective Landscapes",),
    modalities=("image", "sound", "series", "text", "table", "graph", "points", "volume", "video", "several"),
    differs="starts from the run's weights rather than from random ones, so it measures fine-tuning; a fixed number "
            "of passes of Adam in each subspace, one seed; statistics of batch normalisation are frozen",
    rows=(46,),
    backbones=("tokens", "maps"),
    labels=True,
    cost="1 training for each number of directions",
    switch="osteon analyse RUN SOURCE --only intrinsic_dimension",
)


class RandomSubspace(nn.Module):
    """A network that only moves along ``d`` fixed random directions from where it is: theta = theta_0 + P z.

    The directions span all parameters at once, and each has unit length. ``"dense"``: Gaussian entries, D x d numbers
    of memory. ``"fastfood"``: products of random signs, a permutation, Gaussian scales and Hadamard transforms, about
    2 D numbers; lengths are 1 on average.

    Args:
        network: its parameters are the start, and are left as they are.
        d: number of directions, the trained scalars.
        seed: of the directions.
        projection: ``"dense"`` or ``"fastfood"``.
    """

    def __init__(self, network: nn.Module, d: int, *, seed: int = 0,
                 projection: Literal["dense", "fastfood"] = "fastfood") -> None:
        super().__init__()
        self._network = [network]  # in a list, so that its parameters are not this module's
        self._start = {n: p.detach().clone() for n, p in network.named_parameters()}
        self.size = sum(p.numel() for p in self._start.values())
        if not 1 <= d <= self.size:
            raise UsageError(f"{d} directions do not fit into {self.size:,} parameters.", where="d")
        self.z = nn.Parameter(torch.zeros(d))
        g = torch.Generator().manual_seed(seed)
        if projection == "dense":
            directions = torch.randn(self.size, d, generator=g)
            directions /= directions.norm(dim=0)
            self._expand: Callable[[Tensor], Tensor] = lambda z: directions @ z
        elif projection == "fastfood":
            self._expand = _fastfood(self.size, d, g)
        else:
            raise UsageError(f"There is no projection {projection!r}.", where="projection",
                             fix="Use dense or fastfood.")

    def weights(self) -> dict[str, Tensor]:
        """The network's parameters now, by name."""
        moved, out, at = self._expand(self.z), {}, 0
        for name, start in self._start.items():
            out[name] = start + moved[at:at + start.numel()].view(start.shape)
            at += start.numel()
        return out

    def forward(self, *args: Any) -> Any:
        """The network's output with the weights of :meth:`weights`."""
        return functional_call(self._network[0], self.weights(), args)


def _fastfood(size: int, d: int, g: torch.Generator) -> Callable[[Tensor], Tensor]:
    """z (d,) -> (size,): blocks of H G Pi H B z, cut to size, scaled so that directions have unit length on average."""
    block = 1 << max(0, (d - 1).bit_length())
    count = -(-size // block)
    signs = torch.randint(0, 2, (count, block), generator=g) * 2.0 - 1
    order = torch.stack([torch.randperm(block, generator=g) for _ in range(count)])
    scales = torch.randn(count, block, generator=g)
    scales *= math.sqrt(block) / scales.norm(dim=1, keepdim=True)

    def expand(z: Tensor) -> Tensor:
        padded = nn.functional.pad(z, (0, block - d)).expand(count, block)
        mixed = hadamard(signs * padded).gather(1, order)
        return hadamard(scales * mixed).reshape(-1)[:size] / (block * math.sqrt(size / block))

    return expand


def hadamard(x: Tensor) -> Tensor:
    """Walsh-Hadamard transform of the last axis (a power of two), not normalised: applied twice it multiplies by n."""
    n = x.shape[-1]
    step = 1
    while step < n:
        pairs = x.reshape(*x.shape[:-1], n // (2 * step), 2, step)
        x = torch.stack([pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]], -2).reshape(x.shape)
        step *= 2
    return x


@dataclass(frozen=True)
class Dimension:
    """The least number of directions reaching ``level`` of the full score (None: none), and all measured scores."""

    least: int | None
    full: float
    parameters: int
    curve: Mapping[int, float]

    @property
    def ratio(self) -> float | None:
        """Parameters over directions: how far the task compresses the network."""
        return None if self.least is None else self.parameters / self.least


def intrinsic_dimension(make: Callable[[], nn.Module], fit: Callable[[nn.Module], float], grid: Sequence[int], *,
                        level: float = 0.9, seed: int = 0) -> Dimension:
    """Train in subspaces of growing size until the score is near the full network's.

    Args:
        make: builds the network, the same every time.
        fit: trains whatever parameters a module has and returns its score on held-out samples.
        grid: numbers of directions, rising.
        level: share of the full score to be reached.
        seed: of the directions.
    """
    network = make()
    parameters = sum(p.numel() for p in network.parameters())
    full = fit(network)
    curve: dict[int, float] = {}
    for d in sorted({min(d, parameters) for d in grid}):
        curve[d] = fit(RandomSubspace(make(), d, seed=seed))
        if curve[d] >= level * full:
            return Dimension(d, full, parameters, curve)
    return Dimension(None, full, parameters, curve)
