"""A distribution over the real line as a histogram whose heights a network predicts.

Mueller et al. 2022, arXiv:2112.10510, section on the Riemann distribution: buckets of equal mass under the prior, with
bounded or full support.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from osteon.core.errors import DataError, UsageError

#: Distance from 0 below which half of a half-normal of scale 1 lies.
_MEDIAN = 0.6744897501960817


def equal_mass_borders(values: Tensor, buckets: int, *, full_support: bool = True) -> Tensor:
    """Borders (K + 1,) of K buckets that hold as many of the values each.

    For full support the outermost borders leave half of an outer bucket's values beyond them, as the tail law has it;
    at the smallest and largest value of the sample the tails would grow with its size. For bounded support they are
    those two.

    Raises:
        UsageError: fewer distinct quantiles than borders: too few values, or many equal ones.
    """
    levels = torch.linspace(0, 1, buckets + 1, dtype=torch.float64)
    if full_support:
        levels[0], levels[-1] = 0.5 / buckets, 1 - 0.5 / buckets
    borders = torch.quantile(values.flatten().double(), levels)
    if len(borders.unique()) < buckets + 1:
        raise UsageError(f"{values.numel()} values cannot be cut into {buckets} buckets of equal mass.",
                         where="buckets", fix="Draw more values, or use fewer buckets.")
    return borders


class BarDistribution(nn.Module):
    """A density that is even within each of K buckets, given the logits of their masses (..., K).

    With full support the two outer buckets are half-normals that start at their inner border and have half of their
    mass within the bucket's width. Density, cumulated distribution, quantiles and samples follow one law throughout.

    Args:
        borders: (K + 1,) increasing, K at least 3 for full support.
        full_support: whether values beyond the outer borders have a density.
    """

    def __init__(self, borders: Tensor, *, full_support: bool = True) -> None:
        super().__init__()
        if borders.dim() != 1 or len(borders) < (4 if full_support else 2) or not bool((borders.diff() > 0).all()):
            raise UsageError("Borders must increase, and make at least one bucket, three with full support.",
                             where="borders")
        self.full_support = full_support
        self.register_buffer("borders", borders.float())

    borders: Tensor

    @property
    def buckets(self) -> int:
        """K."""
        return len(self.borders) - 1

    def bucket(self, y: Tensor) -> Tensor:
        """Number of the bucket of every value, (...,) int64; a border belongs to the bucket on its left.

        Raises:
            DataError: a value lies outside bounded support.
        """
        if not self.full_support and y.numel() and not bool(
                ((y >= self.borders[0]) & (y <= self.borders[-1])).all()):
            raise DataError("A value lies outside the borders, where the bounded distribution has no density.",
                            where="y", fix="Standardise y as the prior does, or use full support.")
        return (torch.searchsorted(self.borders, y.contiguous()) - 1).clamp(0, self.buckets - 1)

    def nll(self, logits: Tensor, y: Tensor) -> Tensor:
        """Negative log density of y (...,) under logits (..., K)."""
        place = self.bucket(y)
        mass = logits.float().log_softmax(-1).gather(-1, place[..., None])[..., 0]
        within = -self.borders.diff().log()[place]
        if self.full_support:
            for which, distance in ((0, self.borders[1] - y), (self.buckets - 1, y - self.borders[-2])):
                scale = self._scale(which)
                tail = 0.5 * math.log(2 / math.pi) - scale.log() - 0.5 * (distance / scale) ** 2
                within = torch.where(place == which, tail, within)
        return -(mass + within)

    def mean(self, logits: Tensor) -> Tensor:
        """Expected value, (..., K) -> (...)."""
        centre = (self.borders[1:] + self.borders[:-1]) / 2
        if self.full_support:
            centre = centre.clone()
            centre[0] = self.borders[1] - self._scale(0) * math.sqrt(2 / math.pi)
            centre[-1] = self.borders[-2] + self._scale(self.buckets - 1) * math.sqrt(2 / math.pi)
        return logits.float().softmax(-1) @ centre

    def cdf(self, logits: Tensor, y: Tensor) -> Tensor:
        """Probability of a value up to y: (..., K), (...,) -> (...)."""
        p = logits.float().softmax(-1)
        clamped = y if self.full_support else y.clamp(self.borders[0], self.borders[-1])
        place = self.bucket(clamped)
        share = ((clamped - self.borders[place]) / self.borders.diff()[place]).clamp(0, 1)
        if self.full_support:
            below = 1 - torch.erf((self.borders[1] - y) / (self._scale(0) * math.sqrt(2)))
            above = torch.erf((y - self.borders[-2]) / (self._scale(self.buckets - 1) * math.sqrt(2)))
            share = torch.where(place == 0, below, torch.where(place == self.buckets - 1, above, share))
        before = (p.cumsum(-1) - p).gather(-1, place[..., None])[..., 0]
        return before + share * p.gather(-1, place[..., None])[..., 0]

    def quantile(self, logits: Tensor, level: Tensor) -> Tensor:
        """The value up to which a share ``level`` (...,) in (0, 1) lies; (..., K) -> (...)."""
        p = logits.float().softmax(-1)
        total = p.cumsum(-1)
        place = torch.searchsorted(total.contiguous(), level[..., None].contiguous())[..., 0]
        place = place.clamp(max=self.buckets - 1)
        mine = p.gather(-1, place[..., None])[..., 0]
        share = ((level - (total - p).gather(-1, place[..., None])[..., 0]) / mine.clamp(min=1e-30)).clamp(0, 1)
        value = self.borders[place] + share * self.borders.diff()[place]
        if self.full_support:
            inner = share.clamp(1e-6, 1 - 1e-6)
            low = self.borders[1] - self._scale(0) * math.sqrt(2) * torch.erfinv(1 - inner)
            high = self.borders[-2] + self._scale(self.buckets - 1) * math.sqrt(2) * torch.erfinv(inner)
            value = torch.where(place == 0, low, torch.where(place == self.buckets - 1, high, value))
        return value

    def sample(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Draw values by the inverse of the cumulated distribution from uniform numbers (...,)."""
        return self.quantile(logits, uniform)

    def _scale(self, which: int) -> Tensor:
        """Scale of the half-normal of an outer bucket."""
        return self.borders.diff()[which] / _MEDIAN
