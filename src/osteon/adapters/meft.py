"""MEFT: a frozen transformer made reversible by adapters, so that training keeps the activations of no block.

Liao et al. 2023, arXiv:2306.00477, section 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from osteon.adapters._tokens import block_list, read_layout
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.adapter import RECIPE, Adapter
from osteon.parts.types import DataSpec

if TYPE_CHECKING:
    from osteon.backbones import Backbone

CARD = Card(
    kind="adapter",
    name="meft",
    papers=("Make Pre-trained Model Reversible: From Parameter to Memory Efficient Fine-Tuning",),
    modalities=("image", "sound", "series", "table"),
    differs="The paper's first variant, its adapter beside the whole block rather than beside the MLP. lambda is 0.1 "
    "as in the paper for up to four blocks and larger for more, because inverting divides by it in every block and "
    "float32 gradients are wrong beyond that (by a factor of 1000 at 12 blocks); far smaller ones are refused, "
    "and so is a step whose two streams do not meet again. Computed in float32 under autocast too, for the same "
    "reason. Adapters have no dropout. The start is close to the pre-trained function, not equal to it.",
    rows=(75,),
    backbones=("tokens",),
    labels=True,
    cost="2 forwards and 1 backward per image; keeps the last activations only",
)

#: how much inverting all blocks may amplify rounding, estimated by :func:`growth`: by rule, and at most
USUAL, MOST = 2e4, 2e6
#: difference of the two streams after all blocks were inverted, over their size, from which gradients are not trusted:
#: the first block's input is lost then, and errors of the other blocks' gradients grow towards it
GAP = 1.0


def growth(lam: float) -> float:
    """Factor by which one block's inverse lets an error grow: the root r of ``lam r^2 = r + 1``.

    A block is inverted as ``x1 = (y1 - F(x2)) / lam`` with the streams exchanged, so an error of this block's input is
    the next one's through F (of slope about 1) and the one after that's through 1 / lam.
    """
    return float((1 + (1 + 4 * lam) ** 0.5) / (2 * lam))


def least_lambda(depth: int, amplification: float = MOST) -> float:
    """The smallest lambda whose inverse over ``depth`` blocks amplifies rounding by at most so much."""
    r = amplification ** (1.0 / depth)
    return float((r + 1) / r**2)


class Bottleneck(nn.Sequential):
    """A narrow MLP, (..., D) -> (..., D), that starts near zero."""

    def __init__(self, width: int, bottleneck: int) -> None:
        layers = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        super().__init__(layers[0], nn.GELU(), layers[1])
        for layer in layers:
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)


class ReversibleBlock(nn.Module):
    """``y1 = lambda x1 + F(x2)``, ``y2 = beta x2 + G(y1)``, then the streams change places.

    F is the frozen block with an adapter beside it, G an adapter.

    Args:
        block: frozen.
        width: D.
        bottleneck: width inside the adapters.
        lam: lambda.
        beta: beta.
    """

    def __init__(self, block: nn.Module, width: int, *, bottleneck: int, lam: float, beta: float) -> None:
        super().__init__()
        self.frozen, self.lam, self.beta = block, lam, beta
        self.tuples = False  # whether the frozen block returns a tuple, as some of transformers' do
        self.beside, self.after = Bottleneck(width, bottleneck), Bottleneck(width, bottleneck)

    def first(self, x: Tensor) -> Tensor:
        """F."""
        out = self.frozen(x)
        self.tuples = isinstance(out, tuple)
        return (out[0] if self.tuples else out) + self.beside(x)

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        """The streams (B, M, D) after the block."""
        y1 = self.lam * x1 + self.first(x2)
        return self.beta * x2 + self.after(y1), y1

    def back(self, z1: Tensor, z2: Tensor, g1: Tensor, g2: Tensor) -> tuple[Tensor, ...]:
        """Streams and gradients before the block from those after it; gradients of parameters go into ``.grad_of``."""
        y1, y2, dy1, dy2 = z2, z1, g2, g1
        params = [p for p in self.parameters() if p.requires_grad]
        grads: dict[int, Tensor] = {}
        with torch.enable_grad():
            y1 = y1.detach().requires_grad_()
            g = self.after(y1)
        x2 = (y2 - g.detach()) / self.beta
        dy1 = dy1 + _collect(g, y1, dy2, params, grads)
        with torch.enable_grad():
            x2 = x2.requires_grad_()
            f = self.first(x2)
        x1 = (y1.detach() - f.detach()) / self.lam
        dx2 = self.beta * dy2 + _collect(f, x2, dy1, params, grads)
        self.grad_of = [grads.get(id(p)) for p in params]
        return x1, x2.detach(), self.lam * dy1, dx2


def _collect(out: Tensor, inner: Tensor, grad: Tensor, params: list[nn.Parameter], into: dict[int, Tensor]) -> Tensor:
    """Gradient of ``inner``; those of the parameters that ``out`` depends on are added to ``into``."""
    found = torch.autograd.grad(out, [inner, *params], grad, allow_unused=True)
    for p, g in zip(params, found[1:], strict=True):
        if g is not None:
            into[id(p)] = into[id(p)] + g if id(p) in into else g
    return found[0]


class _Reversed(torch.autograd.Function):
    """Runs the blocks without keeping anything but their last output, and backwards by inverting them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: Any, *_params: Tensor) -> tuple[Tensor, Tensor]:
        x1 = x2 = x
        for block in blocks:
            x1, x2 = block(x1, x2)
        ctx.blocks = blocks
        ctx.save_for_backward(x1, x2)
        return x1, x2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x1, x2), (g1, g2) = ctx.saved_tensors, grads
        found: list[list[Tensor | None]] = []
        with torch.autocast(x1.device.type, enabled=False):
            for block in reversed(ctx.blocks):
                x1, x2, g1, g2 = block.back(x1, x2, g1, g2)
                found.append(block.grad_of)
                del block.grad_of
        gap = float((x1 - x2).norm() / x2.norm().clamp(min=1e-12))  # both streams started as the same tokens
        if not gap <= GAP:
            raise UsageError("The blocks could not be inverted: the two streams, which start alike, come back "
                             f"{gap:.2g} of their size apart, so the gradients would be wrong.", where="meft",
                             fix="Raise lam (--set lam=1), adapt a network of fewer blocks, or set plain=true, which "
                                 "keeps all activations.")
        return (g1 + g2, None, *[g for part in reversed(found) for g in part])


