"""Stochastic depth: leave out residual branches while training, for single samples or for whole mini-batches.

Huang et al. 2016, arXiv:1603.09382, section 3 (whole mini-batches: ``mode="batch"``). Leaving a branch out of single
samples and scaling while training is the later form that timm and torchvision call drop path (``mode="row"``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.types import Draws

CARD = Card(
    kind="training",
    name="stochastic_depth",
    papers=("Deep Networks with Stochastic Depth",),
    modalities=("any",),
    differs="drop_mode=batch is the paper: one draw a branch and mini-batch (of all processes and micro-batches), "
    "branches left out are not called, survival falls linearly from the first block on, and branches are scaled by "
    "their survival at test time. Its weights belong to a network with that scale; timm's layout is refused. A "
    "left-out branch has no gradient and its weights stay as they are; under an optimiser over zeros momentum and "
    "decay would still move them. Shortcuts that change shape keep their convolution; the paper pools. The two "
    "branches of a Transformer's block are drawn apart. Teachers are not thinned. drop_mode=row (the default, "
    "timm's drop path) saves no compute: a draw a sample, scaled while training, nothing at test time.",
    rows=(339,),
    cost="drop_mode=batch at drop_path=0.5: about three quarters of the blocks",
    switch="--set backbone.drop_path=0.5 --set backbone.drop_mode=batch",
)

Mode = Literal["row", "batch"]


class StochasticDepth(nn.Module):
    """The gate of a residual branch, or of several that share a rate.

    In mode ``"row"`` draws come from the global generator, which the training loop seeds at every step. In mode
    ``"batch"`` the loop sets the gates (:func:`gates`), the same on all ranks and in all micro-batches of a step; in
    anybody's own loop every call draws from the global generator.

    Args:
        rate: probability that the branch is left out, in [0, 1).
        mode: ``"row"``: for each sample alone; ``"batch"``: for a mini-batch, without computing the branch.
        scaling: ``"train"``: divide by the survival probability in training; ``"test"``: multiply by it in evaluation;
            None: by mode, ``"row"`` in training and ``"batch"``, as published, in evaluation.
        branches: how many branches ask this gate, each with a draw of its own.
    """

    def __init__(self, rate: float = 0.0, *, mode: Mode = "row", scaling: Literal["train", "test"] | None = None,
                 branches: int = 1) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise UsageError(f"The drop-path rate must lie in [0, 1), not {rate}.", where="drop_path")
        if mode not in ("row", "batch"):
            raise UsageError(f"drop_mode must be row or batch, not {mode!r}.", where="drop_mode")
        self.rate, self.mode, self.branches = rate, mode, branches
        self.scaling = scaling or ("train" if mode == "row" else "test")
        self.gates: list[bool] | None = None  # open or shut, a branch each; None: to be drawn at the call
        self.whole = False  # as in evaluation, although training
        self.level: float | None = None  # in place of every draw, to count operations

    def join(self, shortcut: Tensor, branch: Callable[[], Tensor], which: int = 0) -> Tensor:
        """``shortcut`` plus the gated branch; a branch that is shut for the mini-batch is not called."""
        if not self.drawing or self.mode == "row":
            return shortcut + self(branch(), which)
        if not self._is_open(which):
            return shortcut
        return shortcut + self._scaled(branch())

    def forward(self, x: Tensor, which: int = 0) -> Tensor:
        """Gate a branch that is computed already. (B, ...) -> (B, ...)."""
        if not self.drawing:
            return x * (1.0 - self.rate) if self.rate and self.scaling == "test" else x
        if self.mode == "batch":
            return self._scaled(x) if self._is_open(which) else torch.zeros_like(x)
        kept = torch.rand(x.shape[0], *[1] * (x.dim() - 1), device=x.device) >= self.rate
        return x * (kept / (1.0 - self.rate) if self.scaling == "train" else kept).to(x.dtype)

    @property
    def drawing(self) -> bool:
        """Whether branches may be left out now."""
        return self.rate > 0.0 and self.training and not self.whole

    def extra_repr(self) -> str:
        """Settings shown by ``print``."""
        return f"rate={self.rate}, mode={self.mode}, scaling={self.scaling}"

    def _scaled(self, x: Tensor) -> Tensor:
        return x / (1.0 - self.rate) if self.scaling == "train" else x

    def _is_open(self, which: int) -> bool:
        if self.level is not None:
            return self.level >= self.rate
        if self.gates is not None:
            return self.gates[which]
        return bool(torch.rand(()) >= self.rate)


def linear_survival(depth: int, last: float) -> list[float]:
    """Probability that block l of L survives, 1 - l/L (1 - ``last``) for l = 1 to L: the paper's linear rule."""
    return [1.0 - block / depth * (1.0 - last) for block in range(1, depth + 1)]


def drop_rates(rate: float, depth: int, mode: str = "row") -> list[float]:
    """Rates growing linearly to ``rate`` at the last block, from 0 at the first; in mode batch from ``rate``/depth."""
    if mode == "batch":
        return [1.0 - survival for survival in linear_survival(depth, 1.0 - rate)]
    return [rate * i / max(1, depth - 1) for i in range(depth)]


def batch_gates(network: nn.Module) -> list[StochasticDepth]:
    """The gates of whole mini-batches in a network, in its order; those that never shut left out."""
    return [m for m in network.modules() if isinstance(m, StochasticDepth) and m.mode == "batch" and m.rate > 0]


@contextmanager
def gates(network: nn.Module, draws: Draws, whole: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Inside, every gate of a mini-batch is what this step draws for it: the same on all ranks and at every call.

    Args:
        network: what holds the gates.
        draws: of the step; rows do not matter.
        whole: parts of it that run with all branches, as in evaluation: teachers.
    """
    spared = {id(m) for module in whole for m in module.modules()}
    found = batch_gates(network)
    chance = torch.rand(sum(m.branches for m in found), generator=draws.fork("stochastic_depth").generator()).tolist()
    start = 0
    for module in found:
        module.whole = id(module) in spared
        module.gates = [u >= module.rate for u in chance[start:start + module.branches]]
        start += module.branches
    try:
        yield
    finally:
        for module in found:
            module.whole, module.gates = False, None


def gate_levels(network: nn.Module) -> list[tuple[float, float | None]]:
    """Settings of all gates at once, with weights that sum to 1, whose weighted mean is the expectation of any sum.

    A sum over branches depends on each gate's own probability alone, so one uniform number may stand for all draws:
    between two neighbouring rates nothing changes.

    Returns:
        (weight, level): at a level the gates whose rate is at most that are open. ``[(1, None)]`` without gates.
    """
    rates = sorted({m.rate for m in batch_gates(network)})
    if not rates:
        return [(1.0, None)]
    return [(high - low, low) for low, high in pairwise([0.0, *rates, 1.0])]


@contextmanager
def at_level(network: nn.Module, level: float | None) -> Iterator[None]:
    """Inside, all gates stand at a level of :func:`gate_levels`."""
    found = batch_gates(network)
    for module in found:
        module.level = level
    try:
        yield
    finally:
        for module in found:
            module.level = None
