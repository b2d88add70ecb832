"""Words to be predicted: how many, which, and what stands in their places."""

from __future__ import annotations

import torch

from osteon.parts.cloze import cover, draw_places
from osteon.parts.types import Draws, Step

V, N = 13, 20


def texts(*lengths: int) -> torch.Tensor:
    words = torch.randint(3, V, (len(lengths), N), generator=torch.Generator().manual_seed(1))
    return words.masked_fill(torch.arange(N) >= torch.tensor(lengths)[:, None], 0)


def draws_of(n: int, index: int = 0) -> Draws:
    return Draws(Step(index, 10, 3), torch.arange(n), n)


def test_a_rounded_share_of_what_is_written_is_drawn():
    tokens = texts(20, 13, 7, 2, 0)
    places, counted = draw_places(tokens, 0.15, draws_of(5))
    assert places.shape == (5, 3) and counted.sum(1).tolist() == [3, 2, 1, 1, 0]  # 3, 1.95, 1.05, 0.3 but one, none
    assert (tokens.gather(1, places)[counted] > 0).all()
    assert all(len(set(row.tolist())) == 3 for row in places)
    many = draw_places(texts(*[20] * 500), 0.15, draws_of(500))[0]
    share = torch.bincount(many.flatten(), minlength=N) / 500
    assert (share > 0.09).all() and (share < 0.21).all()


def test_covered_words_are_masked_random_or_as_they_were_in_the_shares_asked_for():
    tokens = torch.full((4000, N), 5)
    places, counted = draw_places(tokens, 0.5, draws_of(4000))
    seen = cover(tokens, places, counted, V, draws_of(4000), masked=0.8, random=0.1)
    at = torch.zeros_like(tokens, dtype=torch.bool).scatter(1, places, counted)
    assert (seen[~at] == 5).all()
    share = torch.bincount(seen[at], minlength=V) / at.sum()
    assert abs(share[1] - 0.8) < 0.01 and abs(share[5] - 0.11) < 0.01  # a tenth stays, a hundredth is drawn as itself
    assert share[[0, 2]].sum() == 0 and ((share[[3, 4, 6, 12]] - 0.01).abs() < 0.002).all()


def test_without_shares_every_counted_word_is_a_mask_and_others_stay():
    tokens = texts(20, 7, 1, 0)
    places, counted = draw_places(tokens, 0.15, draws_of(4))
    seen = cover(tokens, places, counted, V, draws_of(4))
    assert (seen == 1).sum(1).tolist() == counted.sum(1).tolist() == [3, 1, 1, 0]
    assert torch.equal(seen[seen != 1], tokens[seen != 1])
