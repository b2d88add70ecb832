"""The bar distribution: by hand, and that density, cumulated distribution, quantiles and samples are one law."""

from __future__ import annotations

import math

import pytest
import torch

from osteon.core.errors import DataError, UsageError
from osteon.parts.bar_distribution import BarDistribution, equal_mass_borders

BORDERS = torch.tensor([-2.0, -1.0, 0.0, 0.5, 3.0])
LOGITS = torch.tensor([0.1, 0.4, 0.3, 0.2]).log()


@pytest.fixture(params=[False, True], ids=["bounded", "full"])
def bars(request):
    return BarDistribution(BORDERS, full_support=request.param)


def test_density_of_inner_buckets_by_hand(bars):
    # mass 0.4 over a width of 1, mass 0.3 over a width of 1/2; a border belongs to the left
    y = torch.tensor([-0.5, 0.25, 0.0, 0.5])
    assert bars.nll(LOGITS.expand(4, 4), y).tolist() == pytest.approx([-math.log(v) for v in (0.4, 0.6, 0.4, 0.6)])


def test_tails_are_half_normals_with_half_of_their_mass_in_the_bucket():
    bars = BarDistribution(BORDERS)
    # up to the outer border lies half of the bucket's mass: 0.05 below -2, 0.1 above 3
    assert bars.cdf(LOGITS.expand(2, 4), torch.tensor([-2.0, 3.0])).tolist() == pytest.approx([0.05, 0.9], abs=1e-6)
    # density at the inner border: 2 / sqrt(2 pi) / scale, scale = 2.5 / 0.67449
    scale = 2.5 / 0.6744897501960817
    assert float(bars.nll(LOGITS, torch.tensor(0.5 + 1e-6))) == pytest.approx(
        -math.log(0.2 * 2 / math.sqrt(2 * math.pi) / scale), abs=1e-4)
    assert math.isfinite(float(bars.nll(LOGITS, torch.tensor(50.0))))


def test_the_bounded_form_refuses_what_it_gives_no_density():
    bars = BarDistribution(BORDERS, full_support=False)
    assert float(bars.nll(LOGITS, torch.tensor(-2.0))) == pytest.approx(-math.log(0.1))
    for y in (-2.01, 3.01):
        with pytest.raises(DataError):
            bars.nll(LOGITS, torch.tensor(y))


def test_the_density_integrates_to_one_and_to_the_cumulated_distribution(bars):
    low, high = (-60.0, 120.0) if bars.full_support else (-2.0, 3.0)
    y = torch.linspace(low, high, 400_001, dtype=torch.float64)[:-1] + (high - low) / 800_000
    density = (-bars.nll(LOGITS.expand(len(y), 4), y.float())).exp().double()
    total = density.cumsum(0) * (high - low) / 400_000
    assert float(total[-1]) == pytest.approx(1, abs=1e-4)
    at = torch.linspace(0, len(y) - 1, 50).long()
    torch.testing.assert_close(bars.cdf(LOGITS.expand(50, 4), y[at].float()).double(), total[at], atol=5e-4, rtol=0)
    assert float(bars.mean(LOGITS)) == pytest.approx(float((density * y).sum() * (high - low) / 400_000), abs=2e-3)


def test_quantiles_invert_the_cumulated_distribution(bars):
    level = torch.linspace(0.01, 0.99, 99)
    value = bars.quantile(LOGITS.expand(99, 4), level)
    assert bool((value.diff() > 0).all())
    torch.testing.assert_close(bars.cdf(LOGITS.expand(99, 4), value), level, atol=1e-5, rtol=0)


def test_samples_have_the_mean_and_the_masses(bars):
    drawn = bars.sample(LOGITS.expand(200_000, 4), torch.rand(200_000, generator=torch.Generator().manual_seed(0)))
    assert float(drawn.mean()) == pytest.approx(float(bars.mean(LOGITS)), abs=0.02)
    assert torch.bincount(bars.bucket(drawn), minlength=4).div(2e5).tolist() == pytest.approx([0.1, 0.4, 0.3, 0.2],
                                                                                             abs=0.005)


def test_the_mean_of_a_normal_survives_the_buckets():
    """Also where most of it lies in a tail: masses of N(m, 0.2) in buckets made for N(0, 1)."""
    values = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    bars = BarDistribution(equal_mass_borders(values, 100))
    for m in (-2.6, -1.0, 0.0, 2.4):
        inner = torch.distributions.Normal(m, 0.2).cdf(bars.borders[1:-1])
        mass = torch.cat([inner[:1], inner.diff(), 1 - inner[-1:]])
        assert float(bars.mean(mass.clamp(min=1e-12).log())) == pytest.approx(m, abs=0.1)


def test_mean_by_hand_without_tails():
    assert float(BarDistribution(BORDERS, full_support=False).mean(LOGITS)) == pytest.approx(
        -1.5 * 0.1 - 0.5 * 0.4 + 0.25 * 0.3 + 1.75 * 0.2)


def test_beyond_bounded_support_the_cumulated_distribution_is_0_and_1():
    bars = BarDistribution(BORDERS, full_support=False)
    assert bars.cdf(LOGITS.expand(2, 4), torch.tensor([-9.0, 9.0])).tolist() == pytest.approx([0, 1])


def test_borders_hold_as_many_values_each():
    values = torch.arange(101.0)[torch.randperm(101)]
    assert equal_mass_borders(values, 4, full_support=False).tolist() == [0, 25, 50, 75, 100]
    assert equal_mass_borders(values, 4).tolist() == [12.5, 25, 50, 75, 87.5]  # half of an outer bucket lies beyond
    with pytest.raises(UsageError):
        equal_mass_borders(torch.ones(50), 4)


@pytest.mark.parametrize("borders", [[0.0, 1.0, 2.0], [0.0, 2.0, 1.0, 3.0], [1.0, 1.0, 2.0, 3.0]])
def test_impossible_borders_are_named(borders):
    with pytest.raises(UsageError):
        BarDistribution(torch.tensor(borders))
