from __future__ import annotations

import numpy as np
import pytest

from osteon.core.errors import UsageError
from osteon.parts.selection import by_score, need_number, parse_budget


@pytest.mark.parametrize(("budget", "count", "wanted"), [
    (5, 10, 5), ("5", 10, 5), ("10", 10, 10), ("1_000", 2000, 1000), ("30%", 10, 3), ("33.4 %", 10, 3), ("100%", 7, 7),
    ("1%", 10, 1), (" AUTO ", 10, None)])
def test_budgets(budget: int | str, count: int, wanted: int | None) -> None:
    assert parse_budget(budget, count) == wanted


@pytest.mark.parametrize("budget", [0, -1, "0%", "101%", "nan%", "2.5", "many", "", "%"])
def test_what_is_no_budget(budget: int | str) -> None:
    with pytest.raises(UsageError, match="no budget"):
        parse_budget(budget, 10)


def test_more_than_there_is() -> None:
    with pytest.raises(UsageError, match="11 is more than the 10 samples") as error:
        parse_budget(11, 10)
    assert "at most 10" in error.value.fix


def test_a_number_may_be_needed() -> None:
    assert need_number(3, "x") == 3
    with pytest.raises(UsageError, match="x has no number"):
        need_number(None, "x")


def test_by_score() -> None:
    scores = np.array([1.0, 5.0, 3.0, 5.0, 0.0])
    assert by_score(scores, 3).tolist() == [1, 3, 2]  # equal ones by row
    assert by_score(scores, 2, keep="easiest").tolist() == [4, 0]
    assert by_score(scores, 2, offset=0.4).tolist() == [2, 0]  # the two highest are left out
    assert by_score(scores, 2, keep="easiest", offset=0.2).tolist() == [0, 2]
    with pytest.raises(UsageError, match="fewer than the budget of 4"):
        by_score(scores, 4, offset=0.4)
    assert by_score(scores, 5).dtype == np.int64
