"""Pieces of names and cells by hand, and rows of which cells are taken away."""

from __future__ import annotations

import pytest
import torch

from osteon.core.errors import UsageError
from osteon.parts.cells import (
    CATEGORY,
    CHANNELS,
    CODES,
    FIRST_NAME,
    FIRST_TEXT,
    FIRST_WORD,
    NAME,
    NOTHING,
    PIECES,
    code_of,
    column_groups,
    covered,
    exists,
    need_cells,
    only,
    partitions,
    piece,
    pieces,
    present,
    texts_of,
    without,
    words_of,
)
from osteon.parts.words import MASK


@pytest.mark.parametrize(("text", "words"), [
    ("petal length (cm)", ["petal", "length", "cm"]), ("meanRadius_2", ["mean", "radius", "2"]), ("", []),
    ("-1.50", ["-", "1", ".", "5", "0"]), (">50K", [">", "5", "0", "k"]), ("self-emp", ["self", "emp"]),
    ("2021-03", ["2", "0", "2", "1", "-", "0", "3"]), ("()", ["()"]), ("Größe", ["größe"])])
def test_words_by_hand(text, words):
    assert words_of(text) == words


def test_pieces_are_stable_numbers_that_fill_up_with_nothing():
    assert pieces("10", 4) == [6, 5, 0, 0]  # digits have numbers of their own, from 5 on
    assert piece("age") == piece("age") >= FIRST_WORD and piece("age") != piece("wage")
    assert all(FIRST_WORD <= piece(f"word{i}") < PIECES and 0 <= code_of(f"l{i}") < CODES for i in range(300))
    assert len({piece(f"w{i}") for i in range(300)}) > 290


def test_what_is_too_long_counts_as_one_piece_and_is_not_forgotten():
    long = "a b c d e f g h i j"
    assert pieces(long, NAME)[:7] == pieces("a b c d e f g", 7) and len(pieces(long, NAME)) == NAME
    assert pieces(long, NAME)[7] not in (pieces("h", 1)[0], pieces(long + " k", NAME)[7], pieces("h", 1)[0])
    assert pieces("a b c d e f g h", NAME)[7] == piece("h")


def rows() -> torch.Tensor:
    x = torch.zeros(2, CHANNELS, 3)
    x[:, 0], x[:, 2], x[:, 3] = 7.0, CATEGORY, 5.0
    x[:, FIRST_NAME], x[:, FIRST_TEXT], x[:, FIRST_TEXT + 1] = 40, 50, 60
    x[1, 1, 2] = 1
    x[1, 2, 1] = NOTHING
    return x


def test_cells_are_taken_away_by_hand():
    x, gone = rows(), torch.tensor([[True, False, False], [False, False, False]])
    assert present(x).tolist() == [[True, True, True], [True, False, False]]
    assert exists(x).tolist() == [[True, True, True], [True, False, True]]
    left = without(x, gone)
    assert present(left).tolist() == [[False, True, True], [True, False, False]]
    assert left[0, :, 0].nonzero()[:, 0].tolist() == [1, 2, FIRST_NAME]  # the mark, the kind, the name
    assert torch.equal(left[1], x[1]) and torch.equal(left[0, :, 1:], x[0, :, 1:])


def test_a_covered_cell_is_one_mask_whatever_was_in_it():
    x, hidden = rows(), torch.tensor([[True, False, False]] * 2)
    other = x.clone()
    other[:, 0, 0], other[:, 3, 0], other[:, FIRST_TEXT:, 0] = -3.0, 99.0, 70.0
    seen = covered(x, hidden)
    assert torch.equal(seen, covered(other, hidden))
    assert texts_of(seen)[0, :, 0].tolist() == [MASK, *[0] * 11] and present(seen)[:, 0].all()
    assert torch.equal(seen[:, :, 1:], x[:, :, 1:]) and seen[1, 1, 2] == 1


def test_only_some_columns_are_left():
    left = only(rows(), torch.tensor([[False, True, False]] * 2))
    assert exists(left).tolist() == [[False, True, False], [False, False, False]]
    assert torch.equal(left[:, :, 1], rows()[:, :, 1]) and left[:, FIRST_NAME:, 0].abs().sum() == 0


def test_groups_by_hand():
    shown = [g.tolist() for g in partitions(torch.tensor([4, 0, 3, 1, 2, 6, 5]), 3, 0.5)]
    # 7 columns in groups of 3, 2, 2; half of 3 is 2 shared, of the next group, the last with the one before
    assert shown == [[4, 0, 3, 1, 2], [1, 2, 6, 5], [6, 5, 1, 2]]
    assert [g.tolist() for g in partitions(torch.arange(4), 2, 0.0)] == [[0, 1], [2, 3]]
    assert [g.tolist() for g in partitions(torch.arange(4), 2, 0.3)] == [[0, 1, 2], [2, 3, 1]]


def test_groups_are_cut_from_the_columns_a_row_has():
    there = torch.tensor([[True] * 6, [True, False, True, False, True, False], [True] * 6])
    places = torch.tensor([0.5, 0.1, 0.9, 0.3, 0.7, 0.2])
    groups = column_groups(there, places, 3, 0.0)
    whole = [sorted(g.tolist()) for g in partitions(places.argsort(), 3, 0.0)]
    assert [g[0].nonzero()[:, 0].tolist() for g in groups] == whole == [[1, 5], [0, 3], [2, 4]]
    assert torch.equal(groups[:, 0], groups[:, 2])
    assert [g[1].nonzero()[:, 0].tolist() for g in groups] == [[0], [4], [2]]
    shared = column_groups(there, places, 3, 0.5)
    assert [g[1].sum().item() for g in shared] == [2, 2, 2]


def test_only_whole_cells_can_be_hidden_one_by_one():
    need_cells({})
    need_cells({"stem": "names", "stem_options": {"tokens": "cells"}})
    with pytest.raises(UsageError, match="names=cells"):
        need_cells({"stem": "names", "stem_options": {"tokens": "pieces"}})
