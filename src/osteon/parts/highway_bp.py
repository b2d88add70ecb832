"""Highway back-propagation: gradients of a residual stack from a few passes that all layers could make at once.

Fagnou et al. 2025, "Accelerated Training through Iterative Gradient Propagation Along the Residual Path",
arXiv:2501.17086, section 3 (the iteration) and section 4 (the shifted split of Transformers).

The gradient of a layer's output is the sum over all paths from it to the loss. Those along shortcuts alone are known at
once; each iteration adds the paths that cross one branch more, by one vector-Jacobian product a layer, each independent
of the others, and a sum along the shortcuts. After as many iterations as there are layers the gradient is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from osteon.core.card import Card
from osteon.core.errors import UsageError

CARD = Card(
    kind="training",
    name="highway_bp",
    papers=("Accelerated Training through Iterative Gradient Propagation Along the Residual Path",),
    modalities=("any",),
    differs="The paper's gain needs a device a layer (or its recurrent networks): here passes run one after the other "
    "on one device, slower than back-propagation, to see what an approximate gradient does. The sum along shortcuts is "
    "a loop, no parallel scan. osteon's loop offers it for a ViT's trunk; residual networks, whose shortcuts change "
    "shape (the paper rebuilds them), are refused, and in Python stacks of blocks of one shape with a rectifier after "
    "the sum work (skip=relu). The number of iterations stays what was asked for; the paper finds that more are needed "
    "as training goes on. Gates of recurrent networks are not covered.",
    rows=(241,),
    backbones=("tokens",),
    cost="iterations + 1 backward passes through the trunk, and the error's measurement at logged steps",
    switch="--set highway=4",
)


@dataclass(frozen=True)
class Layer:
    """One residual layer: ``run`` (input -> output of the same shape) and the parameters it trains."""

    run: Callable[[Tensor], Tensor]
    params: tuple[nn.Parameter, ...]


def layer_of(run: Callable[[Tensor], Tensor], *modules: nn.Module) -> Layer:
    """A layer that trains the parameters of some modules; ``run`` itself where it is a module and none is named."""
    named = modules or ((run,) if isinstance(run, nn.Module) else ())
    return Layer(run, tuple(p for m in named for p in m.parameters() if p.requires_grad))


class HighwayBP:
    """A stack of residual layers whose backward pass is iterated: ``stack(layers, x)`` in place of running them.

    ``loss.backward()`` and everything around it stay as they are.

    Args:
        iterations: how many branches a path may cross; from the number of layers on the gradient is exact, 0 leaves
            shortcuts alone.
        shift: share of the identity that counts as part of the branch, so that shortcuts carry 1 - ``shift``: 0.2 for
            pre-norm Transformers, whose layers learn to cancel their shortcut (without it the paper's training
            diverges), 0.8 for post-norm ones, 0 for others.
        skip: ``"identity"``: output = input + branch; ``"relu"``: output = relu(input + branch).
    """

    def __init__(self, iterations: int = 4, *, shift: float = 0.2,
                 skip: Literal["identity", "relu"] = "identity") -> None:
        if iterations < 0:
            raise UsageError(f"Highway-BP takes 0 iterations or more, not {iterations}.", where="--set highway")
        if not 0 <= shift < 1:
            raise UsageError(f"The shift lies in [0, 1), not {shift}.", where="--set highway_shift")
        if skip not in ("identity", "relu"):
            raise UsageError(f"A shortcut is identity or relu, not {skip!r}.", where="skip")
        self.iterations, self.shift, self.skip = iterations, shift, skip
        self.measure = False  # compare every backward pass with the exact one
        self.errors: list[float] = []  # |gradient - exact| / |exact| of those passes, over all parameters and the input

    def __call__(self, layers: Sequence[Layer], x: Tensor) -> Tensor:
        """Run the layers one after the other. (B, ...) -> (B, ...)."""
        params = list({id(p): p for layer in layers for p in layer.params}.values())
        return _Stack.apply(self, tuple(layers), x, *params)  # type: ignore[no-any-return]

    def carried(self, w: Tensor, out: Tensor) -> Tensor:
        """What the shortcut hands from the gradient of a layer's output to that of its input."""
        w = (1.0 - self.shift) * w
        return w * (out > 0) if self.skip == "relu" else w


Pairs = list[tuple[Tensor, Tensor]]  # input and output of every layer, each with its own graph


def shortcut_gradients(stack: HighwayBP, pairs: Pairs, last: Tensor) -> list[Tensor]:
    """Gradients at the input and at every layer's output by paths along shortcuts alone: L + 1 tensors."""
    found = [last]
    for _, out in reversed(pairs):
        found.append(stack.carried(found[-1], out))
    return found[::-1]


