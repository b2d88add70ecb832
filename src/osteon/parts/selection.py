"""What passes through the door of data selection: a pool to choose from, and what was chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, nn

from osteon.core.errors import UsageError

#: Chosen by the method itself (:attr:`Selection.rows` has the number it stopped at).
AUTO = "auto"


@dataclass(frozen=True)
class Learner:
    """A classifier early in its training on the pool.

    Args:
        network: normalised samples (B, C, *extent) -> logits (B, K), in eval mode.
        batches: gives every sample of the pool in order: (normalised samples (B, C, *extent), labels (B,)), without
            augmentation.
    """

    network: nn.Module
    batches: Callable[[], Iterator[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Pool:
    """The samples a selector chooses from; it finds filled in what its ``needs`` names.

    Args:
        count: number of samples N.
        features: (N, D) float32.
        target: (M, D) features, by the same network, of the samples that the chosen ones are to resemble.
        images: samples (N, C, *extent) as stored.
        labels: (N,) class numbers.
        groups: one name a sample: the volume, patient or film it belongs to; or None.
        learn: ``(seed, epochs) -> Learner``: a fresh classifier trained on the pool's labels.
    """

    count: int
    features: np.ndarray | None = None
    target: np.ndarray | None = None
    images: np.ndarray | None = None
    labels: np.ndarray | None = None
    groups: Sequence[str] | None = None
    learn: Callable[[int, float], Learner] | None = None


@dataclass(frozen=True)
class Selection:
    """What was chosen.

    Args:
        rows: (n,) int64 sample numbers without repeats, best first.
        scores: (n,) the method's score of each chosen sample, or None where it has none.
        notes: what to tell the user.
    """

    rows: np.ndarray
    scores: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)


def parse_budget(budget: int | str, count: int) -> int | None:
    """How many samples to choose: ``500``, ``"30%"``, or None for ``"auto"``, where the method finds the number.

    Args:
        budget: as the user wrote it; a share is rounded to the nearest sample, at least one.
        count: samples in the pool.

    Raises:
        UsageError: no such number, or more than there are.
    """
    text = str(budget).strip().lower()
    if text == AUTO:
        return None
    try:
        if text.endswith("%"):
            share = float(text[:-1])
            if not 0 < share <= 100:
                raise ValueError
            return max(1, round(share / 100 * count))
        wanted = int(text.replace("_", ""))
        if wanted < 1:
            raise ValueError
    except ValueError:
        raise UsageError(f"'{budget}' is no budget.", where="--budget",
                         fix="Write a number of samples such as 500, a share such as 30%, or auto.") from None
    if wanted > count:
        raise UsageError(f"A budget of {wanted:,} is more than the {count:,} samples of the source.", where="--budget",
                         fix=f"Choose at most {count}.")
    return wanted


def need_number(budget: int | None, name: str) -> int:
    """The budget, where a method cannot choose the number itself."""
    if budget is None:
        raise UsageError(f"{name} has no number of its own.", where="--budget auto",
                         fix="Give a number of samples or a share, e.g. --budget 30%.")
    return budget


def by_score(scores: np.ndarray, budget: int, *, keep: str = "hardest", offset: float = 0.0) -> np.ndarray:
    """Rows of the ``budget`` highest (``"hardest"``) or lowest (``"easiest"``) of (N,) scores, equal ones by row.

    ``offset`` leaves out that share of all N samples at the end one begins from: labels that are wrong score highest.

    Raises:
        UsageError: the offset leaves fewer than the budget.
    """
    skip = round(offset * len(scores))
    if skip + budget > len(scores):
        raise UsageError(f"Leaving out {skip:,} of {len(scores):,} samples leaves fewer than the budget of {budget:,}.",
                         where="--set offset", fix=f"Use an offset of at most {1 - budget / len(scores):.3g}.")
    order = np.argsort(-scores if keep == "hardest" else scores, kind="stable")
    return order[skip:skip + budget].astype(np.int64)
