"""Near-duplicate thinning: of samples that almost repeat each other, keep one.

Wolf et al. 2024, "Less is More: Selective Reduction of CT Data for Self-Supervised Pre-Training", arXiv:2410.14524; the
variant called Hash-6 there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Literal

import numpy as np

from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.data.leaks import area_matrix
from osteon.parts.coreset import thin, unit_rows
from osteon.parts.selection import Pool, Selection

CARD = Card(kind="selector", name="near_duplicates",
            papers=("Less is More: Selective Reduction of CT Data for Self-Supervised Pre-Training of Deep Learning "
                    "Models with Contrastive Learning Improves Downstream Classification Performance",),
            modalities=("image", "sound", "series", "text", "table", "graph", "points", "volume", "video", "several"),
            differs="a budget in numbers finds the threshold instead of the reverse (budget auto is the paper's rule); "
                    "a source without groups is one group; images shrink by averaging areas; mutual information and "
                    "structural similarity are not offered; samples that are no pictures have no difference hash, so "
                    "their features are compared, or their values exactly; numbers in names order by value only if "
                    "the source does",
            rows=(430,), cost="a hash an image, or its features; N x kept comparisons")

#: Similarity -> threshold where none is given, steps between nothing and all being alike, their size, in words.
_WAYS: dict[str, tuple[float, int, float, str]] = {
    "hash": (6.0, 64, 1.0, "of 64 bits"), "embedding": (0.05, 2000, 1e-3, "in 1 - cosine"),
    "exact": (0.0, 1, 1.0, "(0: equal in every value)")}
#: Side of the grid of comparisons: 8 rows of 8 neighbours make 64 bits.
SIDE = 8


def difference_hash(images: np.ndarray) -> np.ndarray:
    """Which pixels of a 9 x 8 grey thumbnail are darker than their right neighbour: (N, C, S, S) -> (N, 64) bool."""
    channels, size = images.shape[1], images.shape[-1]
    weights = np.array([0.299, 0.587, 0.114] if channels == 3 else [1 / channels] * channels)
    grey = np.tensordot(weights, images.astype(np.float64), axes=(0, 1))
    thumbnail = area_matrix(size, SIDE).astype(np.float64) @ grey @ area_matrix(size, SIDE + 1).T.astype(np.float64)
    scale = float(np.abs(images).max()) or 1.0
    # Equal neighbours must not be told apart by the rounding of the averages.
    return (np.diff(thumbnail, axis=2) > 1e-6 * scale).reshape(len(images), -1)


def same_samples(samples: np.ndarray) -> np.ndarray:
    """A number for every sample (N, ...), equal where all stored values are. -> (N,) int64."""
    known: dict[bytes, int] = {}
    return np.array([known.setdefault(hashlib.blake2b(np.ascontiguousarray(s).tobytes(), digest_size=16).digest(), i)
                     for i, s in enumerate(samples)], np.int64)


class NearDuplicates:
    """Go through the samples of each group in order and drop those too close to one already kept.

    With ``--budget auto`` the threshold decides how many stay. With a number, the threshold is the smallest at which at
    most that many stay, and the places left are filled with what the next smaller one would have kept.

    Args:
        similarity: ``"hash"`` counts differing bits (of 64) of a difference hash; ``"embedding"`` takes 1 - cosine of
            features; ``"exact"`` is 0 where all stored values are equal, else 1; ``"auto"``: ``hash`` of images,
            ``embedding`` of other samples.
        threshold: distance up to which a sample repeats another; None = 6 bits, 0.05 for embeddings, or 0 for exact.
            Only with ``--budget auto``.
        across_groups: also compare samples of different groups.
    """

    def __init__(self, *, similarity: Literal["auto", "hash", "embedding", "exact"] = "auto",
                 threshold: float | None = None, across_groups: bool = False) -> None:
        if similarity not in ("auto", *_WAYS):
            raise UsageError(f"There is no similarity {similarity!r}.", where="similarity",
                             fix="Use auto, hash, embedding or exact.")
        if threshold is not None and threshold < 0:
            raise UsageError(f"A threshold is a distance, not {threshold}.", where="threshold")
        self.asked, self.threshold, self.across_groups = similarity, threshold, across_groups
        self.settle("image")

    def settle(self, modality: str) -> None:
        """Take the similarity that suits a modality, where none was asked for.

        Raises:
            UsageError: a difference hash of what is no picture.
        """
        if self.asked == "hash" and modality != "image":
            raise UsageError(f"A difference hash is of pictures; these samples are {modality}.",
                             where="--set similarity=hash", fix="Use similarity=embedding or exact.")
        self.similarity = self.asked if self.asked != "auto" else "hash" if modality == "image" else "embedding"
        self.needs: tuple[str, ...] = ("features",) if self.similarity == "embedding" else ("images",)
        self.usual, self.steps, self.unit, self.words = _WAYS[self.similarity]

    def __call__(self, pool: Pool, budget: int | None, *, seed: int = 0) -> Selection:
        """Rows kept, in the order of the source; nothing is drawn, so the seed changes nothing."""
        groups = None if self.across_groups else pool.groups
        distance = self._distance(pool)
        notes = []
        if not self.across_groups and pool.groups is None:
            notes.append("groups: the source has none, so all samples are compared with each other")
        if budget is None:
            limit = self.threshold if self.threshold is not None else self.usual
            rows = thin(distance, pool.count, limit, groups)
        elif self.threshold is not None:
            raise UsageError("A budget in numbers finds the threshold itself.", where="--set threshold",
                             fix="Give the threshold with --budget auto, or leave it out.")
        else:
            rows, limit = self._to_budget(distance, pool.count, budget, groups)
        notes.append(f"near duplicates: {len(rows):,} of {pool.count:,} samples stay; those within {limit:.4g} "
                     f"{self.words} of a kept one were dropped")
        return Selection(rows, None, notes)

    def _distance(self, pool: Pool) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        if self.similarity == "hash":
            assert pool.images is not None
            bits = np.concatenate([difference_hash(np.asarray(pool.images[i:i + 1024]))
                                   for i in range(0, pool.count, 1024)])
            signs = np.where(bits, 1, -1).astype(np.float32)
            width = signs.shape[1]
            return lambda a, b: (width - signs[a] @ signs[b].T) / 2  # whole numbers below 2^24: exact
        if self.similarity == "exact":
            assert pool.images is not None
            number = same_samples(pool.images)
            return lambda a, b: (number[a][:, None] != number[b]).astype(np.float32)
        assert pool.features is not None
        unit = unit_rows(pool.features)
        return lambda a, b: 1.0 - unit[a] @ unit[b].T

    def _to_budget(self, distance: Callable[[np.ndarray, np.ndarray], np.ndarray], count: int, budget: int,
                   groups: object) -> tuple[np.ndarray, float]:
        """Exactly ``budget`` rows and the threshold: a search between keeping everything and keeping one a group."""
        steps, unit = self.steps, self.unit
        kept: dict[int, np.ndarray] = {-1: np.arange(count)}

        def keep(step: int) -> np.ndarray:
            if step not in kept:
                kept[step] = thin(distance, count, step * unit, groups)  # type: ignore[arg-type]
            return kept[step]

        low, high = -1, steps
        if len(keep(high)) > budget:  # more groups than the budget: one a group, in order
            return keep(high)[:budget], high * unit
        if budget == count:
            return kept[-1], -unit
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if len(keep(middle)) <= budget else (middle, high)
        spare = np.setdiff1d(keep(low), keep(high))[:budget - len(keep(high))]
        return np.sort(np.concatenate([keep(high), spare])), high * unit
