"""Models that count: probabilities by hand, that sum to 1, that see what is before and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from osteon.core.errors import DataError, UsageError
from osteon.parts.ngrams import KneserNey, errors_before, errors_between, windows
from osteon.parts.words import PAD

VOCABULARY = 7  # <pad>, <mask>, <unk> and four words, of which five can occur in a text
TEXTS = np.array([[3, 4, 5, 3, 4, 0], [4, 4, 3, 6, 0, 0]])


def chances(model: KneserNey, *before: int) -> np.ndarray:
    every = np.arange(2, VOCABULARY)
    return np.exp(model.log_probability(np.tile(np.array(before, int), (len(every), 1)), every))


def test_padding_makes_no_pairs():
    assert windows(TEXTS, 2).tolist() == [[3, 4], [4, 5], [5, 3], [3, 4], [4, 4], [4, 3], [3, 6]]
    assert windows(TEXTS, 7).shape == (0, 7)


def test_frequencies_by_hand():
    # 9 words: 3 three times, 4 four times, 5 and 6 once. Nothing occurs twice: the discount is 1/2, four types give
    # 4 * 1/2 to the five words alike.
    spread = 4 * 0.5 / 9 / 5
    expected = [spread, 2.5 / 9 + spread, 3.5 / 9 + spread, 0.5 / 9 + spread, 0.5 / 9 + spread]
    assert chances(KneserNey(1, VOCABULARY).fit(TEXTS)) == pytest.approx(expected)


def test_pairs_by_hand():
    model = KneserNey(2, VOCABULARY).fit(TEXTS)
    pairs, singles = model.levels
    assert pairs.discount == pytest.approx(5 / (5 + 2))  # five pairs once, one twice
    # Different words before 3: 5, 4; before 4: 3, 4; before 5: 4; before 6: 3. Two of them twice, two once.
    assert singles.counts.tolist() == [2, 2, 1, 1] and singles.discount == pytest.approx(2 / (2 + 4))
    lower = (1 - 1 / 3) / 6 + (1 / 3) * 4 / 6 / 5  # of 5
    assert chances(model, 4)[3] == pytest.approx((1 - 5 / 7) / 3 + (5 / 7) * 3 / 3 * lower)
    assert chances(model, 6)[3] == pytest.approx(lower)  # nothing was seen after 6


@pytest.mark.parametrize("order", [1, 2, 3])
def test_probabilities_sum_to_one_after_anything(order):
    model = KneserNey(order, VOCABULARY).fit(TEXTS)
    for before in ((3, 4), (4, 4), (6, 6), (2, 5)):
        assert chances(model, *before[:order - 1]).sum() == pytest.approx(1)


def test_words_cost_what_they_do_after_those_before_them():
    models = [KneserNey(n, VOCABULARY).fit(TEXTS) for n in (1, 2, 3)]
    asked = np.array([[3, 4, 5, 6, 0]])
    cost = errors_before(models, asked)[0]
    one, two, three = models
    by_hand = [chances(one)[1], chances(two, 3)[2], chances(three, 3, 4)[3], chances(three, 4, 5)[4]]
    assert cost == pytest.approx([*-np.log(by_hand), 0])
    later = asked.copy()
    later[0, 3] = 3
    assert errors_before(models, later)[0, :3] == pytest.approx(cost[:3])


def test_hidden_words_by_bayes_rule_from_what_is_seen():
    one, two = (KneserNey(n, VOCABULARY).fit(TEXTS) for n in (1, 2))
    text = np.array([[3, 4, 5, 4, 0]])

    def cost(*hidden: int, block: int = 2**21) -> np.ndarray:
        mask = np.zeros(text.shape, bool)
        mask[0, list(hidden)] = True
        return errors_between([one, two], text, mask, block)[0]

    joint = chances(two, 3) * np.array([chances(two, w)[3] for w in range(2, 7)])
    assert cost(1)[1] == pytest.approx(-np.log(joint[2] / joint.sum()))
    assert cost(1)[[0, 2, 3, 4]].tolist() == [0, 0, 0, 0]
    assert cost(3)[3] == pytest.approx(-np.log(chances(two, 5)[2]))  # <pad> stands after it
    assert cost(1, 2)[1] == pytest.approx(-np.log(chances(two, 3)[2]))  # what is hidden too is not seen
    first = chances(one) * np.array([chances(two, w)[2] for w in range(2, 7)])
    assert cost(0)[0] == pytest.approx(-np.log(first[1] / first.sum()))
    assert cost(0, 1, 3, block=6) == pytest.approx(cost(0, 1, 3))


def test_what_cannot_be_counted_is_refused():
    for order, vocabulary in ((0, 10), (2, 3), (4, 2**16)):
        with pytest.raises(UsageError):
            KneserNey(order, vocabulary)
    with pytest.raises(DataError, match="2 words"):
        KneserNey(2, 10).fit(np.array([[3, PAD]]))
