"""Bandits: tasks in which one of several arms is best, and the rules that find it by trying.

Shape letters: B tasks, A arms, T rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from osteon.core.errors import UsageError
from osteon.parts.types import Draws

#: A rule: counts of pulls (B, A), sums of rewards (B, A), round number, draws -> the arm to try next, (B,) int64.
Rule = Callable[[Tensor, Tensor, int, Draws], Tensor]


@dataclass(frozen=True)
class GaussianBandits:
    """Arms with means uniform in [0, 1] and normal noise.

    Args:
        arms: A.
        noise: deviation of a reward about its arm's mean.
    """

    arms: int = 5
    noise: float = 0.5

    def __post_init__(self) -> None:
        if self.arms < 2 or self.noise <= 0:
            raise UsageError(f"A bandit of {self.arms} arms and noise {self.noise} has nothing to find.",
                             where="bandits", fix="Give 2 arms or more and a positive noise.")

    def means(self, draws: Draws) -> Tensor:
        """Means of new tasks, (B, A)."""
        return draws.fork("means").rand(self.arms)

    def logs(self, means: Tensor, rounds: int, draws: Draws) -> tuple[Tensor, Tensor]:
        """What some behaviour policy saw: arms (B, T) int64 and rewards (B, T).

        Each task has a policy of its own: a draw from a Dirichlet distribution mixed, in a share uniform in 0, 0.1 ...
        1, with always the same arm.
        """
        batch = len(means)
        odds = -draws.fork("policy").rand(self.arms).clamp(min=1e-12).log()  # a Dirichlet of ones, once normalised
        odds = odds / odds.sum(1, keepdim=True)
        one = (draws.fork("favourite").rand() * self.arms).long().clamp(max=self.arms - 1)
        share = (draws.fork("share").rand() * 11).floor().clamp(max=10) / 10
        odds = (1 - share[:, None]) * odds + share[:, None] * torch.nn.functional.one_hot(one, self.arms)
        pick = draws.fork("pulls").rand(rounds)
        pulled = torch.searchsorted(odds.cumsum(1).contiguous(), pick.contiguous(), right=True).clamp(max=self.arms - 1)
        noise = draws.fork("noise").randn(rounds)
        assert len(pulled) == batch
        return pulled, means.gather(1, pulled) + self.noise * noise

    def play(self, means: Tensor, rule: Rule, rounds: int, draws: Draws) -> Tensor:
        """Cumulative regret (B, T) of a rule that starts knowing nothing: sum of the best mean less the tried one's."""
        counts, sums = torch.zeros_like(means), torch.zeros_like(means)
        best, lost = means.amax(1), []
        noise = draws.fork("rewards").randn(rounds)
        for t in range(rounds):
            arm = rule(counts, sums, t, draws.fork(f"rule{t}"))[:, None]
            mean = means.gather(1, arm)
            counts = counts.scatter_add(1, arm, torch.ones_like(mean))
            sums = sums.scatter_add(1, arm, mean + self.noise * noise[:, t:t + 1])
            lost.append(best - mean[:, 0])
        return torch.stack(lost, 1).cumsum(1)

    def rules(self) -> dict[str, Rule]:
        """The controls: Thompson sampling, upper confidence bounds, the best so far, and any arm."""
        return {"Thompson sampling": self.thompson, "upper confidence bound": self.upper_bound, "greedy": greedy,
                "uniform": uniform}

    def thompson(self, counts: Tensor, sums: Tensor, t: int, draws: Draws) -> Tensor:
        """The best of one draw from the posterior (Thompson 1933); the prior is normal with the uniform's moments."""
        mean, variance = posterior(counts, sums, self.noise)
        return (mean + variance.sqrt() * draws.randn(counts.shape[1])).argmax(1)

    def upper_bound(self, counts: Tensor, sums: Tensor, t: int, draws: Draws) -> Tensor:
        """The highest mean plus deviation of that mean; arms never tried come first."""
        bound = sums / counts.clamp(min=1) + self.noise * counts.clamp(min=1).rsqrt()
        return _untried_first(bound, counts).argmax(1)


def posterior(counts: Tensor, sums: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Mean and variance of each arm's mean, (B, A), of a normal prior with mean 1/2 and variance 1/12."""
    precision = 12.0 + counts / noise**2
    return (12.0 * 0.5 + sums / noise**2) / precision, 1 / precision


def greedy(counts: Tensor, sums: Tensor, t: int, draws: Draws) -> Tensor:
    """The highest mean so far; arms never tried come first."""
    return _untried_first(sums / counts.clamp(min=1), counts).argmax(1)


def uniform(counts: Tensor, sums: Tensor, t: int, draws: Draws) -> Tensor:
    """Any arm."""
    return (draws.rand() * counts.shape[1]).long().clamp(max=counts.shape[1] - 1)


def _untried_first(value: Tensor, counts: Tensor) -> Tensor:
    return value.masked_fill(counts == 0, math.inf)
