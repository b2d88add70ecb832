from __future__ import annotations

import numpy as np
import pytest
import torch

from osteon.core.errors import DataError
from osteon.evaluators.cka import cka_table, linear_cka, unbiased_cka


def test_value_by_hand() -> None:
    x = torch.tensor([[1.0], [-1], [0], [0]])
    y = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    # |Y^T X|^2 = 4; |X^T X| = 2; |Y^T Y| = 2 sqrt(2)
    assert linear_cka(x, y) == pytest.approx(4 / (2 * 8**0.5))


@pytest.mark.parametrize("cka", [linear_cka, unbiased_cka])
def test_alike_whatever_the_rotation_scale_and_shift(cka) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=g)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=g)).Q
    assert cka(x, 3 * x @ turn + 7) == pytest.approx(1, abs=1e-5)
    stretched = x @ torch.diag(torch.tensor([9.0, 1, 1, 1, 1]))
    assert 0.3 < cka(x, stretched) < 0.9  # not whatever the linear map
    assert cka(x, stretched) == pytest.approx(cka(stretched, x))


def test_unrelated_features_of_many_dimensions() -> None:
    g = torch.Generator().manual_seed(0)
    pairs = [(torch.randn(40, 200, generator=g), torch.randn(40, 200, generator=g)) for _ in range(10)]
    assert np.mean([linear_cka(x, y) for x, y in pairs]) > 0.7  # the bias the other takes away
    assert abs(np.mean([unbiased_cka(x, y) for x, y in pairs])) < 0.05


def test_unbiased_is_the_sum_over_different_samples() -> None:
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(7, 3, generator=g).double(), torch.randn(7, 2, generator=g).double()

    def hsic(k, m):
        n, total = 7, 0.0
        from itertools import permutations
        for i, j, q, r in permutations(range(n), 4):  # the U-statistic, term by term
            total += k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
        return total / (n * (n - 1) * (n - 2) * (n - 3))

    k, m = (v @ v.T for v in (x - x.mean(0), y - y.mean(0)))
    assert unbiased_cka(x, y) == pytest.approx(float(hsic(k, m) / (hsic(k, k) * hsic(m, m)) ** 0.5), abs=1e-9)


def test_tables_constants_and_few_samples() -> None:
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    table = cka_table({"a": x, "b": -x}, {"a": x, "c": torch.ones(20, 2), "d": 2 * x})
    assert table.shape == (2, 3) and np.allclose(table[:, [0, 2]], 1) and np.allclose(table[:, 1], 0)
    assert linear_cka(torch.ones(5, 2), x[:5]) == 0
    with pytest.raises(DataError, match="at least 4"):
        unbiased_cka(x[:3], x[:3])
    with pytest.raises(DataError, match="same samples"):
        linear_cka(x, x[:5])
