"""Discrete units from continuous features: k-means, and residual stages of it, coarse to fine.

Lloyd 1982 with the seeding of Arthur & Vassilvitskii 2007 (k-means++); residual quantisation after Juang & Gray 1982.
Shape letters: M vectors, D width, K codes of a stage, S stages.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.core.errors import UsageError


def nearest_code(x: Tensor, centres: Tensor) -> Tensor:
    """Number of the nearest centre, the first among equals: (M, D), (K, D) -> (M,) int64."""
    return torch.cat([(centres.square().sum(1) - 2 * part @ centres.T).argmin(1) for part in x.split(65536)])


def kmeans(x: Tensor, count: int, generator: torch.Generator, iterations: int = 25) -> Tensor:
    """Centres of ``count`` clusters of vectors (M, D): (count, D). The same on every run from the same generator.

    A cluster that loses all its vectors takes the vector that is farthest from its centre.
    """
    if len(x) < count:
        raise UsageError(f"{len(x)} vectors do not form {count} clusters.", where="clusters", fix="Ask for fewer.")
    centres = x[torch.randint(len(x), (1,), generator=generator)]
    gap = (x - centres).square().sum(1)
    for _ in range(1, count):
        share = gap.double().cumsum(0)
        drawn = torch.rand(1, generator=generator, dtype=torch.float64).to(share) * share[-1]
        pick = x[torch.searchsorted(share, drawn, right=True).clamp(max=len(x) - 1)]
        centres, gap = torch.cat([centres, pick]), torch.minimum(gap, (x - pick).square().sum(1))
    for _ in range(iterations):
        code = nearest_code(x, centres)
        member = F.one_hot(code, count).to(x)  # a product of matrices sums alike every time, unlike a scatter on a GPU
        size = member.sum(0)
        moved = member.T @ x / size.clamp(min=1)[:, None]
        empty = (size == 0).nonzero()[:, 0]
        if len(empty):
            far = (x - moved[code]).square().sum(1).argsort(descending=True, stable=True)
            moved[empty] = x[far[:len(empty)]]
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


class Codebooks(nn.Module):
    """Residual vector quantiser: stage s holds the clusters of what stages 0 to s - 1 leave over.

    Args:
        dim: D.
        count: K.
        stages: S; one is plain k-means.
    """

    def __init__(self, dim: int, count: int, stages: int = 1) -> None:
        super().__init__()
        self.register_buffer("centres", torch.zeros(stages, count, dim))
        self.register_buffer("unexplained", torch.ones(stages))
        self.register_buffer("fitted", torch.tensor(False))

    centres: Tensor
    unexplained: Tensor  # (S,) share of the variance left over after each stage, of the vectors it was fitted on
    fitted: Tensor

    @torch.no_grad()
    def fit(self, x: Tensor, seed: int) -> None:
        """Fit every stage, coarse to fine, on vectors (M, D)."""
        generator = torch.Generator().manual_seed(seed)
        rest = x.float()
        spread = (rest - rest.mean(0)).square().sum().clamp(min=1e-12)
        for stage in range(len(self.centres)):
            self.centres[stage] = kmeans(rest, self.centres.shape[1], generator)
            rest = rest - self.centres[stage][nearest_code(rest, self.centres[stage])]
            self.unexplained[stage] = rest.square().sum() / spread
        self.fitted.fill_(True)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Codes of vectors (..., D), coarse to fine: (..., S) int64."""
        rest, codes = x.float().flatten(0, -2), list[Tensor]()
        for centres in self.centres:
            codes.append(nearest_code(rest, centres))
            rest = rest - centres[codes[-1]]
        return torch.stack(codes, -1).unflatten(0, x.shape[:-1])
