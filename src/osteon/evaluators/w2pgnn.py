"""W2PGNN: will pre-training on these graphs help those? How near is a mixture of the sources' graphons to the target's.

Cao et al. 2023, "When to Pre-Train Graph Neural Networks? From Data Generation Perspective!". A graphon is
estimated by sorting nodes by degree, averaging and smoothing; distances are Gromov-Wasserstein's, whose entropic form
(Peyre et al. 2016) decides the mixture. Features of nodes play no part, and scores compare candidates at one
resolution, not across.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from osteon.core.card import Card
from osteon.core.errors import UsageError

CARD = Card(
    kind="analysis",
    name="w2pgnn",
    papers=("When to Pre-Train Graph Neural Networks? From Data Generation Perspective!",),
    modalities=("graph",),
    differs="a resolution of at most 100 where the authors take 1000, whose cube each step costs; features of nodes "
            "play no part; scores compare candidates at one resolution, not across",
    rows=(48,),
    backbones=("nodes", "tokens"),
    cost="no network; the cube of the resolution a step",
    switch="osteon analyse RUN SOURCE --only feasibility",
)

#: Bases of the topological grouping, as in the authors' code.
GROUPS = 5
#: Largest resolution; the authors use 1000, which costs its cube at every step.
RESOLUTION = 100


@dataclass(frozen=True)
class Feasibility:
    """How well a mixture of bases explains the target.

    Args:
        score: minus the Gromov-Wasserstein distance of the best mixture; 0 is a perfect fit.
        weights: of the bases, on the simplex.
        plain: minus the distance of the bases' plain mean.
        sizes: source graphs in each basis.
    """

    score: float
    weights: list[float]
    plain: float
    sizes: list[int]


def order(adjacency: np.ndarray) -> np.ndarray:
    """Nodes by falling degree; among equals by the degrees around them, three steps far: (n, n) -> (n,)."""
    keys, value = list[np.ndarray](), np.ones(len(adjacency))
    for _ in range(4):
        value = adjacency @ value
        keys.append(np.round(value, 9))
    return np.lexsort([-k for k in reversed(keys)])


def graphon(graphs: Sequence[np.ndarray], resolution: int) -> Tensor:
    """Step function of some graphs' common graphon: adjacencies (n, n) of any sizes -> (r, r) float64 in [0, 1].

    Sort-and-smooth: degree-sorted adjacencies, padded to the largest, are averaged over blocks of ``log2 n + 1`` nodes
    and resized by linear interpolation.
    """
    sizes = [len(g) for g in graphs]
    if not sizes or min(sizes) < 1:
        raise UsageError("A graphon is estimated from at least one graph with a node.", where="graphon")
    most = max(sizes)
    total = np.zeros((most, most))
    for one in graphs:
        edges = (np.asarray(one) != 0).astype(np.float64)
        np.fill_diagonal(edges, 0)
        rank = order(edges)
        total[:len(edges), :len(edges)] += edges[rank][:, rank]
    block = min(most, int(math.log2(most) + 1))
    smooth = F.avg_pool2d(torch.from_numpy(total / len(sizes))[None, None], block, ceil_mode=True,
                          count_include_pad=False)
    return F.interpolate(smooth, size=(resolution, resolution), mode="bilinear", align_corners=False)[0, 0]


def coupling_cost(a: Tensor, b: Tensor, plan: Tensor) -> Tensor:
    """``sum_ijkl (a_ik - b_jl)^2 T_ij T_kl`` of symmetric a (n, n), b (m, m) and a plan T (n, m): -> ()."""
    p, q = plan.sum(1), plan.sum(0)
    return p @ a.square() @ p + q @ b.square() @ q - 2 * (a @ plan @ b * plan).sum()


def _slope(a: Tensor, b: Tensor, plan: Tensor) -> Tensor:
    p, q = plan.sum(1), plan.sum(0)
    return (a.square() @ p)[:, None] + (b.square() @ q)[None] - 2 * a @ plan @ b


def entropic_plan(a: Tensor, b: Tensor, *, epsilon: float = 0.05, rounds: int = 20, inner: int = 50) -> Tensor:
    """Plan of the entropic Gromov-Wasserstein problem under uniform weights, by Sinkhorn's steps: (n, m).

    ``epsilon`` is relative to the mean cost of a pair.
    """
    n, m = len(a), len(b)
    p, q = a.new_full((n,), -math.log(n)), a.new_full((m,), -math.log(m))
    plan = (p[:, None] + q[None]).exp()
    for _ in range(rounds):
        cost = _slope(a, b, plan)
        kernel = -cost / (epsilon * cost.abs().mean().clamp(min=1e-12))
        left, right = torch.zeros_like(p), torch.zeros_like(q)
        for _ in range(inner):
            left = p - torch.logsumexp(kernel + right[None], 1)
            right = q - torch.logsumexp(kernel + left[:, None], 0)
        fresh = (left[:, None] + kernel + right[None]).exp()
        done = float((fresh - plan).abs().sum()) < 1e-6
        plan = fresh
        if done:
            break
    return plan


def distance(a: Tensor, b: Tensor, *, rounds: int = 200) -> float:
    """Gromov-Wasserstein distance of two matrices of one size under uniform weights: (r, r), (r, r) -> number.

    Conditional gradient with exact line search (Vayer et al. 2019), each linear problem an assignment, from the uniform
    plan and from the diagonal one, of which the better counts: a local minimum, as everywhere.
    """
    from scipy.optimize import linear_sum_assignment

    size, found = len(a), []
    for plan in (torch.full_like(a, 1 / size**2), torch.eye(size, dtype=a.dtype) / size):
        for _ in range(rounds):
            rows, columns = linear_sum_assignment(_slope(a, b, plan).numpy())
            step = torch.zeros_like(plan)
            step[torch.from_numpy(rows), torch.from_numpy(columns)] = 1 / size
            move = step - plan
            bend = float(-2 * (a @ move @ b * move).sum())
            fall = float(2 * (_slope(a, b, plan) * move).sum()) if bool(move.any()) else 0.0
            if fall > -1e-12:
                break
            along = 1.0 if bend <= 0 and bend + fall < 0 else min(1.0, -fall / (2 * bend)) if bend > 0 else 0.0
            if along <= 0:
                break
            plan = plan + along * move
        found.append(float(coupling_cost(a, b, plan)))
    return math.sqrt(max(0.0, min(found)))


def topology(graphs: Sequence[np.ndarray]) -> np.ndarray:
    """What the grouping looks at: logarithms of nodes and edges, density, spread of degrees, clustering: (N, 5)."""
    rows = []
    for one in graphs:
        edges = (np.asarray(one) != 0).astype(np.float64)
        np.fill_diagonal(edges, 0)
        degree, n = edges.sum(1), len(edges)
        closed = np.einsum("ij,ji->i", edges @ edges, edges) / np.maximum(degree * (degree - 1), 1)
        rows.append([math.log(n), math.log1p(degree.sum() / 2), degree.sum() / max(1, n * (n - 1)),
                     degree.std() / max(1e-9, degree.mean()), closed.mean()])
    return np.array(rows)


def group(graphs: Sequence[np.ndarray], count: int = GROUPS, seed: int = 0) -> np.ndarray:
    """Number of each graph's group, (N,): k-means on :func:`topology`, standardised."""
    from sklearn.cluster import KMeans

    x = topology(graphs)
    x = (x - x.mean(0)) / np.where(x.std(0) < 1e-9, 1, x.std(0))
    distinct = len(np.unique(x.round(9), axis=0))
    return KMeans(min(count, distinct), n_init=5, random_state=seed).fit_predict(x)


