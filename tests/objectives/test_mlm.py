"""Masked language model: BERT's shares, and that both sides are seen; see test__words for the rest."""

from __future__ import annotations

import torch
from tests.objectives.texts import SPEC, draws_of, network, shaken, texts

from osteon.objectives.mlm import MLM
from osteon.parts.types import Step


def make(**options) -> MLM:
    return shaken(MLM(network(), SPEC, **options))


def test_of_the_hidden_words_four_fifths_are_masks_a_tenth_random_a_tenth_as_it_was():
    tokens = texts(*[20] * 3000)["text"][:, 0].long()
    places, counted, seen = make().hide(tokens, draws_of(3000))
    at = torch.zeros_like(tokens, dtype=torch.bool).scatter(1, places, counted)
    assert at.sum() == 9000 and torch.equal(seen[~at], tokens[~at])  # 15 % of 20
    assert abs((seen[at] == 1).float().mean() - 0.8) < 0.02
    other = (seen[at] != 1) & (seen[at] != tokens[at])
    assert abs(other.float().mean() - 0.09) < 0.01  # a random word is itself one time in ten


def test_every_option_reaches_what_is_hidden():
    tokens = texts(*[20] * 500)["text"][:, 0].long()
    places, counted, seen = make(ratio=0.5, masked=0.0, random=0.0).hide(tokens, draws_of(500))
    assert counted.sum() == 5000 and torch.equal(seen, tokens)
    assert (make(masked=0.0, random=1.0).hide(tokens, draws_of(500))[2] != 1).all()


def test_a_word_is_predicted_from_both_sides_at_every_step():
    objective = make(ratio=0.05, masked=1.0, random=0.0)
    assert not any(objective.causal(Step(i, 10)) for i in range(10))
    tokens = texts(20)["text"][:, 0].long()
    place = int(objective.hide(tokens, draws_of(1))[0])
    before = objective.predict(tokens, draws_of(1))[0]
    for other in (0, 19):
        changed = tokens.clone()
        changed[0, other] = 3 + (tokens[0, other] - 2) % 10
        assert other != place and not torch.allclose(objective.predict(changed, draws_of(1))[0], before, atol=1e-5)


def test_of_short_texts_views_keep_what_was_asked_for():
    views = MLM(network(), SPEC, crop_min=0.5).tokens(texts(*[20] * 300), draws_of(300))
    length = (views != 0).sum(1)
    assert length.min() == 11 and length.max() == 20
