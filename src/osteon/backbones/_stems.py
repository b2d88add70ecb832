"""How a sample becomes tokens: patches of a grid of values, or members of a vocabulary.

A stem is the only part of a Transformer that knows its modality. It turns a sample (B, C, *extent) into tokens
(B, N, D) without positions, and says what each token shows, which is what reconstruction predicts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from osteon.core.errors import UsageError
from osteon.parts.targets import patchify


class Stem(nn.Module):
    """Base of stems.

    Attributes:
        stride: cells of a sample a token covers on every side.
        shown_width: numbers it takes to predict what one token shows.
    """

    stride: int
    shown_width: int

    def shown(self, x: Tensor) -> Tensor:
        """(B, C, *extent) -> (B, N, shown_width) values, or (B, N) int64 members of a vocabulary of that size."""
        raise NotImplementedError

    def initialise(self) -> None:
        """Draw the initial weights."""


class PatchEmbed(Stem):
    """Each patch through one linear map, written as a convolution: (B, C, *extent) -> (B, N, D) in raster order.

    Args:
        channels: C.
        sides: number of sides of a sample: 1 for a series, 2 for an image, 3 for a volume.
        patch: cells of a patch on every side.
        dim: width of a token.
    """

    def __init__(self, channels: int, sides: int, patch: int, dim: int) -> None:
        super().__init__()
        if not 1 <= sides <= 3:
            raise UsageError(f"Samples with {sides} sides cannot be cut into patches.", where="backbone",
                             fix="Give series (1 side), images (2) or volumes (3).")
        self.stride, self.shown_width = patch, channels * patch**sides
        self.proj = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[sides - 1](channels, dim, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """Embed."""
        return self.proj(x).flatten(2).transpose(1, 2)

    def shown(self, x: Tensor) -> Tensor:
        """The values of every patch."""
        return patchify(x, self.stride)

    def initialise(self) -> None:
        """Xavier-uniform, as a linear map on the patch."""
        nn.init.xavier_uniform_(self.proj.weight.view(self.proj.weight.shape[0], -1))
        assert self.proj.bias is not None
        nn.init.zeros_(self.proj.bias)


class WordEmbed(Stem):
    """A vector for every member of a vocabulary: numbers (B, 1, T) -> (B, T, D).

    Vectors are multiplied by sqrt(D), so that they are as large as the positions they are added to (Vaswani et al.
    2017, arXiv:1706.03762, section 3.4).

    Args:
        vocabulary: how many members there are.
        dim: width of a token.
    """

    def __init__(self, vocabulary: int, dim: int) -> None:
        super().__init__()
        if vocabulary < 2:
            raise UsageError(f"A vocabulary of {vocabulary} has nothing to tell apart.", where="vocabulary")
        self.stride, self.shown_width = 1, vocabulary
        self.proj = nn.Embedding(vocabulary, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Look up."""
        return self.proj(self.shown(x)) * self.proj.embedding_dim**0.5

    def shown(self, x: Tensor) -> Tensor:
        """The members themselves."""
        return x[:, 0].long()

    def initialise(self) -> None:
        """Normal with deviation 1 / sqrt(D)."""
        nn.init.normal_(self.proj.weight, std=self.proj.embedding_dim**-0.5)


def default_patch(extent: Sequence[int]) -> int:
    """Cells of a patch on every side.

    Of images by the shorter side: 2 below 16, 4 below 48, 8 below 128, else 16. Of series: the power of two that
    leaves at most 64 tokens. Of volumes: 2 below 16, 4 below 32, else 8. Lowered until it divides every side.
    """
    least = min(extent)
    if len(extent) == 1:
        wanted = max(1, 2 ** math.ceil(math.log2(max(1, least / 64))))
    elif len(extent) == 2:
        wanted = 2 if least < 16 else 4 if least < 48 else 8 if least < 128 else 16
    else:
        wanted = 2 if least < 16 else 4 if least < 32 else 8
    patch = next(p for p in range(min(wanted, least), 0, -1) if all(side % p == 0 for side in extent))
    if patch * 2 < wanted:
        raise UsageError(f"No patch between {wanted // 2} and {wanted} pixels divides "
                         f"{' x '.join(map(str, dict.fromkeys(extent)))} pixels.", where="patch",
                         fix="Resize the samples to multiples of 4, or set patch.")
    return patch