def feasibility(source: Sequence[np.ndarray], target: Sequence[np.ndarray], *, groups: np.ndarray | None = None,
                resolution: int = 0, steps: int = 100, lr: float = 0.05, seed: int = 0) -> Feasibility:
    """How feasible pre-training on some graphs is for others.

    Args:
        source: adjacencies (n, n) of pre-training graphs, or of neighbourhoods in one large graph.
        target: adjacencies of the graphs they are for.
        groups: number of each source graph's group, a basis each; k-means on topology when None.
        resolution: of the step functions; 0 = the size of the largest graph, at most 100.
        steps: of Adam on the mixture's logits; from step 30 on it stops when three in a row bring nothing.
        lr: learning rate of Adam.
        seed: of the grouping.
    """
    if not len(source) or not len(target):
        raise UsageError("There is no graph on one side.", where="feasibility")
    side = resolution or min(RESOLUTION, max(len(g) for g in (*source, *target)))
    belongs = group(source, seed=seed) if groups is None else np.asarray(groups)
    names = np.unique(belongs)
    bases = torch.stack([graphon([g for g, b in zip(source, belongs, strict=True) if b == n], side) for n in names])
    goal = graphon(target, side)
    logits = torch.zeros(len(bases), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=lr, betas=(0.9, 0.99), weight_decay=1e-5)
    best, weights, idle = math.inf, logits.detach().softmax(0), 0
    for step in range(steps if len(bases) > 1 else 0):
        mixture = (logits.softmax(0)[:, None, None] * bases).sum(0)
        cost = coupling_cost(mixture, goal, entropic_plan(mixture.detach(), goal))
        now = float(cost.detach())
        idle = idle + 1 if now > best - 1e-9 else 0
        if now < best:
            best, weights = now, logits.detach().softmax(0)
        if step >= 30 and idle >= 3:
            break
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
    mixed = (weights[:, None, None] * bases).sum(0)
    return Feasibility(-distance(mixed, goal), weights.tolist(), -distance(bases.mean(0), goal),
                       [int((belongs == n).sum()) for n in names])
