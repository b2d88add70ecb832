"""Words of a text that are to be predicted: which ones, and what stands in their places."""

from __future__ import annotations

import torch
from torch import Tensor

from osteon.parts.types import Draws
from osteon.parts.words import MASK, PAD, SPECIAL


def draw_places(tokens: Tensor, ratio: float, draws: Draws) -> tuple[Tensor, Tensor]:
    """Which tokens (B, N) are to be predicted: ``round(ratio * n)`` of the n that are no padding, one at least.

    Returns:
        (B, K) int64 places, K being the count of a text without padding, and (B, K) bool, which of them count.
    """
    written = tokens != PAD
    key = draws.rand(tokens.shape[1]).to(tokens.device).masked_fill(~written, 2.0)
    most = max(1, round(ratio * tokens.shape[1]))
    count = (ratio * written.sum(1).double()).round().clamp(min=1, max=most).minimum(written.sum(1))
    return key.argsort(1)[:, :most], torch.arange(most, device=tokens.device) < count[:, None]


def cover(tokens: Tensor, places: Tensor, counted: Tensor, vocabulary: int, draws: Draws, *, masked: float = 1.0,
          random: float = 0.0) -> Tensor:
    """The text with the words at the places that count hidden, as the network is to see it.

    Args:
        tokens: (B, N) int64.
        places: (B, K) int64.
        counted: (B, K) bool.
        vocabulary: V.
        draws: the stream.
        masked: share of the hidden words that become ``<mask>``.
        random: share that become any word of the vocabulary, specials left out; the rest stays as it is.

    Returns:
        (B, N) int64.
    """
    fate = draws.fork("fate").rand(places.shape[1]).to(tokens.device)
    uniform = draws.fork("any").rand(places.shape[1]).to(tokens.device)
    first = len(SPECIAL)
    anyone = (first + (uniform.double() * (vocabulary - first)).long()).clamp(max=vocabulary - 1)
    stays = tokens.gather(1, places)
    shown = torch.where(fate < masked, torch.full_like(stays, MASK), torch.where(fate < masked + random, anyone, stays))
    return tokens.scatter(1, places, torch.where(counted, shown, stays))
