"""EL2N: keep the samples that networks get most wrong early in training.

Paul, Ganguli & Dziugaite 2021, "Deep Learning on a Data Diet", arXiv:2107.07075, definition 2.2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.core.card import Card
from osteon.parts.selection import Pool, Selection
from osteon.selectors._early import Early

CARD = Card(kind="selector", name="el2n",
            papers=("Deep Learning on a Data Diet: Finding Important Examples Early in Training",),
            modalities=("image", "sound", "series", "text", "table", "graph", "points", "volume", "video", "several"),
            differs="the scoring networks train by osteon's supervised recipe at a constant rate (AdamW, crops and "
                    "flips, or the views of another modality, whose networks are a vit_mini each) instead of SGD at "
                    "0.1; scores are taken in eval mode without augmentation, as in the authors' code",
            rows=(232,), labels=True, cost="10 short trainings on all samples")


def error_norm(logits_BK: Tensor, label_B: Tensor) -> Tensor:
    """Euclidean length of softmax(logits) less the one-hot label, between 0 and sqrt(2). (B, K), (B,) -> (B,)."""
    wrong = logits_BK.float().softmax(-1) - F.one_hot(label_B.long(), logits_BK.shape[-1])
    return wrong.norm(dim=-1)


class EL2N(Early):
    """Keep the samples with the largest prediction error early in training, averaged over several networks."""

    def __call__(self, pool: Pool, budget: int | None, *, seed: int = 0) -> Selection:
        """Rows with the highest (or lowest) mean error norm, highest (lowest) first."""
        def score(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            with torch.inference_mode():
                return error_norm(network(x), y)

        return self.select(pool, budget, seed, score, "el2n")[0]
