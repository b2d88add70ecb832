"""Pseudo-label pre-training: a fine-tuned network labels a pool, and learning its answers comes before the real labels.

"Predictions For Pre-training Language Models" (2020), arXiv:2011.09031, in its later versions: hard labels, the task's
loss alone, then the clean labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from osteon.core.card import Card
from osteon.core.errors import DataError, UsageError

CARD = Card(
    kind="training",
    name="pseudo_labels",
    papers=("Predictions For Pre-training Language Models",),
    modalities=("any",),
    differs="Any modality and any backbone, not language models alone. No code, pool size or learning rate was "
    "published: every stage has the adapter's own settings. The masked-language loss that the paper's first two "
    "versions added to the middle stage is left out, as in its last. `min_conf` is ours (0 keeps every sample). The "
    "middle stage starts from the pre-trained weights with a new head, the last keeps the head of the middle stage. "
    "Beside it stand a plain fine-tune of as many steps and continued pre-training of as many operations, which the "
    "abstract does not show.",
    rows=(108,),
    labels=True,
    cost="two fits on labels and one on the pool, and the controls that take as much each",
    switch="osteon selftrain",
)


@dataclass(frozen=True)
class Labelled:
    """What a teacher says of a pool.

    Args:
        labels: (N,) int64, or (N, K) uint8 where samples may have several.
        confidence: (N,) in [0, 1].
        kept: (N,) bool, which samples are sure enough.
    """

    labels: np.ndarray
    confidence: np.ndarray
    kept: np.ndarray


class PseudoLabels:
    """Hard labels from class scores, with a threshold.

    Args:
        min_conf: least confidence of a sample that is kept: its largest probability; where samples have several labels,
            the least sure of its yes and no.
    """

    def __init__(self, *, min_conf: float = 0.0) -> None:
        if not 0 <= min_conf < 1:
            raise UsageError(f"min_conf={min_conf} is no confidence.", where="--min-conf",
                             fix="Give a number in [0, 1).")
        self.min_conf = min_conf

    def __call__(self, scores: np.ndarray, *, multi_label: bool = False) -> Labelled:
        """Labels of samples.

        Args:
            scores: (N, K) probabilities: rows sum to 1, or one probability a class with ``multi_label``.
            multi_label: whether samples may have several labels, or none.

        Raises:
            DataError: no sample, or none of them sure enough.
        """
        if multi_label:
            labels = (scores > 0.5).astype(np.uint8)
            confidence = np.maximum(scores, 1 - scores).min(1, initial=1.0)
        else:
            labels, confidence = scores.argmax(1).astype(np.int64), scores.max(1, initial=0.0)
        kept = confidence >= self.min_conf
        if not kept.any():
            best = f"; the surest has {confidence.max():.3f}" if len(confidence) else ""
            raise DataError(f"No sample of the pool reaches a confidence of {self.min_conf:g}{best}.", where="--pool",
                            fix="Lower --min-conf.")
        return Labelled(labels, confidence, kept)