def iterate(stack: HighwayBP, pairs: Pairs, last: Tensor) -> list[Tensor]:
    """The gradients after the stack's iterations: w[0] at the input, w[i] at the output of layer i."""
    start = shortcut_gradients(stack, pairs, last)
    w, crossing = list(start), [torch.zeros_like(g) for g in start[1:]]
    depth = len(pairs)
    for done in range(min(stack.iterations, depth)):
        for i, (x, out) in enumerate(pairs, 1):  # what could be done at once
            if done <= depth - i:  # w[i] has changed since it was last pushed through
                crossing[i - 1] = pushed(x, out, w[i]) - stack.carried(w[i], out)
        total = torch.zeros_like(last)
        for i in range(depth, 0, -1):
            total = crossing[i - 1] + stack.carried(total, pairs[i - 1][1])
            w[i - 1] = start[i - 1] + total
    return w


def exact(pairs: Pairs, last: Tensor) -> list[Tensor]:
    """The same gradients by back-propagation, layer after layer."""
    found = [last]
    for x, out in reversed(pairs):
        found.append(pushed(x, out, found[-1]))
    return found[::-1]


def pushed(x: Tensor, out: Tensor, w: Tensor) -> Tensor:
    """The vector-Jacobian product of one layer."""
    return torch.autograd.grad(out, x, w.to(out.dtype), retain_graph=True)[0]


class _Stack(torch.autograd.Function):
    """Runs layers with a graph each; backward iterates and gives the gradients of input and parameters."""

    @staticmethod
    def forward(ctx: Any, stack: HighwayBP, layers: tuple[Layer, ...], x: Tensor, *params: nn.Parameter) -> Tensor:
        pairs: Pairs = []
        with torch.enable_grad():
            h = x.detach().requires_grad_()
            for layer in layers:
                out = layer.run(h)
                if out.shape != h.shape:
                    raise UsageError(f"A layer makes {tuple(out.shape)} of {tuple(h.shape)}: its shortcut cannot be "
                                     "the identity.", where="Highway-BP", fix="Stack layers of one shape.")
                pairs.append((h, out))
                h = out.detach().requires_grad_()
        ctx.stack, ctx.layers, ctx.pairs, ctx.params = stack, layers, pairs, params
        return h.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        w = iterate(ctx.stack, ctx.pairs, grads[0])
        found = _of_parameters(ctx, w)
        if ctx.stack.measure:
            true = exact(ctx.pairs, grads[0])
            ctx.stack.errors.append(_error([w[0], *found], [true[0], *_of_parameters(ctx, true)]))
        return (None, None, w[0], *found)


def _of_parameters(ctx: Any, w: list[Tensor]) -> list[Tensor | None]:
    """Gradient of every parameter from those of the layers' outputs, summed where layers share it; None: unused."""
    total: dict[int, Tensor] = {}
    for layer, (_, out), g in zip(ctx.layers, ctx.pairs, w[1:], strict=True):
        if layer.params and out.grad_fn is not None:
            for p, value in zip(layer.params, torch.autograd.grad(out, layer.params, g.to(out.dtype), retain_graph=True,
                                                                  allow_unused=True), strict=True):
                if value is not None:
                    total[id(p)] = total[id(p)] + value if id(p) in total else value
    return [total.get(id(p)) for p in ctx.params]


def _error(found: Sequence[Tensor | None], true: Sequence[Tensor | None]) -> float:
    pairs = [(a.float(), b.float()) for a, b in zip(found, true, strict=True) if a is not None and b is not None]
    off = sum(float((a - b).square().sum()) for a, b in pairs)
    size = sum(float(b.square().sum()) for _, b in pairs)
    return (off / size) ** 0.5 if size else float(off > 0)


@contextmanager
def on_highway(network: Any, stack: HighwayBP) -> Iterator[None]:
    """Inside, the trunk of a ViT runs by Highway-BP wherever gradients are recorded.

    Raises:
        UsageError: the network has no trunk of layers with plain shortcuts.
    """
    refuse_other_networks(network)
    network.highway = stack
    try:
        yield
    finally:
        network.highway = None


def refuse_other_networks(network: Any) -> None:
    """Highway-BP is for osteon's own ViTs."""
    if not hasattr(network, "highway"):
        raise UsageError(f"Highway-BP needs layers whose shortcuts keep their shape; {network.name} has others, or "
                         "hides them.", where="--set highway", fix="Choose a ViT, e.g. vit_tiny.")
