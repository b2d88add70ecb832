"""What an objective is asked of held-out samples, and what its answers cost: the door of the evaluator ``held_out``.

Controls answer the same questions from what the network sees, and are judged in the same unit.

Letters: B samples, N tokens, W numbers that one token shows, K tokens hidden, S training samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

#: The unit of words.
NATS = "nats a word"
#: The unit of clouds of points.
CHAMFER = "squared Chamfer distance"
#: Visible points by which a cloud is sought, and points of a cloud in which they are.
LOOKED, OFFERED = 64, 128


@dataclass(frozen=True)
class Judged:
    """Held-out samples as an objective judges them.

    Args:
        error: (B, N) what the prediction of each token costs.
        asked: (B, N) bool, tokens that were asked for; the others' costs do not count.
        truth: what was to be predicted: words (B, N) int64, or values (B, N, W).
        unit: of the costs, e.g. :data:`NATS`.
        measure: turns other predictions (B, N, W) of the truth into costs (B, N); None of words.
        causal: every token was predicted from all those before it, the ones that were asked for too; otherwise all are
            predicted from those that were not asked for.
        places: (B, N, P) where tokens lie, which the network is told; None: their number says it.
    """

    error: Tensor
    asked: Tensor
    truth: Tensor
    unit: str
    measure: Callable[[Tensor, Tensor], Tensor] | None = None
    causal: bool = False
    places: Tensor | None = None


def nearest_token(judged: Judged, where: Tensor) -> Tensor:
    """Every token answered by the nearest one that is seen: (B, N, W).

    Args:
        judged: of values. Where it is causal, the answer is the token before.
        where: (B, N, P) or (N, P), where tokens lie.
    """
    truth = judged.truth
    if judged.causal:
        return torch.cat([torch.zeros_like(truth[:, :1]), truth[:, :-1]], 1)
    apart = torch.cdist(where.double(), where.double()).expand(len(truth), -1, -1)
    near = apart.masked_fill(judged.asked[:, None], torch.inf).argmin(2)
    return truth.gather(1, near[..., None].expand_as(truth))


def nearest_sample(judged: Judged, known: Tensor) -> Tensor:
    """Every sample answered by the training sample that agrees best with its visible tokens: (B, N, W).

    Args:
        judged: of values.
        known: (S, N, W) training samples.
    """
    truth, pool = judged.truth.float(), known.float().flatten(1)
    seen = (~judged.asked)[..., None].expand_as(truth).flatten(1).float()
    x = truth.flatten(1) * seen
    apart = seen @ pool.square().T - 2 * x @ pool.T  # the third term is the same for every training sample
    return known[apart.argmin(1)]


def nearest_cloud(groups: Tensor, asked: Tensor, centres: Tensor, pool: Tensor) -> Tensor:
    """Groups of points answered by the training cloud that lies nearest to the visible points: (B, N, 3 k).

    The nearest cloud is the one of least mean squared distance from a visible point to its nearest point, of at most
    :data:`LOOKED` visible points and :data:`OFFERED` points of a cloud, evenly taken; a group is answered by all that
    cloud's k points nearest to the group's centre.

    Args:
        groups: (B, N, 3 k) points of every group about its centre.
        asked: (B, N) bool, hidden groups.
        centres: (B, N, 3).
        pool: (S, P, 3) training clouds.
    """
    size, out = groups.shape[-1] // 3, torch.zeros_like(groups)
    offered = pool[:, :: -(-pool.shape[1] // OFFERED)]
    flat = offered.flatten(0, 1)
    length = flat.square().sum(1)
    for i in range(len(groups)):
        points = (groups[i].unflatten(-1, (-1, 3)) + centres[i, :, None])[~asked[i]].flatten(0, 1)
        points = points[:: max(1, -(-len(points) // LOOKED))]
        far = length - 2 * (points @ flat.T)  # the third term is the same for every cloud
        cloud = pool[int(far.view(len(points), len(pool), -1).amin(2).mean(0).argmin())]
        near = torch.cdist(centres[i], cloud).topk(min(size, len(cloud)), largest=False).indices
        near = near[:, torch.arange(size, device=near.device) % near.shape[1]]
        out[i] = (cloud[near] - centres[i, :, None]).flatten(1)
    return out


def constant_answer(known: Sequence[Judged], each: int, width: int, steps: int = 300) -> Tensor:
    """The answer that costs least on training samples when it may not depend on the sample, (1, N or 1, W).

    Found by gradient descent (Adam, a rate that falls to 0), since what tokens show may have errors of any kind: where
    they are classes, the logarithms of their frequencies.

    Args:
        known: training samples; tokens that are asked for count.
        each: N for an answer of each token, 1 for one of all.
        width: numbers an answer consists of, W.
        steps: of gradient descent.
    """
    first, truth, asked = known[0], torch.cat([j.truth for j in known]), torch.cat([j.asked for j in known])
    measure = cast(Callable[[Tensor, Tensor], Tensor], first.measure)
    answer = torch.zeros(1, each, width, device=truth.device, requires_grad=True)
    optimiser = torch.optim.Adam([answer], lr=0.1)
    rate = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
    for _ in range(steps):
        cost = (measure(answer.expand(*asked.shape, -1), truth) * asked).sum() / asked.sum()
        optimiser.zero_grad()
        cost.backward()
        optimiser.step()
        rate.step()
    return answer.detach()
