"""DPT: a causal Transformer that reads what was tried in a task and says which arm is best.

Lee et al. 2023, "Supervised Pretraining Can Learn In-Context Reinforcement Learning", arXiv:2306.14892, and the
authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.bandits import GaussianBandits
from osteon.parts.transformer import Block
from osteon.parts.types import Draws, Step

CARD = Card(
    kind="backbone",
    name="dpt",
    papers=("Supervised Pretraining Can Learn In-Context Reinforcement Learning",),
    modalities=("any",),
    differs="Bandits alone, which have a single state; the Markov decision processes of the paper are left out. It "
    "learns from generated tasks, never from the user's data: `osteon bandit` trains one and shows it beside the rules "
    "of the field. The loss is the mean over positions instead of their sum, and counts the empty context too, which "
    "the authors' code never trains although acting begins there. AdamW with warm-up and a half cosine at 1e-3 (the "
    "authors: 1e-4, constant, a hundred times as many steps); the last step's network is kept.",
    rows=(365,),
    backbones=("tokens",),
    labels=True,
    cost="one forward pass on all rounds so far for every round",
)


class DPT(nn.Module):
    """A decision-pretrained Transformer for bandits.

    The first token is the query, of zeros; every further one is a round: the arm that was tried and its reward. At
    each token the output scores all arms, given the rounds up to it.

    Args:
        arms: A.
        rounds: most rounds that are read.
        dim: width of a token.
        depth: number of blocks.
        heads: attention heads; must divide ``dim``.
    """

    def __init__(self, *, arms: int = 5, rounds: int = 60, dim: int = 32, depth: int = 3, heads: int = 1) -> None:
        super().__init__()
        if arms < 2 or min(rounds, dim, depth, heads) < 1 or dim % heads:
            raise UsageError("There are at least 2 arms, rounds, dim, depth and heads are positive, and heads divide "
                             "dim.", where="dpt")
        self.options = {"arms": arms, "rounds": rounds, "dim": dim, "depth": depth, "heads": heads}
        self.arms, self.rounds = arms, rounds
        self.embed = nn.Linear(arms + 1, dim)
        self.place = nn.Parameter(0.02 * torch.randn(1, rounds + 1, dim))
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, arms)

    def forward(self, pulled: Tensor, rewards: Tensor) -> Tensor:
        """Scores of all arms after 0, 1, ... T rounds: arms (B, T) int64, rewards (B, T) -> (B, T + 1, A)."""
        batch, count = pulled.shape
        if count > self.rounds:
            raise UsageError(f"The network reads {self.rounds} rounds, not {count}.", where="dpt",
                             fix="Train one with more rounds.")
        rounds = torch.cat([F.one_hot(pulled, self.arms).to(rewards.dtype), rewards[..., None]], -1)
        tokens = self.embed(F.pad(rounds, (0, 0, 1, 0))) + self.place[:, :count + 1]
        past = torch.ones(count + 1, count + 1, dtype=torch.bool, device=tokens.device).tril()
        for block in self.blocks:
            tokens = block(tokens, attend=past)
        return self.head(self.norm(tokens))

    def fit(self, tasks: GaussianBandits, *, steps: int, batch: int = 64, lr: float = 1e-3, seed: int = 0,
            watch: Callable[[int, list[float]], None] = lambda _step, _losses: None) -> list[float]:
        """Train on logs of new tasks at every step to name the best arm, at every length of context.

        Args:
            tasks: of as many arms.
            steps: optimiser steps.
            batch: tasks a step.
            lr: peak of the learning rate.
            seed: of the tasks.
            watch: told after every step how many there were and all losses.

        Returns:
            The loss of every step, in nats a position.
        """
        if tasks.arms != self.arms or min(steps, batch) < 1:
            raise UsageError(f"The tasks have {tasks.arms} arms, the network {self.arms}; steps and batch are "
                             "positive.", where="dpt")
        device = self.place.device
        optimiser = torch.optim.AdamW(self.parameters(), lr=lr, weight_decay=1e-4)
        losses = []
        for index in range(steps):
            draws = Draws(Step(index, steps, seed), torch.arange(batch), batch, device, name="bandits")
            means = tasks.means(draws)
            scores = self(*tasks.logs(means, self.rounds, draws))
            best = means.argmax(1, keepdim=True).expand(-1, self.rounds + 1)
            loss = F.cross_entropy(scores.float().transpose(1, 2), best)
            for group in optimiser.param_groups:
                group["lr"] = lr * _share(index, steps)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters(), 1.0)
            optimiser.step()
            losses.append(float(loss.detach()))
            watch(index + 1, losses)
        return losses

    @torch.no_grad()
    def act(self, pulled: Tensor, rewards: Tensor, draws: Draws | None = None) -> Tensor:
        """The arm to try next after the rounds so far, (B,): drawn from the softmax, or the likeliest without draws."""
        scores = self(pulled, rewards)[:, -1].float()
        if draws is None:
            return scores.argmax(1)
        odds = scores.softmax(1).cumsum(1).contiguous()
        pick = draws.rand().to(odds.device)[:, None].contiguous()
        return torch.searchsorted(odds, pick, right=True)[:, 0].clamp(max=self.arms - 1)

    @torch.no_grad()
    def play(self, tasks: GaussianBandits, means: Tensor, draws: Draws) -> Tensor:
        """Cumulative regret (B, T) over all its rounds, from an empty context on, its own rounds being the context."""
        pulled, rewards = torch.zeros(len(means), 0, dtype=torch.int64), torch.zeros(len(means), 0)
        noise = draws.fork("rewards").randn(self.rounds)
        for t in range(self.rounds):
            arm = self.act(pulled, rewards, draws.fork(f"rule{t}"))[:, None]
            pulled = torch.cat([pulled, arm], 1)
            rewards = torch.cat([rewards, means.gather(1, arm) + tasks.noise * noise[:, t:t + 1]], 1)
        return (means.amax(1, keepdim=True) - means.gather(1, pulled)).cumsum(1)


def _share(index: int, steps: int) -> float:
    """Share of the peak rate: linear up over a twentieth, half a cosine down."""
    rise = max(1, round(0.05 * steps))
    if index < rise:
        return (index + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (index - rise) / max(1, steps - rise)))
