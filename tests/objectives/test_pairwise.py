"""Pairwise contrast: positives of another moment, all ordered pairs, missing members."""

from __future__ import annotations

import math

import pytest
import torch
from tests.objectives.sets_kit import batch, draws, network, numbers, sphere

from osteon.core.errors import UsageError
from osteon.objectives.pairwise import Pairwise, cross_window_nce
from osteon.parts.pairs import symmetric_nce
from osteon.parts.types import Step


def make(**options) -> Pairwise:
    return Pairwise(network(), numbers().spec, **options)


def test_the_other_window_is_found_and_the_same_moment_is_left_out():
    a, b = sphere(4, 2, 5), sphere(4, 2, 5, seed=1)
    total = 0.0
    for i in range(4):
        for w in range(2):
            others = {(j, v): math.exp(float(a[i, w] @ b[j, v]) / 0.5) for j in range(4) for v in range(2)
                      if (j, v) != (i, w)}
            total -= math.log(others[i, 1 - w] / sum(others.values()))
    assert float(cross_window_nce(a, b, 0.5)) == pytest.approx(total / 8, rel=1e-5)


def test_with_one_window_both_directions_are_clips_loss():
    a, b = sphere(6, 1, 5), sphere(6, 1, 5, seed=1)
    both = (cross_window_nce(a, b, 0.1) + cross_window_nce(b, a, 0.1)) / 2
    torch.testing.assert_close(both, symmetric_nce(a[:, 0], b[:, 0], 10.0))


def test_all_ordered_pairs_of_the_sets_that_have_both():
    objective = make(windows=1, temperature=0.2)
    z = sphere(7, 3, 1, 8)
    there = torch.tensor([[1.0, 1, 1]] * 5 + [[1, 1, 0], [0, 1, 1]])
    loss = objective.score({"z": z, "there": there}, Step(0, 10, 3))
    assert len(loss.parts) == 6
    want = sum(cross_window_nce(z[r, a], z[r, b], 0.2) for a, b, r in [
        (0, 1, range(6)), (1, 0, range(6)), (0, 2, range(5)), (2, 0, range(5)), (1, 2, [0, 1, 2, 3, 4, 6]),
        (2, 1, [0, 1, 2, 3, 4, 6])])
    torch.testing.assert_close(loss.total, want / 6)


def test_aligned_embeddings_cost_less_than_shuffled_ones():
    z = sphere(8, 1, 2, 16).expand(-1, 3, -1, -1).clone()
    there = torch.ones(8, 3)
    objective = make()
    z[:, :, 1] = z[:, :, 0]
    aligned = objective.score({"z": z, "there": there}, Step(0, 10, 3)).total
    shuffled = z.clone()
    shuffled[:, 1] = z[:, 1].roll(1, 0)
    assert aligned < objective.score({"z": shuffled, "there": there}, Step(0, 10, 3)).total


def test_two_windows_are_two_views():
    e = make().encode(batch(), draws())
    assert e["z"].shape == (40, 3, 2, 128)
    torch.testing.assert_close(e["z"].norm(dim=-1), torch.ones(40, 3, 2))
    assert not torch.allclose(e["z"][:, 0, 0], e["z"][:, 0, 1])


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"windows": 3}])
def test_bad_options(options):
    with pytest.raises(UsageError):
        make(**options)
