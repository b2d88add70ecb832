from __future__ import annotations

import pytest
import torch

from osteon.core.errors import UsageError
from osteon.parts.bandits import GaussianBandits, greedy, posterior, uniform
from osteon.parts.types import Draws, Step


def draws(n: int = 400, index: int = 0) -> Draws:
    return Draws(Step(index, 10, 3), torch.arange(n), n)


def test_tasks_are_what_they_are_said_to_be():
    bandits = GaussianBandits(4, 0.5)
    means = bandits.means(draws(4000))
    assert means.shape == (4000, 4) and abs(float(means.mean()) - 0.5) < 0.02 and 0 <= means.min() <= means.max() < 1
    pulled, rewards = bandits.logs(means, 30, draws(4000))
    rest = rewards - means.gather(1, pulled)
    assert abs(float(rest.mean())) < 0.01 and abs(float(rest.std()) - 0.5) < 0.01
    often = torch.nn.functional.one_hot(pulled, 4).float().mean(1)
    assert torch.allclose(often.mean(0), torch.full((4,), 0.25), atol=0.02)  # no arm is favoured over tasks
    assert (often.amax(1) == 1).float().mean() > 0.08  # some policies never leave an arm
    assert torch.equal(pulled, bandits.logs(means, 30, draws(4000))[0])


def test_regret_by_hand():
    bandits = GaussianBandits(2, 1e-6)
    means = torch.tensor([[0.2, 0.9], [0.5, 0.1]])
    always = bandits.play(means, lambda c, s, t, d: torch.zeros(2, dtype=torch.int64), 3, draws(2))
    torch.testing.assert_close(always, torch.tensor([[0.7, 1.4, 2.1], [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(bandits.play(means, greedy, 4, draws(2)),
                               torch.tensor([[0.7, 0.7, 0.7, 0.7], [0.0, 0.4, 0.4, 0.4]]))


def test_rules_see_counts_and_sums_of_what_they_tried():
    bandits, seen = GaussianBandits(2, 1e-6), []

    def rule(counts, sums, t, _draws):
        seen.append((t, counts.clone(), sums.clone()))
        return torch.full((1,), t % 2)

    bandits.play(torch.tensor([[0.25, 0.75]]), rule, 4, draws(1))
    t, counts, sums = seen[-1]
    assert t == 3 and counts.tolist() == [[2, 1]]
    torch.testing.assert_close(sums, torch.tensor([[0.5, 0.75]]), atol=1e-4, rtol=0)


def test_the_posterior_is_the_precision_weighted_mean():
    mean, variance = posterior(torch.tensor([[0.0, 3.0]]), torch.tensor([[0.0, 2.4]]), 0.5)
    torch.testing.assert_close(mean, torch.tensor([[0.5, (12 * 0.5 + 4 * 2.4) / (12 + 12)]]))
    torch.testing.assert_close(variance, torch.tensor([[1 / 12, 1 / 24]]))


def test_good_rules_lose_less_than_chance_and_chance_what_it_must():
    bandits = GaussianBandits()
    means = bandits.means(draws())
    lost = {name: float(bandits.play(means, rule, 60, draws())[:, -1].mean()) for name, rule in bandits.rules().items()}
    expected = float((means.amax(1) - means.mean(1)).mean()) * 60
    assert abs(lost["uniform"] - expected) < 1.0
    assert max(v for k, v in lost.items() if k != "uniform") < 0.55 * lost["uniform"]
    assert bandits.upper_bound(torch.tensor([[1.0, 0.0, 1.0, 1.0, 1.0]]), torch.ones(1, 5), 4, draws(1)).item() == 1
    assert len(set(uniform(torch.zeros(400, 5), torch.zeros(400, 5), 0, draws()).tolist())) == 5


def test_upper_bounds_prefer_what_is_less_known():
    bandits = GaussianBandits(2, 0.5)
    counts, sums = torch.tensor([[100.0, 2.0]]), torch.tensor([[60.0, 1.0]])  # means 0.6 and 0.5
    assert bandits.upper_bound(counts, sums, 9, draws(1)).item() == 1 and greedy(counts, sums, 9, draws(1)).item() == 0


@pytest.mark.parametrize("options", [{"arms": 1}, {"noise": 0.0}])
def test_bad_options(options):
    with pytest.raises(UsageError, match="nothing to find"):
        GaussianBandits(**options)
