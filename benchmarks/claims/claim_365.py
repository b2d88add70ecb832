"""Claim 365 (DPT): a Transformer trained on logs of bandits explores new ones about as well as Thompson sampling."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.claims.kit import Record
from osteon.backbones.dpt import DPT
from osteon.parts.bandits import GaussianBandits
from osteon.verbs.bandit import NAME, play_all

STEPS, TASKS = (1000, 3000), 300


def run(quick: bool = False) -> Record:
    """Regret after 1,000 and 3,000 steps beside the rules, on the same new bandits."""
    record = Record(
        365,
        "Decision-pretrained transformers solve bandits in context, exploring like posterior (Thompson) sampling.",
        "5-arm Gaussian bandits (means U[0,1], sd 0.5), transformer d=32 L=3, 1000-3000 steps, 300 test bandits.",
        "Regret <= 1.25 x Thompson and <= 0.55 x uniform after 3000 steps. At horizon 60 tuned greedy/UCB beat "
        "Thompson itself, so 'beats UCB' is not claimed.")
    bandits = GaussianBandits(5, 0.5)
    regret: dict[str, float] = {}
    for steps in (3, 5) if quick else STEPS:
        torch.manual_seed(0)
        network = DPT(arms=5, rounds=60, dim=32, depth=3)
        losses = network.fit(bandits, steps=steps, batch=8 if quick else 64, seed=0)
        played = play_all(network, bandits, 20 if quick else TASKS)
        regret = {name: float(values[:, -1].mean()) for name, values in played.items()}
        record.say(f"{steps} steps, last loss {np.mean(losses[-50:]):.3f} nat: regret {regret[NAME]:.2f}")
    record.say("rules: " + ", ".join(f"{name} {value:.2f}" for name, value in regret.items() if name != NAME))
    ours, thompson, chance = regret[NAME], regret["Thompson sampling"], regret["uniform"]
    record.check(f"at most 1.25 times Thompson sampling's regret: {ours / thompson:.2f}", ours <= 1.25 * thompson)
    record.check(f"at most 0.55 times the uniform rule's: {ours / chance:.2f}", ours <= 0.55 * chance)
    return record
