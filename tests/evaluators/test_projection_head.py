from __future__ import annotations

import numpy as np
import pytest
import torch

from osteon.core.errors import UsageError
from osteon.evaluators.projection_head import FixedReweightHead, head_report, unevenness


def test_fixed_head_by_hand() -> None:
    head = FixedReweightHead(4, 2.0)
    assert head(torch.ones(2, 4)).tolist() == [[1, 0.5, 0.25, 0.125]] * 2
    assert list(head.parameters()) == [] and head.kappa == 2.0
    x = torch.randn(3, 4)
    assert torch.equal(FixedReweightHead(4, 1.0)(x), x)
    assert float(FixedReweightHead(50, least=0.01).weight[-1]) == pytest.approx(0.01, rel=1e-4)
    assert float(FixedReweightHead(2048, 1.05).weight[143]) < 1e-3 < float(FixedReweightHead(2048, 1.05).weight[141])
    for bad in ({"dim": 0}, {"dim": 3, "kappa": 0.9}, {"dim": 3, "least": 0.0}):
        with pytest.raises(UsageError):
            FixedReweightHead(**bad)


def test_unevenness() -> None:
    rng = np.random.default_rng(0)
    even = rng.normal(size=(5000, 20))
    assert unevenness(even) == pytest.approx(0.1, abs=0.02)
    assert unevenness(even * np.r_[100, np.ones(19)]) > 0.99
    assert unevenness(FixedReweightHead(20, 1.3)(torch.from_numpy(even).float()).numpy()) > 0.3
    assert unevenness(np.ones((10, 3))) == 0


def test_what_a_head_throws_away_is_seen() -> None:
    """Class in the first feature, rotation in the second; the head forgets the second."""
    rng = np.random.default_rng(0)
    kind, turn = rng.integers(0, 2, 400), rng.integers(0, 4, 400)
    x = np.stack([4 * kind, *(4.0 * (turn == k) for k in range(4))], 1) + 0.3 * rng.normal(size=(400, 5))
    after = x * np.array([1.0, 0, 0, 0, 0]) + 0.01 * rng.normal(size=(400, 5))
    train = np.arange(400) < 200
    found = head_report(x, after, {"class": kind, "rotation": turn}, train)
    assert found["before"]["probe_class"] > 0.95 and found["after"]["probe_class"] > 0.95
    assert found["before"]["probe_rotation"] > 0.9 and found["after"]["probe_rotation"] < 0.5
    assert found["after"]["effective_rank"] < found["before"]["effective_rank"]
    assert found["after"]["unevenness"] > 0.9
