from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tests.mergers.kit import merged, moved, stored, tensors

from osteon.core.errors import UsageError
from osteon.mergers.slerp import Slerp, coefficients
from osteon.parts.merging import Models


def test_half_way_between_right_angles() -> None:
    a, b = torch.tensor([1.0, 0]), torch.tensor([0, 1.0])
    assert coefficients(a, b, 0.5) == (pytest.approx(0.5**0.5), pytest.approx(0.5**0.5), True)
    third = coefficients(a, b, 1 / 3)
    assert third[:2] == (pytest.approx(math.cos(math.pi / 6)), pytest.approx(math.sin(math.pi / 6)))
    assert coefficients(3 * a, 7 * b, 1 / 3) == third  # lengths do not bend the path


def test_parallel_opposite_and_empty_tensors_take_the_straight_path() -> None:
    a = torch.tensor([1.0, 2])
    for b in (a, 2 * a, -a, torch.zeros(2), a + torch.tensor([1e-3, 0])):
        assert coefficients(a, b, 0.25) == (0.75, 0.25, False)
    assert coefficients(torch.tensor(2.0), torch.tensor(3.0), 0.5) == (0.5, 0.5, False)  # one number


def test_ends_are_the_parents_and_turning_round_gives_the_same(tmp_path: Path) -> None:
    files = [stored(tmp_path, n, tensors(i)) for i, n in enumerate("ab")]
    for t, wanted in ((0.0, tensors(0)), (1.0, tensors(1))):
        found = merged(Slerp(t=t), Models(files))
        assert all(torch.equal(found[k], v) for k, v in wanted.items() if v.is_floating_point())
    one, other = merged(Slerp(t=0.3), Models(files)), merged(Slerp(t=0.7), Models(files[::-1]))
    assert all(torch.allclose(one[k].float(), other[k].float(), atol=1e-6) for k in one)


def test_equal_lengths_are_kept_and_statistics_go_straight(tmp_path: Path) -> None:
    a, b = tensors(0), tensors(1)
    b["a.weight"] *= a["a.weight"].norm() / b["a.weight"].norm()
    files = [stored(tmp_path, n, s) for n, s in (("a", a), ("b", b))]
    found = merged(Slerp(t=0.4), Models(files))
    assert float(found["a.weight"].norm()) == pytest.approx(float(a["a.weight"].norm()), rel=1e-5)
    assert torch.allclose(found["bn.running_var"], 0.6 * a["bn.running_var"] + 0.4 * b["bn.running_var"])


def test_the_share_of_spherical_tensors_is_told(tmp_path: Path) -> None:
    base = tensors(0)
    far, near = tensors(1), moved(base, 2, 1e-3)
    files = [stored(tmp_path, n, s) for n, s in (("a", base), ("far", far), ("near", near))]
    assert "3 of 4 tensors take the spherical" in Slerp().prepare(Models(files[:2]))[0]  # gain is one number
    note = Slerp().prepare(Models([files[0], files[2]]))[0]
    assert "0 of 4" in note and "weighted average" in note


def test_t_is_a_share() -> None:
    with pytest.raises(UsageError, match="t lies between 0 and 1"):
        Slerp(t=1.5)
