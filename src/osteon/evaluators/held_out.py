"""What a run's own task costs on samples it was not trained on: perplexity, bits a byte, Chamfer distance, errors.

Causal language models have a perplexity, exp of the mean cost of a word given those before it. Masked ones have none
(their answers are not factors of one probability of the text); what is shown of them is a pseudo-perplexity: exp of the
mean cost of words that are hidden together, at the share at which the model was trained. That of Salazar et al. 2020,
"Masked Language Model Scoring", section 2.3, hides one word at a time and is lower.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from osteon.core.card import Card
from osteon.core.errors import DataError, UsageError
from osteon.parts.intervals import Interval, ratio_interval

CARD = Card(kind="evaluator", name="held_out", papers=("Masked Language Model Scoring",), modalities=("any",),
            differs="Masked language models are asked for words that are hidden together, at the share of their "
                    "training, instead of one by one: the pseudo-perplexity is higher than the paper's. Windows of "
                    "running text do not overlap, so that the first words of each have little before them.",
            cost="one forward pass a sample, and an untrained network beside it")

#: With fewer samples nothing is claimed.
FEWEST = 20
#: A loss that is smaller by less than this share is of no practical use.
MARGIN = 0.01


@dataclass(frozen=True)
class Gap:
    """By how much a loss is smaller than another, as a share of the other: 0.1 is a tenth; with its interval."""

    mean: float
    low: float
    high: float
    answer: str


class HeldOut:
    """Mean costs of arms that were asked the same questions.

    Args:
        order: words of the longest n-gram among the controls of causal language models.
        train_samples: training samples in which controls look for similar ones.
    """

    needs = "objective"

    def __init__(self, *, order: int = 3, train_samples: int = 500) -> None:
        if order < 2 or train_samples < 1:
            raise UsageError(f"order={order} and train_samples={train_samples} leave no controls.", where="held_out",
                             fix="Give order 2 or more and train_samples 1 or more.")
        self.order, self.train_samples = order, train_samples

    def __call__(self, costs: Mapping[str, np.ndarray], asked: np.ndarray, *, seed: int = 0) -> dict[str, Interval]:
        """Mean cost of a question of every arm, with its interval over samples.

        Args:
            costs: (M,) of each arm, summed over the questions of a sample.
            asked: (M,) questions of each sample.
            seed: which resamples.
        """
        if not costs:
            raise DataError("There are no costs.", where="held_out")
        return {name: ratio_interval(cost, asked, seed=seed) for name, cost in costs.items()}

    def gap(self, ours: np.ndarray, control: np.ndarray, asked: np.ndarray, *, seed: int = 0) -> Gap:
        """By how much (M,) costs of one arm are smaller than those of another; paired, over samples.

        ``pays`` where the interval lies above 0, ``does not pay`` where it lies below one percent, else ``cannot
        tell``; of fewer than 20 samples nothing is told.
        """
        scale = float(np.sum(control) / np.sum(asked))
        found = ratio_interval(np.asarray(control) - np.asarray(ours), asked, resamples=4000, seed=seed)
        mean, low, high = (v / scale if scale > 0 else 0.0 for v in (found.mean, found.low, found.high))
        answer = ("cannot tell" if len(asked) < FEWEST else "pays" if low > 0 else
                  "does not pay" if high < MARGIN else "cannot tell")
        return Gap(mean, low, high, answer)
