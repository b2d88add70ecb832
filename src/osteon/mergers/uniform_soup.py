"""Uniform soup: the plain average of the weights of several fine-tuned models.

Wortsman et al. 2022, "Model soups", arXiv:2203.05482, section 2.
"""

from __future__ import annotations

from torch import Tensor

from osteon.core.card import Card
from osteon.parts.merging import Merger, Models
from osteon.parts.state_algebra import mean

CARD = Card(kind="merger", name="uniform_soup",
            papers=("Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing "
                    "inference time",), modalities=("any",),
            differs="batch-norm statistics are averaged, or measured anew on --data",
            rows=(119,), cost="one pass over the files")


class UniformSoup(Merger):
    """Average all models with equal weight; they must have been trained from one start."""

    def combine(self, name: str, models: Models) -> Tensor:
        """Mean over the models."""
        return mean([m[name] for m in models.members])
