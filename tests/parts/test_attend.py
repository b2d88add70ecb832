"""Masks of attention, by hand."""

from __future__ import annotations

import torch

from osteon.parts.attend import prefix_attention


def test_attention_of_a_prefix_of_two_by_hand():
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    free = torch.tensor([[True, True, False, False]])
    assert prefix_attention(free)[0].int().tolist() == expected


def test_a_prefix_of_one_is_causal_and_a_prefix_of_all_is_free():
    free = torch.tensor([[True, False, False], [True, True, True]])
    causal, everything = prefix_attention(free)
    assert torch.equal(causal, torch.ones(3, 3, dtype=torch.bool).tril()) and everything.all()


def test_no_prefix_is_causal():
    assert torch.equal(prefix_attention(torch.zeros(2, 4, dtype=torch.bool)),
                       torch.ones(4, 4, dtype=torch.bool).tril().expand(2, -1, -1))
