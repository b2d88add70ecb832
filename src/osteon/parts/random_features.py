"""Random features, and the two least-squares problems that boosting a representation with them comes down to.

Bolager et al. 2023, "Sampling weights of deep neural networks" (weights from differences of data pairs); the sandwiched
least squares are those of Zozoulenko et al. 2025, "Random Feature Representation Boosting".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Pairs among which weights are drawn, a sample.
PAIRS = 5
#: Shortest distance of a pair.
NEAREST = 0.01


@dataclass(frozen=True)
class RandomLayer:
    """``tanh(x W + b)``: (N, d) -> (N, p), with weights (d, p) and biases (p,) that nothing trains."""

    weight: np.ndarray
    bias: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Features."""
        return np.tanh(x @ self.weight + self.bias)


def gaussian_layer(x: np.ndarray, width: int, scale: float, rng: np.random.Generator) -> RandomLayer:
    """Normal weights of variance ``scale^2 / d`` and normal biases of variance ``scale^2``."""
    d = x.shape[1]
    return RandomLayer(scale * rng.standard_normal((d, width)) / np.sqrt(d), scale * rng.standard_normal(width))


def swim_layer(x: np.ndarray, y: np.ndarray, width: int, scale: float, rng: np.random.Generator) -> RandomLayer:
    """Each feature runs from ``tanh(-scale)`` at one sample to ``tanh(scale)`` at another, where targets differ.

    Pairs are drawn among 5 N candidates with a probability in proportion to the distance of their targets over that of
    the samples (no less than 0.01). Where no targets differ, or there is one sample, weights are normal.

    Args:
        x: (N, d).
        y: (N, K) targets, of classes as 0 and 1.
        width: p.
        scale: half the step across a pair.
        rng: draws the pairs.
    """
    n = len(x)
    if n < 2:
        return gaussian_layer(x, width, 1.0, rng)
    first = np.arange(PAIRS * n) % n
    second = (first + rng.integers(1, n, PAIRS * n)) % n
    step = x[second] - x[first]
    distance = np.sqrt(np.square(step).sum(1)).clip(min=NEAREST)
    weight = np.sqrt(np.square(y[second] - y[first]).sum(1)) / distance
    if not weight.sum() > 0:
        return gaussian_layer(x, width, 1.0, rng)
    drawn = rng.choice(len(weight), width, p=weight / weight.sum())
    slope = 2 * scale * step[drawn] / np.square(distance[drawn])[:, None]
    return RandomLayer(np.ascontiguousarray(slope.T), -(slope * x[first[drawn]]).sum(1) - scale)


def ridge_map(f: np.ndarray, r: np.ndarray, penalty: float) -> np.ndarray:
    """Minimise ``|R - F A|^2 + penalty |A|^2``: (N, p), (N, K) -> A (p, K), the shortest where the penalty is 0."""
    if penalty <= 0:
        return Ridge(f).solve(r, np.zeros(r.shape[1]))
    n, p = f.shape
    if n >= p:
        return np.linalg.solve(f.T @ f + penalty * np.eye(p), f.T @ r)
    return f.T @ np.linalg.solve(f @ f.T + penalty * np.eye(n), r)


class Ridge:
    """Least squares of one set of inputs for any penalties, from one decomposition of the smaller Gram matrix.

    Args:
        f: (N, p) inputs.
    """

    def __init__(self, f: np.ndarray) -> None:
        self.f, self.tall = f, len(f) >= f.shape[1]
        self.values, self.basis = np.linalg.eigh(f.T @ f if self.tall else f @ f.T)
        self.values = np.where(self.values > 1e-11 * max(self.values[-1], 1e-300), self.values, 0.0)

    def solve(self, r: np.ndarray, penalty: np.ndarray) -> np.ndarray:
        """Minimise ``|r_k - F a_k|^2 + penalty_k |a_k|^2`` for every column k; of equals the shortest.

        Args:
            r: (N, K).
            penalty: (K,), not negative.

        Returns:
            (p, K).
        """
        inner = self.basis.T @ (self.f.T @ r if self.tall else r)
        total = self.values[:, None] + penalty
        weight = np.divide(inner, total, out=np.zeros_like(inner), where=(total > 0) & (self.values[:, None] > 0))
        return self.basis @ weight if self.tall else self.f.T @ (self.basis @ weight)


def sandwiched(r: np.ndarray, w: np.ndarray, f: np.ndarray, ridge: float, ready: Ridge | None = None) -> np.ndarray:
    """Minimise ``|R - F A W|^2 + N ridge |A|^2`` over A (p, D), which is returned.

    With W = U S V^T, A = B U^T is enough and the columns of R V part into ridge regressions with penalties
    ``N ridge / s_j^2``.

    Args:
        r: (N, K).
        w: (D, K).
        f: (N, p).
        ridge: penalty.
        ready: the decomposition of ``f`` if known.
    """
    u, s, v = np.linalg.svd(w, full_matrices=False)
    kept = s > 1e-10 * max(float(s.max(initial=0.0)), 1e-300)
    u, s, v = u[:, kept], s[kept], v[kept]
    if not len(s):
        return np.zeros((f.shape[1], len(w)))
    return ((ready or Ridge(f)).solve(r @ v.T, len(f) * ridge / s**2) / s) @ u.T


def sandwiched_diagonal(r: np.ndarray, w: np.ndarray, f: np.ndarray, ridge: float) -> np.ndarray:
    """Minimise ``|R - F diag(a) W|^2 + N ridge |a|^2`` over a (D,): (N, K), (D, K), (N, D) -> (D,)."""
    gram = (w @ w.T) * (f.T @ f) + len(f) * ridge * np.eye(len(w))
    return np.linalg.lstsq(gram, ((r @ w.T) * f).sum(0), rcond=1e-12)[0]


def sandwiched_scalar(r: np.ndarray, w: np.ndarray, f: np.ndarray, ridge: float) -> float:
    """Minimise ``|R - a F W|^2 + N ridge a^2`` over the number a: (N, K), (D, K), (N, D)."""
    moved = f @ w
    below = float((moved * moved).sum()) + len(f) * ridge
    return float((r * moved).sum()) / below if below > 0 else 0.0
