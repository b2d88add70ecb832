from __future__ import annotations

from pathlib import Path

import torch
from tests.mergers.kit import Likes, merged, stored

from osteon.mergers.greedy_soup import GreedySoup
from osteon.parts.merging import Models, accuracy


def point(folder: Path, name: str, x: float, var: float = 1.0):
    return stored(folder, name, {"w": torch.tensor([x]), "bn.running_var": torch.tensor([float(var)]),
                                 "n": torch.tensor(3)})


def test_the_best_starts_and_only_what_does_not_harm_joins(tmp_path: Path) -> None:
    """Wanted: 0. Members 1, -2, 6, -0.5: from -0.5, 1 gives 0.25 (taken), -2 gives -0.5 (worse), 6 is worse still."""
    files = [point(tmp_path, f"m{i}", x, 1 + i) for i, x in enumerate((1.0, -2.0, 6.0, -0.5))]
    judge, soup = Likes({"w": torch.zeros(1)}), GreedySoup()
    given = Models(files, judge=judge)
    found = merged(soup, given)
    assert soup.taken == [3, 0] and found["w"].tolist() == [0.25]
    assert found["bn.running_var"].tolist() == [2.5] and int(found["n"]) == 3
    assert judge.asked == 7  # each alone, then three trials
    notes = GreedySoup().prepare(given)
    assert "m3" in notes[0] and "taken" in notes[1] and "left out" in notes[2] and "2 of 4" in notes[-1]
    assert accuracy(judge, lambda n: found[n]) >= max(accuracy(judge, f.__getitem__) for f in files)


def test_ties_are_taken_unless_strict(tmp_path: Path) -> None:
    files = [point(tmp_path, f"m{i}", 1.0) for i in range(3)]
    for strict, count in ((False, 3), (True, 1)):
        soup = GreedySoup(strict=strict)
        soup.prepare(Models(files, judge=Likes({"w": torch.zeros(1)})))
        assert len(soup.taken) == count and soup.taken[0] == 0


def test_members_are_judged_with_their_own_statistics(tmp_path: Path) -> None:
    asked: list[bool] = []

    class Notes(Likes):
        def quality(self, weights, *, merged: bool = True):
            asked.append(merged)
            return super().quality(weights)

    GreedySoup().prepare(Models([point(tmp_path, f"m{i}", i) for i in range(3)], judge=Notes({"w": torch.zeros(1)})))
    assert asked == [False] * 3 + [True] * 2
