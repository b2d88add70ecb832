"""Language models that only count: the next word from the one or two before it, or a word from its two neighbours.

Interpolated Kneser-Ney smoothing (Kneser & Ney 1995, "Improved Backing-off for M-gram Language Modeling"; interpolated
and with one discount an order as in Chen & Goodman 1999, "An Empirical Study of Smoothing Techniques for Language
Modeling", section 4.1.6; the discount n1 / (n1 + 2 n2) of Ney, Essen & Kneser 1994).

Letters: M texts of T words each, V members of the vocabulary, Q questions.
"""

from __future__ import annotations

import numpy as np

from osteon.core.errors import DataError, UsageError
from osteon.parts.words import PAD, SPECIAL

#: Members of a vocabulary that no text holds: what fills up and what hides.
NEVER = 2
#: Discount where too few words were seen once or twice to estimate it.
USUAL_DISCOUNT = 0.5


class KneserNey:
    """A model of the words that follow ``order - 1`` others; order 1 is the frequency of words.

    Args:
        order: words of an n-gram, 1 or more.
        vocabulary: V, special members included.
    """

    def __init__(self, order: int, vocabulary: int) -> None:
        if order < 1 or vocabulary <= len(SPECIAL) or vocabulary**order >= 2**62:
            raise UsageError(f"n-grams of {order} words over {vocabulary:,} cannot be counted.", where="order",
                             fix="Give a smaller order.")
        self.order, self.vocabulary = order, vocabulary
        self.levels: list[_Level] = []

    def fit(self, texts: np.ndarray) -> KneserNey:
        """Count the texts (M, T) int, ends filled up with ``<pad>``.

        Raises:
            DataError: no text has as many words as an n-gram.
        """
        grams = windows(texts, self.order)
        if not len(grams):
            raise DataError(f"No training text has {self.order} words.", where="n-grams")
        base = self.vocabulary
        keys, counts = np.unique(_keys(grams, base), return_counts=True)
        self.levels = [_Level(keys, counts.astype(np.float64), base)]
        for order in range(self.order - 1, 0, -1):  # a shorter one counts how many different words stand before it
            keys, counts = np.unique(keys % base**order, return_counts=True)
            self.levels.append(_Level(keys, counts.astype(np.float64), base))
        return self

    def log_probability(self, before: np.ndarray, words: np.ndarray) -> np.ndarray:
        """Natural logarithm of the probability of words (Q,) after those before them (Q, order - 1), (Q,) float64."""
        grams = np.concatenate([np.asarray(before, np.int64).reshape(len(words), self.order - 1),
                                np.asarray(words, np.int64)[:, None]], 1)
        chance = np.full(len(grams), 1.0 / (self.vocabulary - NEVER))
        for order, level in enumerate(reversed(self.levels), 1):
            chance = level.interpolated(_keys(grams[:, self.order - order:], self.vocabulary), chance)
        return np.log(chance)


