"""DPT: what each position may know, what is learned, and how it acts."""

from __future__ import annotations

import math

import pytest
import torch

from osteon.backbones.dpt import DPT
from osteon.core.errors import UsageError
from osteon.parts.bandits import GaussianBandits
from osteon.parts.types import Draws, Step


def draws(n: int = 64) -> Draws:
    return Draws(Step(0, 10, 3), torch.arange(n), n)


def make(**options) -> DPT:
    torch.manual_seed(0)
    return DPT(**{"arms": 3, "rounds": 10, "dim": 16, "depth": 2, **options})


def log(n: int = 4, rounds: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    bandits = GaussianBandits(3, 0.5)
    return bandits.logs(bandits.means(draws(n)), rounds, draws(n))


def test_scores_after_so_many_rounds_know_those_rounds_alone():
    net, (pulled, rewards) = make(), log()
    scores = net(pulled, rewards)
    assert scores.shape == (4, 11, 3)
    changed = rewards.clone()
    changed[:, 6] += 1
    other = net(pulled, changed)
    torch.testing.assert_close(scores[:, :7], other[:, :7])
    assert not torch.allclose(scores[:, 7:], other[:, 7:])
    torch.testing.assert_close(net(pulled[:, :4], rewards[:, :4]), scores[:, :5])
    torch.testing.assert_close(scores[0, 0], scores[1, 0])  # an empty context is the same for all


def test_the_first_loss_is_that_of_a_guess_and_training_lowers_it():
    net = make(dim=32)
    losses = net.fit(GaussianBandits(3, 0.3), steps=150, batch=64, seed=1)
    assert abs(losses[0] - math.log(3)) < 0.5 and len(losses) == 150
    assert sum(losses[-10:]) / 10 < 0.95 * math.log(3)
    scores = net(*log(64))
    best = GaussianBandits(3, 0.5).means(draws(64)).argmax(1)
    late = (scores[:, -1].argmax(1) == best).float().mean()
    assert late > 0.5 > (scores[:, 0].argmax(1) == best).float().mean()


def test_the_empty_context_is_trained_too():
    net = make()
    seen = []
    net.norm.register_forward_hook(lambda _m, _a, out: out.register_hook(seen.append) and None)
    net.fit(GaussianBandits(3, 0.5), steps=1, batch=8)
    assert seen[0][:, 0].abs().sum() > 0 and seen[0][:, -1].abs().sum() > 0


def test_acting_draws_from_the_softmax_or_takes_the_likeliest():
    net = make()
    pulled, rewards = torch.zeros(2000, 0, dtype=torch.int64), torch.zeros(2000, 0)
    odds = net(pulled, rewards)[0, 0].softmax(0)
    arms = net.act(pulled, rewards, draws(2000))
    torch.testing.assert_close(arms.bincount(minlength=3) / 2000, odds.detach(), atol=0.04, rtol=0)
    assert (net.act(pulled, rewards) == odds.argmax()).all()


def test_playing_reads_its_own_rounds(monkeypatch):
    net, bandits, seen = make(), GaussianBandits(3, 1e-6), []

    def act(pulled, rewards, draws=None):
        seen.append((pulled.clone(), rewards.clone()))
        return torch.full((2,), pulled.shape[1] % 3)

    monkeypatch.setattr(net, "act", act)
    means = torch.tensor([[0.1, 0.5, 0.9], [0.8, 0.4, 0.2]])
    regret = net.play(bandits, means, draws(2))
    assert regret.shape == (2, 10) and len(seen) == 10
    torch.testing.assert_close(regret[:, :3], torch.tensor([[0.8, 1.2, 1.2], [0.0, 0.4, 1.0]]))
    assert seen[4][0].tolist() == [[0, 1, 2, 0]] * 2
    torch.testing.assert_close(seen[4][1], means[:, [0, 1, 2, 0]], atol=1e-4, rtol=0)


def test_what_it_cannot_do_is_said():
    with pytest.raises(UsageError, match="reads 10 rounds"):
        make()(*log(rounds=11))
    with pytest.raises(UsageError, match="5 arms, the network 3"):
        make().fit(GaussianBandits(5), steps=1)
    with pytest.raises(UsageError, match="heads divide"):
        make(heads=3)
