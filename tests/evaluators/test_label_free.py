"""Label-free numbers by hand, at collapse and at full spread."""

import math

import numpy as np
import pytest
import torch

from osteon.core.errors import DataError, UsageError
from osteon.evaluators.label_free import LabelFree, alignment, entropy_rank, participation_ratio, uniformity


def test_ranks_by_hand() -> None:
    assert entropy_rank(torch.tensor([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3)
    # p = 3/4, 1/4
    assert entropy_rank(torch.tensor([3.0, 1.0])) == pytest.approx(
        math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
    assert participation_ratio(torch.tensor([3.0, 1.0])) == pytest.approx(16 / 10)
    assert entropy_rank(torch.zeros(3)) == participation_ratio(torch.zeros(3)) == 0


def test_rankme_is_uncentred_and_effective_rank_centred() -> None:
    x = np.array([[3, 0], [-3, 0], [0, 1], [0, -1]], dtype=np.float32)  # singular values 3 sqrt 2, sqrt 2; mean 0
    found = LabelFree()(x)
    wanted = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert found["rankme"] == pytest.approx(wanted) and found["effective_rank"] == pytest.approx(wanted)
    assert found["participation_ratio"] == pytest.approx(100 / 82)
    moved = LabelFree()(x + 1000)
    assert moved["effective_rank"] == pytest.approx(wanted, rel=1e-3) and moved["rankme"] < 1.1


def test_against_singular_values_of_the_matrix() -> None:
    x = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32) + 2
    s = np.linalg.svd(x.astype(float), compute_uv=False)
    p = s / s.sum()
    assert LabelFree()(x)["rankme"] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)


def test_planted_rank_is_found() -> None:
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.normal(size=(64, 5)))[0]
    found = LabelFree(pairs_from=500)((rng.normal(size=(3000, 5)) @ basis.T).astype(np.float32))
    full = LabelFree(pairs_from=500)(rng.normal(size=(3000, 64)).astype(np.float32))
    for name in ("rankme", "effective_rank", "participation_ratio"):
        assert found[name] == pytest.approx(5, abs=0.1) and full[name] > 60, name


def test_collapse_shows() -> None:
    x = np.tile(np.array([[1, 2, 3]], dtype=np.float32), (20, 1))
    found = LabelFree()(x, x)
    assert found["rankme"] == pytest.approx(1) and found["participation_ratio"] == pytest.approx(0)
    assert found["feature_std"] == pytest.approx(0, abs=1e-6) and found["uniformity"] == pytest.approx(0, abs=1e-6)
    assert found["alignment"] == 0
    assert LabelFree()(np.zeros((4, 3), dtype=np.float32))["rankme"] == 0


def test_spread_features_have_unit_std() -> None:
    x = np.random.default_rng(0).normal(size=(4000, 32)).astype(np.float32)
    assert LabelFree(pairs_from=500)(x)["feature_std"] == pytest.approx(1, abs=0.01)


def test_uniformity_and_alignment_by_hand() -> None:
    x = torch.tensor([[2.0, 0], [0, 3.0], [-1.0, 0]])  # d^2: 2, 4, 2
    assert uniformity(x) == pytest.approx(math.log((2 * math.exp(-4) + math.exp(-8)) / 3))
    assert uniformity(x, block=2) == pytest.approx(uniformity(x))
    assert alignment(x, x.roll(1, 0)) == pytest.approx((4 + 2 + 2) / 3)
    assert alignment(x, 5 * x) == pytest.approx(0)
    assert LabelFree()(x, x.roll(1, 0))["alignment"] == pytest.approx(8 / 3) and "alignment" not in LabelFree()(x)


def test_pairs_are_drawn_by_the_seed() -> None:
    x = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    few = LabelFree(pairs_from=50)
    assert few(x, seed=1) == few(x, seed=1)
    assert few(x, seed=1)["uniformity"] != few(x, seed=2)["uniformity"]
    assert few(x)["uniformity"] == pytest.approx(LabelFree()(x)["uniformity"], abs=0.3)


def test_wrong_use_is_named() -> None:
    with pytest.raises(DataError, match="two"):
        LabelFree()(np.ones((1, 3)))
    with pytest.raises(DataError, match="views"):
        LabelFree()(np.ones((4, 3)), np.ones((4, 2)))
    with pytest.raises(UsageError):
        LabelFree(pairs_from=1)