class _Level:
    """Counts of the n-grams of one order and of what stands before their last word."""

    def __init__(self, keys: np.ndarray, counts: np.ndarray, base: int) -> None:
        self.keys, self.counts, self.base = keys, counts, base
        once, twice = float((counts == 1).sum()), float((counts == 2).sum())
        self.discount = once / (once + 2 * twice) if once and twice else USUAL_DISCOUNT
        self.histories, first = np.unique(keys // base, return_index=True)
        self.total = np.add.reduceat(counts, first)
        self.types = np.diff(np.append(first, len(keys))).astype(np.float64)

    def interpolated(self, asked: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """Probabilities of n-grams by their keys (Q,), given those of the next shorter ones (Q,)."""
        seen = _look_up(self.keys, self.counts, asked)
        total = _look_up(self.histories, self.total, asked // self.base)
        types = _look_up(self.histories, self.types, asked // self.base)
        safe = np.maximum(total, 1.0)
        own = (np.maximum(seen - self.discount, 0) + self.discount * types * lower) / safe
        return np.where(total > 0, own, lower)


def _look_up(keys: np.ndarray, values: np.ndarray, asked: np.ndarray) -> np.ndarray:
    at = np.searchsorted(keys, asked).clip(max=len(keys) - 1)
    return np.where(keys[at] == asked, values[at], 0.0)


def _keys(grams: np.ndarray, base: int) -> np.ndarray:
    """Rows of words (Q, n) as one number each, the last word the lowest digit."""
    key = np.zeros(len(grams), np.int64)
    for column in range(grams.shape[1]):
        key = key * base + grams[:, column]
    return key


def windows(texts: np.ndarray, order: int) -> np.ndarray:
    """All runs of ``order`` words in texts (M, T), padding left out: (Q, order) int64."""
    texts = np.asarray(texts, np.int64)
    if texts.shape[1] < order:
        return np.empty((0, order), np.int64)
    grams = np.lib.stride_tricks.sliding_window_view(texts, order, axis=1).reshape(-1, order)
    return np.ascontiguousarray(grams[(grams != PAD).all(1)])


def errors_before(models: list[KneserNey], texts: np.ndarray) -> np.ndarray:
    """What the words of texts cost in nats when those before them are known, (M, T) -> (M, T) float64.

    Args:
        models: of the orders 1, 2, ..., n; where fewer than n - 1 words stand before, the model of that many is asked.
        texts: (M, T); the cost of ``<pad>`` is 0.
    """
    texts = np.asarray(texts, np.int64)
    out = np.zeros(texts.shape)
    for column in range(texts.shape[1]):
        model = models[min(column, len(models) - 1)]
        before = texts[:, column - model.order + 1:column] if model.order > 1 else np.empty((len(texts), 0), np.int64)
        real = texts[:, column] != PAD
        out[real, column] = -model.log_probability(before[real], texts[real, column])
    return out


def errors_between(models: list[KneserNey], texts: np.ndarray, hidden: np.ndarray, block: int = 2**21) -> np.ndarray:
    """What hidden words cost in nats when their two neighbours are known, (M, T) -> (M, T) float64.

    By Bayes' rule of a model of pairs: p(w | l, r) is proportional to p(w | l) p(r | w) over all w. A neighbour that is
    hidden too, or beyond the text, is left out.

    Args:
        models: of the orders 1 and 2.
        texts: (M, T).
        hidden: (M, T) bool, the words that are asked for.
        block: probabilities held at once.
    """
    one, two = models[:2]
    texts, hidden = np.asarray(texts, np.int64), np.asarray(hidden, bool)
    side = np.pad(np.where(hidden, PAD, texts), ((0, 0), (1, 1)), constant_values=PAD)
    row, column = np.nonzero(hidden)
    word, left, right = texts[row, column], side[row, column], side[row, column + 2]
    every = np.arange(NEVER, one.vocabulary)
    alone = one.log_probability(np.empty((len(every), 0)), every)
    cost, step = np.zeros(len(word)), max(1, block // len(every))
    for start in range(0, len(word), step):
        part = slice(start, start + step)
        a, b = left[part], right[part]
        scores = np.tile(alone, (len(a), 1))
        known = a != PAD
        scores[known] = _pairs(two, a[known][:, None], every[None])
        known = b != PAD
        scores[known] += _pairs(two, every[None], b[known][:, None])
        scores -= scores.max(1, keepdims=True)
        scores -= np.log(np.exp(scores).sum(1, keepdims=True))
        cost[part] = -scores[np.arange(len(a)), word[part] - NEVER]
    out = np.zeros(texts.shape)
    out[row, column] = cost
    return out


def _pairs(model: KneserNey, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Log probabilities of ``second`` after ``first``, of a grid of both."""
    first, second = np.broadcast_arrays(first, second)
    return model.log_probability(first.reshape(-1, 1), second.reshape(-1)).reshape(first.shape)
