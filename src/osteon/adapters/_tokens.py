"""What adapters need to know of a transformer: its blocks, how its tokens are laid out, and how it pools them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from osteon.core.errors import UsageError
from osteon.parts.taps import taps

if TYPE_CHECKING:
    from osteon.backbones import Backbone


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a backbone lie.

    Args:
        blocks: names of the blocks, first to last.
        prefix: class and register tokens before the patches.
        first: whether the pooled features come from the class token, rather than the mean of the patches.
        heads: attention heads of a block.
    """

    blocks: tuple[str, ...]
    prefix: int
    first: bool
    heads: int

    def pool(self, tokens: Tensor) -> Tensor:
        """(B, M, D) -> (B, D), as the backbone pools."""
        return tokens[:, 0] if self.first else tokens[:, self.prefix:].mean(1)


def block_list(backbone: nn.Module) -> tuple[str, nn.ModuleList | nn.Sequential] | None:
    """Name and module of the longest list of alike modules; None where there is none of two or more."""
    best: tuple[str, nn.ModuleList | nn.Sequential] | None = None
    for name, module in backbone.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) < 2:
            continue
        if len({type(m) for m in module}) == 1 and (best is None or len(module) > len(best[1])):
            best = (name, module)
    return best


def read_layout(backbone: Backbone, who: str) -> Layout:
    """Learn the layout of a backbone from one sample of noise; of words and cells, which noise is none of, of zeros.

    Args:
        backbone: a network whose blocks pass tokens on.
        who: the adapter that asks, for messages.

    Raises:
        UsageError: it is not one.
    """
    found = block_list(backbone)
    if backbone.kind != "tokens" or found is None:
        raise refuse(backbone, who, "is no transformer with a list of blocks")
    names = tuple(f"{found[0]}.{i}" for i in range(len(found[1])))
    like = next(backbone.parameters())
    noise = torch.randn(1, backbone.channels, *backbone.extent, generator=torch.Generator().manual_seed(0))
    if backbone.discrete or backbone.own_error:
        noise = torch.zeros_like(noise)
    training = backbone.training
    backbone.eval()
    with torch.no_grad(), taps(backbone, names[-1]) as seen:
        out = backbone(noise.to(like))
    backbone.train(training)
    last = seen[names[-1]]
    if last.dim() != 3 or last.shape[2] != backbone.token_dim or last.shape[1] < out.tokens.shape[1]:
        raise refuse(backbone, who, "does not pass one set of tokens from block to block")
    mean = out.tokens.mean(1)
    first = out.cls is not None and bool((out.pooled - out.cls).norm() < (out.pooled - mean).norm())
    return Layout(names, last.shape[1] - out.tokens.shape[1], first, _heads(found[1][0]))


def _heads(block: nn.Module) -> int:
    for module in block.modules():
        for name in ("num_heads", "num_attention_heads"):
            value: Any = getattr(module, name, None)
            if isinstance(value, int) and value > 0:
                return value
    return 1


def refuse(backbone: Backbone, who: str, why: str) -> UsageError:
    """What to say where an adapter of transformers meets something else."""
    return UsageError(f"{who} reads the tokens of a transformer; {backbone.name} {why}.", where="adapter",
                      fix="Use an adapter for every network: linear, full, bias, lora, svfit.")
