"""Claim 46 (intrinsic dimension): a network learns in few random directions, however wide it is."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.claims._tasks import MLP, classes_of, digits
from benchmarks.claims.kit import Record
from osteon.evaluators.intrinsic_dimension import Dimension, intrinsic_dimension
from osteon.parts.subsets import holdout
from osteon.verbs._model import fit_samples

SEEDS = (0, 1)
WIDTHS = (50, 200)
GRID = (10, 20, 40, 80, 160, 320)
#: learning rates of Adam; each fit takes the one that is best on a validation part
RATES = (1e-3, 1e-2, 1e-1)
BATCH = 64


def run(quick: bool = False) -> Record:
    """Train in subspaces of growing size at two widths until 90 % of the full accuracy is reached."""
    record = Record(
        46,
        "Networks need few degrees of freedom: intrinsic dimension ~750 for MNIST MLPs, compression over 100x, nearly "
        "independent of width.",
        "sklearn digits, MLP 64-h-h-10 with h = 50, 200; d grid 10..320; 2 seeds.",
        "Smallest grid d reaching 90% of full accuracy <= 320 at both widths and within one grid step (2x) of each "
        "other; parameters/d90 >= 150 at h=200.")
    epochs = 2 if quick else 40
    train, test = digits()
    parts = [(fit_samples(d, train.spec, np.arange(len(d))), torch.from_numpy(classes_of(d))) for d in (train, test)]
    record.say(f"{len(train)} training and {len(test)} test digits; Adam, cosine, {epochs} epochs, batch {BATCH}; "
               f"every fit, the full network's too, takes the rate of {RATES} that is best on a fifth of the training "
               "digits and is then scored on the test digits. Projection: fastfood (the default).")
    found: dict[tuple[int, int], Dimension] = {}
    for width in WIDTHS:
        for seed in SEEDS:
            one = intrinsic_dimension(maker(width, seed), fitter(parts, seed, epochs), GRID[:2] if quick else GRID,
                                      seed=seed)
            found[width, seed] = one
            ratio = "-" if one.ratio is None else f"{one.ratio:.0f}"
            record.say(f"h = {width}, seed {seed}: {one.parameters:,} parameters, full accuracy {100 * one.full:.1f}, "
                       + ", ".join(f"d={d}: {100 * a:.1f}" for d, a in one.curve.items())
                       + f"; d90 = {one.least}, parameters/d90 = {ratio}")
    least = {key: one.least or math.inf for key, one in found.items()}
    record.check(f"d90 <= 320 at both widths on every seed: {[one.least for one in found.values()]}",
                 max(least.values()) <= 320)
    apart = max(2 ** abs(math.log2(least[50, s]) - math.log2(least[200, s])) for s in SEEDS)
    record.check(f"the widths are within one grid step of each other on every seed: a factor of at most {apart:g}",
                 apart <= 2)
    ratio200 = min(found[200, s].parameters / least[200, s] for s in SEEDS)
    record.check(f"parameters/d90 >= 150 at h = 200 on every seed: at least {ratio200:.0f}", ratio200 >= 150)
    return record


class Classifier(nn.Module):
    """Images -> logits of the ten digits."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.network = MLP((64, width, width, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).pooled


def maker(width: int, seed: int) -> Callable[[], nn.Module]:
    """Builds the network of a seed, the same every time."""
    def make() -> nn.Module:
        torch.manual_seed(seed)
        return Classifier(width)

    return make


def fitter(parts: list[tuple[Tensor, Tensor]], seed: int, epochs: int) -> Callable[[nn.Module], float]:
    """Trains what a module has at each rate from the same start; test accuracy at the rate chosen by validation."""
    (x, y), (asked, truth) = parts
    fit_rows, held = (torch.from_numpy(rows) for rows in holdout(y.numpy(), 0.2, seed))

    def right(module: nn.Module, images: Tensor, labels: Tensor) -> float:
        with torch.no_grad():
            return float((module(images).argmax(1) == labels).double().mean())

    def fit(module: nn.Module) -> float:
        start = {name: p.detach().clone() for name, p in module.named_parameters()}
        tried = []
        for rate in RATES:
            with torch.no_grad():
                for name, p in module.named_parameters():
                    p.copy_(start[name])
            train(module, x[fit_rows], y[fit_rows], rate, seed, epochs)
            tried.append((right(module, x[held], y[held]), right(module, asked, truth)))
        return max(tried, key=lambda pair: pair[0])[1]

    return fit


def train(module: nn.Module, x: Tensor, y: Tensor, rate: float, seed: int, epochs: int) -> None:
    """Adam on the cross-entropy, the rate falling by a cosine."""
    optimizer = torch.optim.Adam(module.parameters(), lr=rate)
    steps = epochs * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(len(x), generator=generator)[:len(x) // BATCH * BATCH] for _ in range(epochs)])
    for rows in order.split(BATCH):
        optimizer.zero_grad()
        F.cross_entropy(module(x[rows]), y[rows]).backward()
        optimizer.step()
        schedule.step()
