"""Causal language model: predict every word of a text from those before it.

Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training" (GPT), section 3.1, equation 1.
"""

from __future__ import annotations

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.objectives._words import WordModel
from osteon.parts.types import DataSpec, Step

CARD = Card(
    kind="objective",
    name="clm",
    papers=("Improving Language Understanding by Generative Pre-Training",
            "Should We Still Pretrain Encoders with Masked Language Modeling?"),
    modalities=("text",),
    differs="The head is one linear layer without the word vectors' weights. The first word of a window, which nothing "
    "stands before, is not predicted. What a run leaves is read from both sides like every backbone; the causal mask "
    "is the objective's. Class and register tokens stand before the text and see each other alone.",
    backbones=("tokens",),
    cost="1 forward on all tokens under a mask and one linear layer",
)


class CLM(WordModel):
    """Causal language model.

    Args:
        backbone: network to train; it must read words.
        data: what the data look like.
        crop_min: smallest share of the window in a view; None = the whole.
    """

    def __init__(self, backbone: Backbone, data: DataSpec, *, crop_min: float | None = None) -> None:
        super().__init__(backbone, data, crop_min=crop_min)

    def causal(self, step: Step) -> bool:
        """Always."""
        return True
