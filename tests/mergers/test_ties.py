from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.mergers.kit import merged, moved, stored, tensors

from osteon.core.errors import UsageError
from osteon.mergers.ties import Ties, _threshold
from osteon.parts.merging import Models


def line(folder: Path, changes: list[list[float]], base: float = 10.0) -> Models:
    files = [stored(folder, f"m{i}", {"w": torch.tensor(c) + base}) for i, c in enumerate(changes)]
    return Models(files, stored(folder, "b", {"w": torch.full((len(changes[0]),), base)}))


def test_trim_elect_and_average_by_hand(tmp_path: Path) -> None:
    """Kept: [4, -3, 0, 0] and [-6, -5, 0, 0]; -2 and -8 elect minus; the means of those that agree are -6 and -4."""
    given = line(tmp_path, [[4, -3, 1, 0.5], [-6, -5, 1, 2]])
    assert (merged(Ties(keep=0.5), given)["w"] - 10).tolist() == [-6, -4, 0, 0]
    # All kept: -2 elects minus, so 4 is left out; both ones agree; 0.5 and 2 agree.
    assert (merged(Ties(keep=1.0), given)["w"] - 10).tolist() == [-6, -4, 1, 1.25]
    assert (merged(Ties(keep=1.0, scale=0.5), given)["w"] - 10).tolist() == [-3, -2, 0.5, 0.625]


def test_exact_cancellation_goes_with_the_majority(tmp_path: Path) -> None:
    plus = line(tmp_path / "p", [[2.0, 3, 1], [-2.0, 3, 1]])
    assert (merged(Ties(keep=1.0), plus)["w"] - 10).tolist() == [2, 3, 1]
    minus = line(tmp_path / "m", [[2.0, -3, -1], [-2.0, -3, -1]])
    assert (merged(Ties(keep=1.0), minus)["w"] - 10).tolist() == [-2, -3, -1]
    nobody = line(tmp_path / "n", [[2.0], [-2.0]])
    assert (merged(Ties(keep=1.0), nobody)["w"] - 10).tolist() == [0]


def test_the_largest_are_kept_over_all_tensors_of_a_model(tmp_path: Path) -> None:
    base = {"a": torch.zeros(4), "b": torch.zeros(2, 3)}
    state = {"a": torch.tensor([9.0, 8, 7, 0.1]), "b": torch.tensor([[0.2, 0.3, 0.4], [-5, 0.5, 0.6]])}
    given = Models([stored(tmp_path, "m", state)], stored(tmp_path, "z", base))
    found = merged(Ties(keep=0.4), given)
    assert found["a"].tolist() == [9, 8, 7, 0] and found["b"].tolist() == [[0, 0, 0], [-5, 0, 0]]


@pytest.mark.parametrize("keep", [0.01, 0.2, 0.5, 0.731, 1.0])
def test_the_threshold_is_the_sorted_one(tmp_path: Path, keep: float) -> None:
    base = tensors(0)
    state = moved(base, 3)
    given = Models([stored(tmp_path, "m", state)], stored(tmp_path, "z", base))
    every = torch.cat([(given.task_vector(0, n)).abs().float().reshape(-1) for n in given.trained])
    wanted = every.sort(descending=True).values[max(1, round(keep * len(every))) - 1]
    assert _threshold(given, 0, keep) == int(wanted.view(torch.int32))


def test_shares_out_of_range() -> None:
    for keep in (0.0, 1.1, -0.2):
        with pytest.raises(UsageError, match="keep|Keeping"):
            Ties(keep=keep)
