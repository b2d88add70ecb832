from __future__ import annotations

import pytest
import torch

from osteon.core.errors import DataError
from osteon.evaluators.linearity import block_scores, fit_linear, linearity, most_linear


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_linear_block_is_linear_and_can_be_replaced() -> None:
    x, a, b = draw(200, 6), draw(6, 4, seed=1), draw(4, seed=2)
    y = x @ a + b
    assert linearity(x, y) == pytest.approx(1, abs=1e-5)
    fitted = fit_linear(x, y)
    assert torch.allclose(fitted(draw(9, 6, seed=3)), draw(9, 6, seed=3) @ a + b, atol=1e-4)
    assert fitted(x.half()).dtype == torch.float16


def test_value_by_hand() -> None:
    """y = x^2 on -1, 0, 1, 2: slope 1, mean 1.5; residual squares sum to 4 of 11."""
    x = torch.tensor([[-1.0], [0], [1], [2]])
    y = x**2
    slope = ((x - 0.5) * (y - 1.5)).sum() / ((x - 0.5) ** 2).sum()
    rest = (y - 1.5 - slope * (x - 0.5)).square().sum() / (y - 1.5).square().sum()
    assert linearity(x, y) == pytest.approx(float(1 - rest))


def test_invariant_to_maps_of_the_input_and_to_scale() -> None:
    x, y = draw(300, 5), draw(300, 5).relu() @ draw(5, 3, seed=1)
    one = linearity(x, y)
    assert 0.3 < one < 0.95
    assert linearity(x @ draw(5, 5, seed=4) + 3, y) == pytest.approx(one, abs=1e-6)
    assert linearity(1000 * x, 0.01 * y) == pytest.approx(one, abs=1e-6)


def test_noise_scores_its_rank_in_sample_and_nothing_held_out() -> None:
    x, y = draw(200, 50), draw(200, 10, seed=1)
    assert linearity(x, y) == pytest.approx(50 / 199, abs=0.05)
    assert linearity(x, y, draw(2000, 50, seed=2), draw(2000, 10, seed=3)) < 0


def test_rank_deficient_input_is_no_infinity() -> None:
    x = draw(100, 3)
    wide = torch.cat([x, x, torch.zeros(100, 2)], 1)
    assert linearity(wide, x @ draw(3, 2, seed=1)) == pytest.approx(1, abs=1e-5)
    assert linearity(x, torch.ones(100, 2)) == 1.0  # a constant is predicted
    with pytest.raises(DataError):
        fit_linear(x, x[:5])


def test_scores_of_a_block() -> None:
    x = draw(2000, 4)
    branch = 0.3 * (x @ draw(4, 4, seed=1)).relu()
    scores = block_scores(x, x + branch, outliers=1)
    assert scores["residual"] > scores["alone"] > 0.4
    outlying = torch.cat([x + branch, 1000 * x[:, :1]], 1)[:, [4, 0, 1, 2]]  # one huge, perfectly linear dimension
    hidden = block_scores(x, outlying, outliers=1)
    assert hidden["residual"] > 0.9999 > hidden["trimmed"]
    changed = block_scores(x, branch[:, :2])
    assert changed["alone"] == changed["residual"]  # another width: nothing to subtract
    assert most_linear([{"residual": 0.1}, {"residual": 0.9}, {"residual": 0.5}]) == 1
