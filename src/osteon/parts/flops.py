"""What a step costs in floating-point operations, by what they are spent on; a measure that no machine changes.

A multiply-add counts as two operations. Counted are matrix products, convolutions, attention, Fourier transforms and
matrix decompositions, everywhere; of making views every arithmetic operation, since that is where resampling and colour
changes can rival a small network. Not counted are element-wise work and normalisation inside networks and losses, the
optimiser's update, and moving data: together a few percent of a network of usual width. A masked attention is counted
as the dense one it is computed as.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from osteon.core.errors import UsageError
from osteon.parts.efficient_train import EfficientTrain
from osteon.parts.objective import Objective
from osteon.parts.stochastic_depth import at_level, gate_levels
from osteon.parts.types import Step

PHASES = ("forward", "backward", "views", "teachers")


class StepEngine(Protocol):
    """What :func:`count_step` needs of :class:`osteon.train.loop.Engine`."""

    objective: Objective
    world: int
    course: EfficientTrain | None

    def gradients(self, batch: dict[str, Tensor], step: Step) -> Any:
        """Forward and backward of one optimiser step."""


@dataclass(frozen=True)
class StepCost:
    """Floating-point operations of one optimiser step over the whole global batch.

    Args:
        forward: networks and losses with gradient; under exact accumulation both forwards.
        backward: their gradients, with what checkpointing computes again.
        views: making views from stored images.
        teachers: networks and targets without gradient: companions, and what follows the optimiser's update.
    """

    forward: int
    backward: int
    views: int
    teachers: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.forward + self.backward + self.views + self.teachers

    def as_dict(self) -> dict[str, int]:
        """Every share and the total, for JSON."""
        return {**{phase: getattr(self, phase) for phase in PHASES}, "total": self.total}


def count_step(engine: StepEngine, batch: Mapping[str, Tensor], step: Step) -> StepCost:
    """Count the operations of one optimiser step by really doing it, on a copy that is thrown away.

    The engine's weights, buffers, gradients and optimiser, and the global random state, are as before. Under several
    processes every one must call this with its share of the batch; the counts are those of all of them together. Where
    branches are left out at random for whole mini-batches, the count is the expected one.

    Args:
        engine: a training engine (:class:`osteon.train.loop.Engine`).
        batch: what the engine's ``run`` would be given, on its device.
        step: where training stands; masks and views are drawn for it.
    """
    counts = dict.fromkeys(PHASES, 0.0)
    devices = sorted({v.device.index or 0 for v in batch.values() if v.device.type == "cuda"})
    for weight, level in gate_levels(engine.objective):
        probe = copy.copy(engine)
        probe.objective = copy.deepcopy(engine.objective)
        for p in probe.objective.parameters():
            p.grad = None
        counter = _Counter()
        _mark_views(probe.objective, counter)
        with (torch.random.fork_rng(devices), at_level(probe.objective, level),
              _teachers_marked(probe.objective, counter), counter):
            probe.gradients(dict(batch), step)
            with counter.phase("teachers"):
                probe.objective.after_step(step)
        counts = {phase: counts[phase] + weight * counter.counts[phase] for phase in PHASES}
    return StepCost(**{phase: engine.world * round(counts[phase]) for phase in PHASES})


def count_run(engine: StepEngine, batch: Mapping[str, Tensor], total: int, seed: int) -> StepCost:
    """The mean step of a run of ``total`` steps: that of any step, or of a curriculum's stages by their length.

    Arguments else and what stays untouched: as for :func:`count_step`.
    """
    if engine.course is None:
        return count_step(engine, batch, Step(0, total, seed))
    counts = dict.fromkeys(PHASES, 0.0)
    for first, steps in engine.course.stages(total):
        cost = count_step(engine, batch, Step(first, total, seed))
        counts = {phase: counts[phase] + steps / total * getattr(cost, phase) for phase in PHASES}
    return StepCost(**{phase: round(count) for phase, count in counts.items()})


def count_forward(module: nn.Module | Callable[[Tensor], Any], x: Tensor) -> int:
    """Operations of ``module(x)`` without gradient: matrix products, convolutions and attention.

    The module's buffers (running statistics in training mode) and the global random state are as before.

    Args:
        module: a network, or a function.
        x: its input.

    Raises:
        UsageError: in inference mode, which hides the operations from the counter.
    """
    if torch.is_inference_mode_enabled():
        raise UsageError("Operations cannot be counted in inference mode.", where="count_forward",
                         fix="Count under torch.no_grad(), or without.")
    saved = [(b, b.clone()) for b in module.buffers()] if isinstance(module, nn.Module) else []
    counter = _Counter()
    with torch.random.fork_rng([x.device.index or 0] if x.device.type == "cuda" else []), torch.no_grad(), counter:
        with counter.phase("forward"):
            module(x)
    with torch.no_grad():
        for buffer, value in saved:
            buffer.copy_(value)
    return counter.counts["forward"]


class _Counter(TorchDispatchMode):
    """Adds every operation that reaches the dispatcher to the share of the step it belongs to."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = dict.fromkeys(PHASES, 0)
        self.stack: list[str] = []
        self.graded = True

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What runs inside belongs to ``name``, unless something inside it says otherwise."""
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def enter(self, name: str) -> None:
        """What follows belongs to ``name``..."""
        self.stack.append(name)

    def leave(self) -> None:
        """...up to here."""
        self.stack.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        phase = self._where()
        self.counts[phase] += operations(func, args, kwargs, out, elements=phase == "views")
        return out

    def _where(self) -> str:
        if torch._C._current_graph_task_id() != -1:
            return "backward"
        if self.stack:
            return self.stack[-1]
        return "teachers" if self.graded and not torch.is_grad_enabled() else "forward"


class _Watched:
    """A maker of views whose work is counted as such; everything else passes through."""

    def __init__(self, maker: Any, counter: _Counter) -> None:
        self._maker, self._counter = maker, counter

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._counter.phase("views"):
            return self._maker(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._maker, name)

    def __len__(self) -> int:
        return len(self._maker)


def _mark_views(objective: Objective, counter: _Counter) -> None:
    """Put a watched maker in the place of every maker of views: what has ``plans``, or is called ``views``."""
    found = [(module, name, value) for module in objective.modules() for name, value in vars(module).items()
             if callable(value) and hasattr(value, "plans")]
    own = getattr(objective, "views", None)  # some objectives make their views in a method
    if callable(own) and "views" not in vars(objective):
        found.append((objective, "views", own))
    for module, name, value in found:
        setattr(module, name, _Watched(value, counter))


@contextmanager
def _teachers_marked(objective: Objective, counter: _Counter) -> Iterator[None]:
    """Count what companions compute as teachers'.

    A companion is met by its hooks at whatever depth it is entered (``trunk`` of a backbone calls blocks, not the
    backbone). What else an objective computes without gradient in a pass with gradient makes targets and counts alike.
    """
    handles = []
    for module in {m for companion in objective.companions() for m in companion.modules()}:
        handles.append(module.register_forward_pre_hook(lambda *_: counter.enter("teachers")))
        handles.append(module.register_forward_hook(lambda *_: counter.leave(), always_call=True))
    encode = objective.encode

    def counted(*args: Any, **kwargs: Any) -> Any:
        # Exact accumulation encodes once without gradient: that is the student's forward all the same.
        counter.graded = torch.is_grad_enabled()
        try:
            return encode(*args, **kwargs)
        finally:
            counter.graded = True

    objective.encode = counted  # type: ignore[method-assign]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# -- what one operation costs ------------------------------------------------------------------------------------------

#: operations that move numbers without computing any
_MOVES = frozenset({
    "clone", "copy", "copy_", "_to_copy", "cat", "stack", "index", "index_put", "index_put_", "index_copy",
    "index_select", "gather", "scatter", "scatter_", "slice_scatter", "select_scatter", "flip", "roll", "repeat",
    "fill", "fill_", "zero_", "zeros", "zeros_like", "ones", "ones_like", "empty", "empty_like", "empty_strided",
    "full", "full_like", "new_zeros", "new_empty", "new_ones", "new_full", "arange", "linspace", "eye",
    "constant_pad_nd", "reflection_pad2d", "replication_pad2d", "_unsafe_index", "lift_fresh", "_local_scalar_dense",
    "nonzero", "where", "masked_select", "masked_fill", "masked_fill_", "scalar_tensor", "sort", "topk", "argsort"})
#: interpolations: multiply-adds an output value
_TAPS = {"grid_sampler_2d": 4, "upsample_bilinear2d": 4, "upsample_bicubic2d": 16}


def operations(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any, *, elements: bool) -> int:
    """Floating-point operations of one call of the dispatcher.

    Args:
        func: the operator.
        args: its arguments.
        kwargs: its keyword arguments.
        out: its result.
        elements: also count arithmetic that is no product of matrices: an operation a number written, or read if a
            reduction reads more; two for each sample an interpolation weighs.
    """
    packet = getattr(func, "_overloadpacket", None)
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=out))
    name = packet.__name__ if packet is not None else str(func)
    if name in _FORMULAS:
        return int(_FORMULAS[name](args, out))
    if not elements or name in _MOVES or getattr(func, "is_view", False):
        return 0
    written = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
    if name in _TAPS:
        return 2 * _TAPS[name] * sum(t.numel() for t in written)
    read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    if not any(t.is_floating_point() or t.is_complex() for t in [*written, *read]):
        return 0
    return max((t.numel() for t in [*written, *read]), default=0)


def _vector(args: Sequence[Any], _out: Any) -> int:
    """A matrix or a vector times a vector: every number of the larger is multiplied and added."""
    return 2 * max(t.numel() for t in args if isinstance(t, Tensor))


def _fourier(args: Sequence[Any], out: Tensor) -> float:
    """5 n log2(n) for a complex transform of n numbers, half of it where one side is real."""
    x, lengths = args[0], args[1]
    wide = x if x.is_complex() and (not out.is_complex() or x.numel() >= out.numel()) else out
    real = not (x.is_complex() and out.is_complex())
    full = max(x.numel(), out.numel()) if real else wide.numel()
    points = math.prod(max(x.shape[d], out.shape[d]) for d in lengths)
    return (2.5 if real else 5.0) * full * math.log2(max(2, points))


def _cubic(factor: float) -> Callable[[Sequence[Any], Any], float]:
    """A decomposition of (..., n, n) at ``factor`` n^3."""
    def cost(args: Sequence[Any], _out: Any) -> float:
        x = args[0]
        return factor * x.numel() * x.shape[-1]
    return cost


def _triangular(args: Sequence[Any], _out: Any) -> int:
    """Substitution: n^2 operations a right-hand side."""
    return max(args[0].numel(), args[1].numel()) * args[0].shape[-1]


#: what PyTorch's own table lacks (Golub and Van Loan, Matrix Computations, give the decompositions' leading terms)
_FORMULAS: dict[str, Callable[[Sequence[Any], Any], float]] = {
    "mv": _vector, "addmv": _vector, "dot": _vector, "vdot": _vector,
    "_fft_r2c": _fourier, "_fft_c2r": _fourier, "_fft_c2c": _fourier,
    "linalg_cholesky_ex": _cubic(1 / 3), "linalg_inv_ex": _cubic(2.0), "_linalg_eigh": _cubic(9.0),
    "_linalg_svd": _cubic(22.0), "_linalg_solve_ex": _cubic(2 / 3), "linalg_solve_triangular": _triangular,
    "triangular_solve": _triangular,
}
