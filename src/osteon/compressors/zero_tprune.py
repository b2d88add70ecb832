"""Zero-TPrune: leave out unimportant and redundant tokens on the way through a Transformer, without any training.

Wang et al. 2023, arXiv:2305.17328, sections 3.2 and 3.3.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.calibration import Calibration
from osteon.parts.compressor import Budget, Compressor, Fit, search
from osteon.parts.surgery import apply_edits

if TYPE_CHECKING:
    from osteon.backbones import Backbone

CARD = Card(
    kind="compressor",
    name="zero_tprune",
    papers=("Zero-TPrune: Zero-Shot Token Pruning through Leveraging of the Attention Graph in Pre-Trained "
            "Transformers",),
    modalities=("image", "sound", "series", "table", "points", "volume", "video"),
    limits="words, nodes and members of a set are filled up to equal numbers, so that the same share of tokens would "
    "leave real ones of one sample and padding of another",
    differs="No public code: iterations and bounds are those quoted from the paper elsewhere. A head's scores are "
    "scaled to mean one before their variance is compared with the bounds (of scores that sum to one no head would "
    "pass), and all heads count where none passes. The I'-stage, a first importance pass before similarity, is left "
    "out. Importance comes from the attention of the block after which tokens leave. Blocks and shares follow from "
    "the budget.",
    rows=(82,),
    backbones=("tokens",),
    cost="1 more product of queries and keys at every pruning block",
)


class ZeroTPrune(Compressor):
    """Rank tokens by a page rank on the attention graph and drop the last, then drop near copies.

    Args:
        blocks: comma-separated numbers of the blocks after which tokens leave; empty = a quarter, a half and three
            quarters of the way.
        low: smallest variance of a head's scores.
        high: largest variance of a head's scores.
        similarity: let near copies leave as well.
    """

    units: ClassVar[tuple[str, ...]] = ("flops", "latency")

    def __init__(self, *, blocks: str = "", low: float = 0.01, high: float = 0.7, similarity: bool = True) -> None:
        super().__init__()
        if not 0 <= low <= high:
            raise UsageError(f"low is 0 or more and at most high, not {low} and {high}.", where="zero_tprune")
        self.blocks, self.low, self.high, self.similarity = blocks, low, high, similarity

    def compress(self, backbone: Backbone, budget: Budget, calibration: Calibration, fit: Fit | None,
                 seed: int) -> Backbone:
        """Search the share of tokens that leaves at every chosen block."""
        name, depth = find_blocks(backbone)
        places = self.places(depth)
        prefix = int(backbone.prefix(1).shape[1])

        def make(strength: float) -> Backbone:
            network = copy.deepcopy(backbone)
            layers = {f"{name}.{i}": {
                "keep_importance": max(0.02, 1 - strength),
                "keep_similarity": 1 - strength / 2 if self.similarity else 1.0, "iterations": iterations(i, depth),
                "low": self.low, "high": self.high} for i in places}
            apply_edits(network, [{"op": "tokens", "prefix": prefix, "layers": layers}])
            return network

        result, strength = search(self.name, backbone, budget, make)
        self.notes.append(f"after blocks {', '.join(map(str, places))}, {100 * (1 - strength):.1f} % of tokens stay "
                          + (f"for their importance and {100 * (1 - strength / 2):.1f} % of those as no near copies"
                             if self.similarity else "for their importance"))
        return result

    def places(self, depth: int) -> list[int]:
        """Numbers of the blocks after which tokens leave."""
        if not self.blocks:
            return sorted({max(0, round(depth * q) - 1) for q in (0.25, 0.5, 0.75)} - {depth - 1})
        try:
            found = sorted({int(word) for word in str(self.blocks).split(",")})
        except ValueError:
            found = [-1]
        if not all(0 <= i < depth - 1 for i in found):
            raise UsageError(f"blocks are numbers from 0 to {depth - 2}, not '{self.blocks}'.", where="blocks",
                             fix="After the last block nothing would be saved.")
        return found


def iterations(block: int, depth: int) -> int:
    """Steps of the page rank: 30 in the first quarter of the blocks, 5 in the middle, 1 in the last quarter."""
    return 30 if block < depth / 4 else 1 if block >= 3 * depth / 4 else 5


def find_blocks(network: Backbone) -> tuple[str, int]:
    """Name and number of a plain ViT's blocks.

    Raises:
        UsageError: the network is none, or too shallow.
    """
    for name in ("blocks", "model.blocks"):
        found: Any = None
        try:
            found = network.get_submodule(name)
        except AttributeError:
            continue
        if isinstance(found, nn.ModuleList | nn.Sequential) and len(found) > 1 and getattr(network, "plain", True):
            return name, len(found)
    raise UsageError(f"{network.name} is no plain ViT of two blocks or more: its tokens cannot be pruned.",
                     where="zero_tprune", fix="Use a vit_* or a plain ViT of timm.")
