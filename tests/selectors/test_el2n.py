from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.selectors.early import pool

from osteon.core.errors import UsageError
from osteon.selectors.el2n import EL2N, error_norm

LABELS = [0, 0, 1, 1, 1]
SURE = torch.tensor([[9.0, -9], [0, 0], [-9, 9], [2, 0], [9, -9]])  # right, open, right, a bit wrong, wrong


def test_error_norm_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.5, 1e-9], [0.2, 0.3, 0.5]]))
    found = error_norm(logits, torch.tensor([0, 2]))
    assert torch.allclose(found, torch.tensor([0.5**0.5, (0.04 + 0.09 + 0.25) ** 0.5]), atol=1e-4)
    assert torch.allclose(error_norm(SURE, torch.tensor(LABELS))[[0, 4]], torch.tensor([0, 2**0.5]), atol=1e-4)


def test_the_most_wrong_come_first_and_the_score_is_the_mean_over_runs() -> None:
    asked: list[tuple[int, float]] = []
    tables = [SURE, torch.zeros(5, 2)]
    chosen = EL2N(runs=2, epochs=3)(pool(tables, LABELS, asked), 3, seed=4)
    assert asked == [(8, 3), (9, 3)]
    assert chosen.rows.tolist() == [4, 3, 1]
    wrong = (1 / (1 + np.exp(-2.0))) * 2**0.5
    assert np.allclose(chosen.scores, [(2**0.5 + 0.5**0.5) / 2, (wrong + 0.5**0.5) / 2, 0.5**0.5], atol=1e-4)
    assert EL2N(runs=2, keep="easiest")(pool(tables, LABELS, []), 2).rows.tolist() == [0, 2]
    assert EL2N(runs=2, offset=0.2)(pool(tables, LABELS, []), 2).rows.tolist() == [3, 1]


def test_notes_tell_cost_balance_and_the_danger_of_wrong_labels() -> None:
    notes = EL2N(runs=1)(pool([SURE], LABELS, []), 3).notes
    assert "1 trainings of 20 epochs" in notes[0] and "between 50% and 67%" in notes[1] and "mislabelled" in notes[2]
    assert len(EL2N(runs=1, offset=0.1)(pool([SURE], LABELS, []), 3).notes) == 2


@pytest.mark.parametrize("bad", [{"runs": 0}, {"epochs": -1.0}, {"keep": "best"}, {"offset": 1.0}])
def test_wrong_options(bad: dict) -> None:
    with pytest.raises(UsageError):
        EL2N(**bad)
