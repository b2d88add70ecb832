"""Visual prompt tuning: trained tokens beside the patches of a frozen transformer, new ones in front of every block.

Jia et al. 2022, arXiv:2203.12119, section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.adapters._tokens import read_layout
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.adapter import RECIPE, Adapter
from osteon.parts.types import DataSpec

if TYPE_CHECKING:
    from osteon.backbones import Backbone

CARD = Card(
    kind="adapter",
    name="visual_prompt",
    papers=("Visual Prompt Tuning",),
    modalities=("image", "sound", "series", "table"),
    differs="Prompts stand after the patches, which attention does not notice; where pooling is the mean of the "
    "patches, prompts are not among them (the paper reads the class token). Prompt pixels for convolutional networks "
    "(section 4.3 there) are not offered.",
    backbones=("tokens",),
    labels=True,
    cost="1 forward and backward per image on a few more tokens",
)


def prompt_bound(patch: int, channels: int, width: int) -> float:
    """Half-width of the uniform start: Xavier's for a patch's numbers and the width, ``sqrt(6 / (C p^2 + D))``."""
    return math.sqrt(6.0 / (channels * patch**2 + width))


def put_prompts(tokens: Tensor, prompts: Tensor, *, replace: bool) -> Tensor:
    """Tokens (B, M, D) with prompts (P, D) at the end, added or in place of the last P."""
    kept = tokens[:, :-len(prompts)] if replace else tokens
    return torch.cat([kept, prompts.to(tokens.dtype).expand(len(tokens), -1, -1)], 1)


class VisualPrompt(Adapter):
    """Train prompt tokens that a frozen transformer attends to, and a new head.

    Args:
        backbone: pre-trained network.
        task: what is to be told apart.
        prompts: number of prompt tokens.
        deep: new prompts at every block, in place of what became of those before; else once, at the first.
        dropout: share of the prompts' numbers dropped in training.
    """

    recipe: ClassVar = {**RECIPE, "lr": 1e-2}
    mergeable: ClassVar = False

    def __init__(self, backbone: Backbone, task: DataSpec, *, prompts: int = 10, deep: bool = True,
                 dropout: float = 0.0) -> None:
        super().__init__(backbone, task)
        if prompts < 1 or not 0 <= dropout < 1:
            raise UsageError(f"There is at least 1 prompt and dropout lies in [0, 1), not {prompts} and {dropout}.",
                             where="visual_prompt")
        self.layout = read_layout(self.backbone, "visual_prompt")
        self.dropout = dropout
        bound = prompt_bound(backbone.stride, backbone.channels, backbone.token_dim)
        depth = len(self.layout.blocks) if deep else 1
        self.prompts = nn.Parameter(torch.empty(depth, prompts, backbone.token_dim).uniform_(-bound, bound))

    def expected_trainable(self) -> int:
        """Blocks (or 1) * prompts * D, and the head."""
        return self.prompts.shape[0] * self.prompts.shape[1] * self.backbone.token_dim + self.head_size

    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D), pooled as the backbone pools, prompts left out."""
        with self._inserted():
            return self.backbone(images).pooled

    @contextmanager
    def _inserted(self) -> Iterator[None]:
        """Prompts go in before the blocks and come out after the last one, for one forward pass."""
        blocks = [self.backbone.get_submodule(name) for name in self.layout.blocks]
        handles = [blocks[i].register_forward_pre_hook(self._before(i)) for i in range(len(self.prompts))]
        handles.append(blocks[-1].register_forward_hook(self._after))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, i: int) -> Callable[..., Any]:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            prompts = F.dropout(self.prompts[i], self.dropout, self.training)
            return (put_prompts(args[0], prompts, replace=i > 0), *args[1:])

        return hook

    def _after(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        count = self.prompts.shape[1]
        if isinstance(output, tuple):
            return (output[0][:, :-count], *output[1:])
        return output[:, :-count]

    def merge(self) -> Backbone:
        """Refused: prompts are no weights of the backbone."""
        raise self._refuse_merge()
