"""First a causal language model, then a masked one: the mask of attention is switched within one run.

Gisserot-Boukhlef et al. 2025, arXiv:2507.00994, "Should We Still Pretrain Encoders with Masked Language Modeling?".
Optimiser, learning-rate schedule and the order of the data go on over the switch.
"""

from __future__ import annotations

from torch import Tensor

from osteon.backbones import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.objectives._words import WordModel
from osteon.parts.types import DataSpec, Loss, Step

CARD = Card(
    kind="objective",
    name="biphasic",
    papers=("Should We Still Pretrain Encoders with Masked Language Modeling?",),
    modalities=("text",),
    differs="Hidden words become <mask>, random words or stay in BERT's shares, which the paper's account leaves open, "
    "and one head serves both phases. The learning rate falls linearly over both, without a restart. Positions are the "
    "backbone's own instead of rotary ones. The published sizes start at 210M parameters.",
    rows=(162,),
    backbones=("tokens",),
    cost="1 forward on all tokens and one linear layer",
)


class Biphasic(WordModel):
    """Causal, then masked language model.

    Args:
        backbone: network to train; it must read words.
        data: what the data look like.
        share: share of the steps in which the model is causal; the paper tries 0.25, 0.5 and 0.75, and short phases
            help already.
        ratio: share of the words that are hidden afterwards; the larger the network, the larger the best share.
        masked: share of the hidden words that the network sees as ``<mask>``.
        random: share it sees as random words; the rest it sees as they are.
        crop_min: smallest share of the window in a view; None = the whole.
    """

    def __init__(self, backbone: Backbone, data: DataSpec, *, share: float = 0.25, ratio: float = 0.4,
                 masked: float = 0.8, random: float = 0.1, crop_min: float | None = None) -> None:
        super().__init__(backbone, data, ratio=ratio, masked=masked, random=random, crop_min=crop_min)
        if not 0 <= share <= 1:
            raise UsageError(f"share = {share} is no share of the steps.", where="share", fix="Give 0 to 1, e.g. 0.25.")
        self.share = share
        self.notes.append(f"causal for the first {share:.0%} of the steps, then {ratio:.0%} of the words are hidden")

    def causal(self, step: Step) -> bool:
        """In the first ``round(share * total)`` steps."""
        return step.index < round(self.share * step.total)

    def score(self, encoded: dict[str, Tensor], step: Step) -> Loss:
        """Mean over the words asked about; ``causal`` says which phase it is."""
        loss = super().score(encoded, step)
        return Loss(loss.total, {**loss.parts, "causal": loss.total.new_tensor(float(self.causal(step)))})
