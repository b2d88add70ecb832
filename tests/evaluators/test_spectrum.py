"""Shares of variance that a person can recompute, and a card for every analysis."""

from __future__ import annotations

import numpy as np
import pytest

from osteon.core import registry
from osteon.evaluators.spectrum import directions_for, variance_shares
from osteon.modalities import NAMES
from osteon.verbs._analyses import ANALYSES


def test_shares_follow_the_variances_and_not_the_means():
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    x = np.array([[3, 0, 0], [-3, 0, 0], [0, 1, 0], [0, -1, 0]]) @ turn + 5  # sums of squares 18, 2, 0
    assert variance_shares(x) == pytest.approx([0.9, 0.1, 0.0])
    assert directions_for(variance_shares(x), (0.5, 0.9, 0.91, 1.0)) == [1, 1, 2, 2]


def test_features_that_never_change_have_no_shares():
    assert variance_shares(np.ones((5, 2))).tolist() == [0, 0]


def test_every_analysis_has_a_card_that_says_its_papers_and_how_to_ask_for_it():
    cards = registry.cards(kind="analysis")
    asked = {card.switch.split("--only ")[1].split()[0]: card for card in cards}
    assert set(asked) == set(ANALYSES) and len(cards) == len(ANALYSES)
    assert all(card.papers and registry.options(card) == [] for card in cards)
    for name, card in asked.items():
        assert set(card.modalities) == ({"graph"} if name == "feasibility" else set(NAMES)), name
    assert [card.name for card in registry.cards(kind="analysis", paper=310)] == ["linearity"]
