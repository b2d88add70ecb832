"""Masked language model: hide some words of a text and predict them from what stands on both sides.

Devlin et al. 2019, arXiv:1810.04805 (BERT), section 3.1, task 1.
"""

from __future__ import annotations

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.objectives._words import WordModel
from osteon.parts.types import DataSpec, Step

CARD = Card(
    kind="objective",
    name="mlm",
    papers=("BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
            "Should We Still Pretrain Encoders with Masked Language Modeling?"),
    modalities=("text",),
    differs="BERT's second task, next sentences, is left out. The head is one linear layer without the word vectors' "
    "weights. Tokens are hidden one by one, not by whole words.",
    backbones=("tokens",),
    cost="1 forward on all tokens and one linear layer on the hidden ones",
)


class MLM(WordModel):
    """Masked language model.

    Args:
        backbone: network to train; it must read words.
        data: what the data look like.
        ratio: share of the words that are hidden; the larger the network, the larger the best share.
        masked: share of the hidden words that the network sees as ``<mask>``.
        random: share it sees as random words; the rest it sees as they are.
        crop_min: smallest share of the window in a view; None = the whole.
    """

    def __init__(self, backbone: Backbone, data: DataSpec, *, ratio: float = 0.15, masked: float = 0.8,
                 random: float = 0.1, crop_min: float | None = None) -> None:
        super().__init__(backbone, data, ratio=ratio, masked=masked, random=random, crop_min=crop_min)

    def causal(self, step: Step) -> bool:
        """Never."""
        return False