class Reversible(nn.Module):
    """Stands in for the list of blocks: tokens (B, M, D) in, mean of the two streams out.

    Args:
        blocks: reversible blocks, first to last.
        plain: let autograd keep everything instead, for comparison.
    """

    def __init__(self, blocks: list[ReversibleBlock], plain: bool = False) -> None:
        super().__init__()
        self.blocks, self.plain = nn.ModuleList(blocks), plain

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor | tuple[Tensor]:
        """Both streams start as the tokens."""
        blocks = [cast(ReversibleBlock, block) for block in self.blocks]
        with torch.autocast(x.device.type, enabled=False):
            x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            if self.plain or not torch.is_grad_enabled():
                x1 = x2 = x
                for block in blocks:
                    x1, x2 = block(x1, x2)
            else:
                params = [p for block in blocks for p in block.parameters() if p.requires_grad]
                x1, x2 = _Reversed.apply(x, blocks, *params)
            out = (x1 + x2) / 2
            return (out,) if blocks[0].tuples else out


class MEFT(Adapter):
    """Train adapters in a frozen transformer whose activations are computed again instead of stored.

    Args:
        backbone: pre-trained network.
        task: what is to be told apart.
        bottleneck: width inside the adapters.
        lam: lambda, how much of the other stream is carried on; 0 = 0.1, or more for networks of over four blocks.
        beta: how much of its own stream is carried on.
        plain: keep all activations instead, for comparison.
    """

    recipe: ClassVar = {**RECIPE, "lr": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.98), "clip": 1.0}
    mergeable: ClassVar = False

    def __init__(self, backbone: Backbone, task: DataSpec, *, bottleneck: int = 8, lam: float = 0.0,
                 beta: float = 1.0, plain: bool = False) -> None:
        super().__init__(backbone, task)
        self.layout = read_layout(self.backbone, "meft")
        depth = len(self.layout.blocks)
        least = least_lambda(depth)
        chosen = lam or min(1.0, max(0.1, round(least_lambda(depth, USUAL) + 5e-4, 3)))
        if bottleneck < 1 or not 0 < beta <= 1 or not 0 <= lam <= 1:
            raise UsageError("bottleneck is at least 1, beta lies in (0, 1] and lam in [0, 1], not "
                             f"{bottleneck}, {beta} and {lam}.", where="meft")
        if growth(chosen * beta) ** depth > MOST * 1.01 and not plain:
            raise UsageError(f"lam={chosen:g} with beta={beta:g} cannot be inverted through {depth} blocks in float32: "
                             "the gradients would be wrong.", where="--set lam",
                             fix=f"Use lam * beta of at least {least:.3f}, or plain=true, which keeps all activations.")
        if not lam:
            self.notes.append(f"lam={chosen:g}: rule: 0.1, raised so that rounding stays small through {depth} blocks")
        found = block_list(self.backbone)
        assert found is not None
        name, blocks = found
        self.stack = f"{name}.0"
        made = Reversible([ReversibleBlock(b, backbone.token_dim, bottleneck=bottleneck, lam=chosen, beta=beta)
                           for b in blocks], plain)
        self.bottleneck = bottleneck
        parent, _, child = name.rpartition(".")
        setattr(self.backbone.get_submodule(parent), child, type(blocks)(*([made] if isinstance(blocks, nn.Sequential)
                                                                           else [[made]])))

    def expected_trainable(self) -> int:
        """Two adapters of 2 D b + b + D a block, and the head."""
        d, b = self.backbone.token_dim, self.bottleneck
        return len(self.layout.blocks) * 2 * (2 * d * b + b + d) + self.head_size

    def merge(self) -> Backbone:
        """Refused: the reversible network has two streams."""
        raise self._refuse_merge()
