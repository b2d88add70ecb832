"""How a sample becomes tokens: patches of a grid of values, or members of a vocabulary.

A stem is the only part of a Transformer that knows its modality. It turns a sample (B, C, *extent) into tokens
(B, N, D) without positions, and says what each token shows, which is what reconstruction predicts.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from osteon.core.errors import UsageError
from osteon.parts.targets import patchify, unpatchify
from osteon.parts.tracing import holds
from osteon.parts.words import PAD, SPECIAL


class Stem(nn.Module):
    """Base of stems.

    Attributes:
        stride: cells of a sample a token covers on every side.
        shown_width: numbers it takes to predict what one token shows.
        place_width: coordinates that say where a token lies; 0 where its number in the grid says it.
        own_error: what a token shows has an error of its own, :meth:`shown_error`.
        sparse: most tokens of a sample may not be there, so that none is computed that no sample of a batch has.
    """

    stride: int
    shown_width: int
    place_width: int = 0
    own_error: bool = False
    sparse: bool = False

    def shown(self, x: Tensor) -> Tensor:
        """(B, C, *extent) -> (B, N, shown_width) values, or (B, N) int64 members of a vocabulary of that size."""
        raise NotImplementedError

    def grid(self, *extent: int) -> tuple[int, ...] | None:
        """Sides of the grid of tokens, or None: by the stride."""
        return None

    def places(self, x: Tensor) -> Tensor | None:
        """Where every token of these samples lies, (B, N, place_width), or None: on the grid."""
        return None

    def present(self, x: Tensor) -> Tensor | None:
        """(B, N) bool, False for tokens that only fill a sample up, or None: all are real."""
        return None

    def shown_error(self, prediction: Tensor, shown: Tensor) -> Tensor:
        """Error of every token, (B, N), of predictions (B, N, shown_width); only where ``own_error``."""
        raise NotImplementedError

    def shown_values(self, prediction: Tensor) -> Tensor:
        """Predictions (B, N, shown_width) in the terms of what tokens show, for pictures."""
        return prediction

    def shown_blank(self, shown: Tensor) -> Tensor:
        """What stands for hidden tokens in pictures, of the shape of ``shown``."""
        return torch.zeros_like(shown)

    def assemble(self, shown: Tensor, x: Tensor) -> Tensor:
        """What tokens show (B, N, ...) as samples again, (B, C, *extent) like ``x``, for pictures."""
        return unpatchify(shown, self.stride, tuple(side // self.stride for side in x.shape[2:]))

    def example(self, shape: Sequence[int], draws: torch.Generator) -> Tensor:
        """Samples of this shape (B, C, *extent), as a network takes them, with everything there and nothing missing."""
        return torch.randn(*shape, generator=draws)

    def note(self) -> str:
        """What a token is, by which rule."""
        return ""

    def initialise(self) -> None:
        """Draw the initial weights."""


def build_stem(name: str, channels: int, extent: Sequence[int], dim: int, options: dict[str, Any]) -> Stem:
    """The stem ``STEM`` of the file ``_stem_NAME.py``, called with (channels, extent, dim, **options)."""
    try:
        module = importlib.import_module(f"osteon.backbones._stem_{name}")
    except ImportError:
        raise UsageError(f"There is no stem '{name}'.", where="stem") from None
    return cast(Stem, module.STEM(channels, tuple(extent), dim, **options))


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

    def present(self, x: Tensor) -> Tensor | None:
        """Every token but ``<pad>``."""
        return present_or_none(x[:, 0] != PAD)

    def example(self, shape: Sequence[int], draws: torch.Generator) -> Tensor:
        """Members that are no special ones, where there are others."""
        first = min(len(SPECIAL), self.shown_width - 1)
        return torch.randint(first, self.shown_width, tuple(shape), generator=draws).float()

    def initialise(self) -> None:
        """Normal with deviation 1 / sqrt(D)."""
        nn.init.normal_(self.proj.weight, std=self.proj.embedding_dim**-0.5)


def present_or_none(present: Tensor) -> Tensor | None:
    """None where every token of (B, N) is real, so that nothing is paid for padding that is not there.

    A sample without any real token keeps all of them: attention needs something to look at.
    """
    if holds(present.all()):
        return None
    return present | ~present.any(1, keepdim=True)


def default_patch(extent: Sequence[int]) -> int:
    """Cells of a patch on every side.

    Of images by the shorter side: 2 below 16, 4 below 48, 8 below 128, else 16. Of series: the power of two that
    leaves at most 64 tokens. Of volumes and clips by the shortest side: 2 below 16, 4 below 32, else 8. Lowered until
    it divides every side; of volumes and clips then doubled, while it divides them, until at most 1,024 tokens are
    left.
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
    while len(extent) == 3 and math.prod(extent) > 1024 * patch**3 and all(side % (2 * patch) == 0 for side in extent):
        patch *= 2
    return patch


def patch_note(patch: int, grid: tuple[int, ...], *, asked: bool) -> str:
    """Which patch, and by which rule."""
    sides, rule = len(grid), {1: "at most 64 tokens", 2: "2 px below 16, 4 below 48, 8 below 128, else 16",
                              3: "2 below 16, 4 below 32, else 8; more if over 1,024 tokens"}[len(grid)]
    return (f"patch {' x '.join([str(patch)] * sides)}{' px' if sides == 2 else ''}, so {' x '.join(map(str, grid))} "
            f"tokens: {'as asked' if asked else 'rule: ' + rule}")
