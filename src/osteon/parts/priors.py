"""Priors over supervised tasks, to draw data sets from: Gaussian processes, and random networks that name classes.

Mueller et al. 2022, arXiv:2112.10510: a network that has seen enough tasks of a prior predicts as its posterior does.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from osteon.core.errors import UsageError
from osteon.parts.types import Draws


class Prior(Protocol):
    """What tasks are drawn from.

    Attributes:
        features: width of a sample.
        classes: number of classes, 0 where y is a number.
    """

    features: int
    classes: int

    def draw(self, draws: Draws, points: int) -> tuple[Tensor, Tensor]:
        """A batch of tasks: samples (B, N, F), and numbers (B, N) float or classes (B, N) int64."""


class GaussianProcess:
    """Functions of a Gaussian process with an RBF kernel of variance 1, at uniform points of the unit cube.

    Args:
        features: F.
        lengthscale: of the kernel.
        noise: variance of independent noise on y.
    """

    classes = 0

    def __init__(self, *, features: int = 1, lengthscale: float = 0.2, noise: float = 0.01) -> None:
        if features < 1 or lengthscale <= 0 or noise <= 0:
            raise UsageError("features, lengthscale and noise must be positive.", where="Gaussian process prior")
        self.features, self.lengthscale, self.noise = features, lengthscale, noise

    def kernel(self, a: Tensor, b: Tensor) -> Tensor:
        """``exp(-|a - b|^2 / (2 l^2))``: (..., N, F), (..., M, F) -> (..., N, M)."""
        distance = (a[..., :, None, :] - b[..., None, :, :]).square().sum(-1)
        return (-0.5 * distance / self.lengthscale**2).exp()

    def draw(self, draws: Draws, points: int) -> tuple[Tensor, Tensor]:
        """Tasks of ``points`` points each."""
        x = draws.fork("x").rand(points, self.features).double()
        noisy = self.kernel(x, x) + self.noise * torch.eye(points, dtype=torch.float64, device=x.device)
        z = draws.fork("y").randn(points).double()
        return x.float(), (torch.linalg.cholesky(noisy) @ z[..., None])[..., 0].float()

    def posterior(self, x: Tensor, y: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Exact mean and variance of noisy values (B, M) at queries (B, M, F) given points (B, N, F) and (B, N)."""
        x, y, query = x.double(), y.double(), query.double()
        noisy = self.kernel(x, x) + self.noise * torch.eye(x.shape[-2], dtype=torch.float64, device=x.device)
        root, cross = torch.linalg.cholesky(noisy), self.kernel(query, x)
        mean = (cross @ torch.cholesky_solve(y[..., None], root))[..., 0]
        explained = (cross * torch.cholesky_solve(cross.transpose(-1, -2), root).transpose(-1, -2)).sum(-1)
        return mean, 1 + self.noise - explained


class RandomNetworks:
    """Tasks by random networks: a small Bayesian neural network, drawn anew for every task.

    Samples are normal, mixed by a random matrix so that columns depend on each other, and standardised. A random
    subset of the columns exists (the others are 0), of these some matter more. Two layers of tanh with random scales
    give a score for each of 2 to K classes, standardised over the task; a random scale of noise is added, and the
    largest score is the class. Of numbers there is one score, which with its noise is standardised again.

    Args:
        features: largest width F.
        classes: most classes K; 0 = y is a number.
        hidden: units of a hidden layer.
        noise: largest deviation of the noise on standardised scores.
    """

    def __init__(self, *, features: int = 16, classes: int = 4, hidden: int = 16, noise: float = 0.3) -> None:
        if features < 1 or classes < 0 or classes == 1 or hidden < 1 or noise < 0:
            raise UsageError("features and hidden must be positive, classes 0 or at least 2, noise not negative.",
                             where="prior of random networks")
        self.features, self.classes, self.hidden, self.noise = features, classes, hidden, noise

    def draw(self, draws: Draws, points: int) -> tuple[Tensor, Tensor]:
        """Tasks of ``points`` samples each: (B, points, F), and classes, numbered at random, or numbers (B, points)."""
        f, h, outputs = self.features, self.hidden, self.classes or 1
        shape = draws.fork("shape").rand(6)
        present = torch.arange(f) < 1 + (shape[:, 0] * f).long().clamp(max=f - 1).cpu()[:, None]
        present = present.to(shape.device)
        mixing = draws.fork("mixing").randn(f, f) * (shape[:, 1, None, None] / math.sqrt(f))
        x = draws.fork("x").randn(points, f)
        x = standardised(x + x @ mixing) * present[:, None]
        weight = draws.fork("importance").randn(f).mul(shape[:, 2, None]).exp() * present
        z = x * (weight / weight.square().sum(1, keepdim=True).sqrt())[:, None]
        for i, width in enumerate((h, h)):
            layer = draws.fork(f"layer{i}")
            gain = (4 * shape[:, 3 + i, None, None] - 1).exp2()  # 1/2 to 8
            scale = gain if i == 0 else gain / math.sqrt(h)
            z = torch.tanh(scale * (z @ layer.randn(z.shape[-1], width)) + layer.randn(1, width))
        score = standardised(z @ draws.fork("out").randn(h, outputs))
        score = score + self.noise * shape[:, 5, None, None] * draws.fork("noise").randn(points, outputs)
        if not self.classes:
            return x, standardised(score)[..., 0]
        count = 2 + (draws.fork("classes").rand() * (self.classes - 1)).long().clamp(max=self.classes - 2)
        rank = draws.fork("names").rand(self.classes).argsort(1).argsort(1)
        return x, score.masked_fill((rank >= count[:, None])[:, None], -torch.inf).argmax(-1)


def standardised(x: Tensor) -> Tensor:
    """(B, N, F) with mean 0 and deviation 1 over the N points of each task; what does not vary is 0."""
    x = x - x.mean(1, keepdim=True)
    return x / x.square().mean(1, keepdim=True).sqrt().clamp(min=1e-6)
