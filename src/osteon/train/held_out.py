"""What an objective loses on data it does not train on, e.g. the perplexity of a language model on a test text."""

from __future__ import annotations

import math

import numpy as np
import torch

from osteon.data import Dataset
from osteon.parts.objective import Objective
from osteon.parts.types import Draws, Step


@torch.no_grad()
def held_out_loss(objective: Objective, dataset: Dataset, step: Step | None = None, *,
                  batch_size: int = 64) -> dict[str, float]:
    """The loss of the whole of a dataset as one batch, without training.

    Everything is encoded in small batches and scored together, so that a mean over words is one over all words of the
    dataset. What is random (which words are hidden) is the same at every call with the same step.

    Args:
        objective: left in the mode it was in.
        dataset: held-out samples.
        step: of whose seed and phase the objective is asked; None = the last step of one.
        batch_size: samples encoded at a time; without influence on the result.

    Returns:
        ``loss``, the loss's parts, and ``perplexity``, exp of the ``cross_entropy`` a word, where the objective has it.
    """
    step, total, training = step or Step(0, 1), len(dataset), objective.training
    device = next(objective.parameters()).device
    objective.eval()
    try:
        found = []
        for start in range(0, total, batch_size):
            rows = np.arange(start, min(start + batch_size, total))
            batch = {k: v.to(device) for k, v in dataset.batch(rows).items()}
            draws = Draws(step, torch.from_numpy(rows), total, device,
                          source=lambda key, at: dataset.batch(at.cpu())[key].to(device))
            found.append(objective.encode(batch, draws))
        loss = objective.score({key: torch.cat([f[key] for f in found]) for key in found[0]}, step)
    finally:
        objective.train(training)
    values = {"loss": float(loss.total), **{key: float(value) for key, value in loss.parts.items()}}
    return values | ({"perplexity": math.exp(values["cross_entropy"])} if "cross_entropy" in values else {})
