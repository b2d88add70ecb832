"""Tiny Time Mixer: patches of a series mixed over time and features by small gated MLPs, without attention.

Ekambaram et al. 2024, arXiv:2401.03955, section 3. Levels cut the vectors of patches into shorter ones, so that the
first mix fine spans of time and the last coarse ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from osteon.backbones._channels import ChannelwiseBackbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.mixer import MixerLayer

CARD = Card(
    kind="backbone",
    name="ttm",
    papers=("Tiny Time Mixers (TTMs): Fast Pre-trained Models for Enhanced Zero/Few-Shot Forecasting of Multivariate "
            "Time Series",),
    modalities=("series",),
    differs="The backbone alone: the window's normalisation, the decoder, its channel mixing and the direct head "
    "belong to the objective `forecast`. There is no resolution prefix (off in the authors' scripts) and no "
    "mixer of exogenous series. Without a patch size the power of two that leaves at most 16 patches is "
    "taken, lowered until it divides the context (512 steps in 8 patches in the authors' settings). Where a "
    "level's vectors would have 4 numbers or fewer the authors' code silently leaves the level out; here it "
    "is refused. Masks are possible, which the paper does not use.",
    rows=(131,),
    backbones=("tokens",),
    cost="linear in time, width and channels; quadratic in the number of patches, which is small",
)

#: Name -> width, levels, layers of each level. ttm_base has the authors' sizes.
SIZES: dict[str, dict[str, int]] = {
    "ttm_tiny": {"dim": 32, "levels": 2, "layers": 2},
    "ttm_mini": {"dim": 64, "levels": 3, "layers": 2},
    "ttm_base": {"dim": 192, "levels": 3, "layers": 2},
}


def default_patch(steps: int) -> int:
    """Steps of a patch: the power of two that leaves at most 16 patches, lowered until it divides the context."""
    wanted = max(1, 2 ** math.ceil(math.log2(max(1.0, steps / 16))))
    patch = next(p for p in range(min(wanted, steps), 0, -1) if steps % p == 0)
    if patch * 2 < wanted:
        raise UsageError(f"No patch between {wanted // 2} and {wanted} steps divides {steps} steps.", where="patch",
                         fix="Choose a context that is a multiple of 16, or set patch.")
    return patch


class Level(nn.Module):
    """Mixer layers on vectors that are cut in ``factor`` pieces, each a patch of its own: (B, C, P, D) -> the same.

    Args:
        patches: P.
        dim: D; ``factor`` divides it.
        factor: pieces a vector is cut in.
        layers: mixer layers.
        channels: channels that are mixed, or 1.
        expansion: of the MLPs.
        dropout: of the MLPs.
    """

    def __init__(self, patches: int, dim: int, factor: int, layers: int, channels: int, expansion: float,
                 dropout: float) -> None:
        super().__init__()
        self.factor = factor
        self.layers = nn.Sequential(*(MixerLayer(patches * factor, dim // factor, channels, expansion, dropout)
                                      for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        """Cut, mix, put together."""
        b, c, p, d = x.shape
        return self.layers(x.reshape(b, c, p * self.factor, d // self.factor)).reshape(b, c, p, d)


class TTM(ChannelwiseBackbone):
    """Tiny Time Mixer.

    A token holds the vectors of all channels, ``dim`` numbers each. Longer samples than the context are cut to their
    last steps; shorter ones are refused.

    Args:
        name: the name it was built by.
        channels: number of channels.
        size: steps of the context.
        dim: width of one channel's vector of a patch; a multiple of ``2 ** (levels - 1)``.
        levels: levels of adaptive patching; level i, from levels - 1 down to 0, mixes vectors cut in 2^i pieces.
        layers: mixer layers of each level.
        patch: steps of a patch; 0 = by the context, see :func:`default_patch`.
        mixing: whether channels stay apart (as in pre-training) or every layer mixes them too.
        expansion: width of the MLPs' hidden layer over the side they mix.
        dropout: rate of dropout in the MLPs.
    """

    def __init__(self, name: str, *, channels: int, size: int | Sequence[int], dim: int, levels: int, layers: int,
                 patch: int = 0, mixing: Literal["independent", "channels"] = "independent", expansion: float = 2.0,
                 dropout: float = 0.2) -> None:
        extent = (size, size) if isinstance(size, int) else tuple(size)
        chosen = patch or default_patch(extent[0])
        options: dict[str, Any] = {"dim": dim, "levels": levels, "layers": layers, "patch": chosen, "mixing": mixing,
                                   "expansion": expansion, "dropout": dropout}
        _check(options)
        super().__init__(name, channels=channels, size=extent, dim=dim, patch=chosen, options=options)
        self.notes.append(f"patch {chosen}, so {self.count} tokens: " + (
            "as asked" if patch else "rule: at most 16 tokens"))
        mixed = channels if mixing == "channels" else 1
        self.patch_embed = nn.Linear(chosen, dim)
        self.blocks = nn.ModuleList(Level(self.count, dim, 2**i, layers, mixed, expansion, dropout)
                                    for i in reversed(range(levels)))

    def stem(self, x: Tensor) -> Tensor:
        """(B, C, T) -> tokens (B, N, C * dim)."""
        return self.join(self.patch_embed(self.patches(x)))

    def trunk(self, tokens: Tensor, *, attend: Tensor | None = None,
              collect: Sequence[int] = ()) -> Tensor | tuple[Tensor, list[Tensor]]:
        """All levels on all tokens of the context; there is no last norm. ``attend`` is refused.

        Args:
            tokens: (B, N, C * dim).
            attend: None; a mixer attends to nothing.
            collect: level numbers, the finest first (negative: from the end), whose outputs are returned too.
        """
        if attend is not None:
            raise self._refuse("attend: a mixer has no attention")
        seen, x = list[Tensor](), self.split(tokens)
        for level in self.blocks:
            x = level(x)
            seen.append(self.join(x))
        return (seen[-1], [seen[i] for i in collect]) if collect else seen[-1]


def _check(options: dict[str, Any]) -> None:
    dim, levels = options["dim"], options["levels"]
    if min(dim, levels, options["layers"]) < 1 or options["expansion"] <= 0 or not 0 <= options["dropout"] < 1:
        raise UsageError("dim, levels and layers are at least 1, expansion is positive and dropout lies in [0, 1).",
                         where="ttm")
    if dim % 2 ** (levels - 1) or (levels > 1 and dim // 2 ** (levels - 1) <= 4):
        raise UsageError(f"{levels} levels cut vectors in {2 ** (levels - 1)} pieces; {dim} numbers do not give more "
                         "than 4 each.", where="dim", fix="Set a larger dim or fewer levels.")
    if options["mixing"] not in ("independent", "channels"):
        raise UsageError(f"mixing must be independent or channels, not {options['mixing']!r}.", where="ttm")
