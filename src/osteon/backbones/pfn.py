"""PFN: a Transformer that reads labelled points as a set and predicts the labels of others in one forward pass.

Mueller et al. 2022, arXiv:2112.10510, section 3 and appendix on training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.bar_distribution import BarDistribution, equal_mass_borders
from osteon.parts.priors import Prior
from osteon.parts.transformer import Block
from osteon.parts.types import Draws, Step

CARD = Card(
    kind="backbone",
    name="pfn",
    papers=("Transformers Can Do Bayesian Inference",),
    modalities=("table",),
    differs="It learns from a generated prior, never from the user's data: `osteon prior` trains one and `osteon "
    "incontext` uses it. Blocks normalise before their layers instead of after. Class labels have a vector each "
    "instead of being read as numbers. The number of labelled points is uniform instead of weighted. The outermost "
    "borders of the distribution lie where half of an outer bucket is beyond them, as its tails assume, instead of at "
    "the extremes of a sample, which biases means. Priors are a Gaussian process and random networks with "
    "standardised, mixed columns and up to K classes or one standardised number (the paper: Bayesian networks with "
    "two classes). Priors over hyper-parameters, few-shot images and Bayesian optimisation are left out.",
    rows=(306,),
    backbones=("tokens",),
    labels=True,
    cost="one forward pass on all points, whose attention grows with points x labelled points",
)


class PFN(nn.Module):
    """A prior-data fitted network.

    A labelled point is the sum of what encodes its sample and what encodes its label; a query is its sample alone.
    There are no positions, so the order of points does not matter; every point attends to all labelled points and to
    itself, so queries do not see each other.

    Args:
        features: width of a sample.
        classes: number of classes; 0 = y is a number, predicted by a :class:`BarDistribution`.
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads; must divide ``dim``.
        mlp_ratio: width of the hidden layers over ``dim``.
        buckets: of the distribution of numbers.
    """

    def __init__(self, *, features: int, classes: int = 0, dim: int = 512, depth: int = 6, heads: int = 4,
                 mlp_ratio: float = 2.0, buckets: int = 100) -> None:
        super().__init__()
        if min(features, dim, depth, heads) < 1 or dim % heads or classes == 1 or classes < 0:
            raise UsageError(f"features, dim, depth and heads are positive, heads ({heads}) divide dim ({dim}), and "
                             "classes are 0 or at least 2.", where="pfn")
        self.options = {"features": features, "classes": classes, "dim": dim, "depth": depth, "heads": heads,
                        "mlp_ratio": mlp_ratio, "buckets": buckets}
        self.features, self.classes = features, classes
        self.embed_x = nn.Linear(features, dim)
        self.embed_y: nn.Module = nn.Embedding(classes, dim) if classes else nn.Linear(1, dim)
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio) for _ in range(depth))
        for block in self.blocks:
            for last in (cast(Block, block).attn.proj, cast(Block, block).mlp.fc2):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Sequential(nn.Linear(dim, int(dim * mlp_ratio)), nn.GELU(),
                                  nn.Linear(int(dim * mlp_ratio), classes or buckets))
        self.bars = None if classes else BarDistribution(torch.linspace(-3, 3, buckets + 1))

    def forward(self, x: Tensor, y: Tensor, query: Tensor) -> Tensor:
        """Logits of queries.

        Args:
            x: (B, N, F) labelled samples, N at least 0.
            y: (B, N) their numbers or classes.
            query: (B, M, F).

        Returns:
            (B, M, K) logits of classes, or of buckets.
        """
        n, m = x.shape[1], query.shape[1]
        known = self.embed_x(x) + (self.embed_y(y) if self.classes else self.embed_y(y[..., None].float()))
        tokens = torch.cat([known, self.embed_x(query)], 1)
        attend = torch.eye(n + m, dtype=torch.bool, device=tokens.device)
        attend[:, :n] = True
        for block in self.blocks:
            tokens = block(tokens, attend=attend)
        return self.head(self.norm(tokens[:, n:]))

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """Negative log likelihood of labels (B, M), each: (B, M)."""
        if self.bars is None:
            return F.cross_entropy(logits.float().transpose(1, 2), y, reduction="none")
        return self.bars.nll(logits, y)

    def fit_prior(self, prior: Prior, *, steps: int, batch: int = 64, points: int = 100, least: int = 1, most: int = 0,
                  lr: float = 1e-3, clip: float = 1.0, warmup: float = 0.25, seed: int = 0,
                  watch: Callable[[int, list[float]], None] = lambda _step, _losses: None) -> list[float]:
        """Train on tasks of a prior; nothing else is ever seen.

        Adam, a learning rate that rises linearly and falls by a half cosine; the number of labelled points is drawn
        anew at every step.

        Args:
            prior: of the same features and classes.
            steps: optimiser steps.
            batch: tasks a step.
            points: of a task, labelled or not.
            least: fewest labelled points.
            most: most labelled points; 0 = all but one.
            lr: peak of the learning rate.
            clip: largest norm of the gradient.
            warmup: share of the steps over which the rate rises.
            seed: of the tasks.
            watch: told after every step how many there were and all losses.

        Returns:
            The loss of every step, in nats a query.
        """
        most = most or points - 1
        if prior.features != self.features or prior.classes != self.classes:
            raise UsageError(f"The prior has {prior.features} features and {prior.classes} classes, the network "
                             f"{self.features} and {self.classes}.", where="prior")
        if not 0 <= least <= most < points or min(steps, batch) < 1:
            raise UsageError(f"{least} to {most} labelled points of {points} are impossible, or no step was asked for.",
                             where="fit_prior", fix="Leave at least one point without a label.")
        if self.bars is not None:
            self._set_borders(prior, points, seed)
        device = self.norm.weight.device
        optimiser = torch.optim.Adam(self.parameters(), lr=lr)
        rate = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda i: _rate(i, steps, warmup))
        losses = []
        for index in range(steps):
            draws = Draws(Step(index, steps, seed), torch.arange(batch), batch, device, name="prior")
            x, y = prior.draw(draws, points)
            cut = least + int(draws.fork("cut").shared_rand(1) * (most - least + 1))
            loss = self.loss(self(x[:, :cut], y[:, :cut], x[:, cut:]), y[:, cut:]).mean()
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters(), clip)
            optimiser.step()
            rate.step()
            losses.append(float(loss.detach()))
            watch(index + 1, losses)
        return losses

    def _set_borders(self, prior: Prior, points: int, seed: int) -> None:
        """Buckets of equal mass under the prior, fixed before training."""
        assert self.bars is not None
        tasks = max(1, 200 * self.bars.buckets // points)
        draws = Draws(Step(0, 1, seed), torch.arange(tasks), tasks, name="borders")
        self.bars.borders.copy_(equal_mass_borders(prior.draw(draws, points)[1], self.bars.buckets))

    @torch.no_grad()
    def predict(self, x: Tensor, y: Tensor, query: Tensor) -> Tensor:
        """Probabilities (B, M, K) of classes, 0 for those that no labelled point has, or means (B, M) of numbers."""
        logits = self(x, y, query)
        if self.bars is not None:
            return self.bars.mean(logits)
        present = F.one_hot(y, self.classes).sum(1) > 0
        return logits.float().masked_fill(~present[:, None], -torch.inf).softmax(-1)


def _rate(index: int, steps: int, warmup: float) -> float:
    """Share of the peak rate at a step: linear up, half a cosine down."""
    rise = max(1, round(warmup * steps))
    if index < rise:
        return (index + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (index - rise) / max(1, steps - rise)))
