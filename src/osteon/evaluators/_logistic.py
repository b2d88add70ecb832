"""Logistic regression on standardised features by L-BFGS, one strength after another with warm starts."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from osteon.evaluators._ridge import Affine, inverse_std

#: Up to this many numbers the fit runs in float64; above, float32 halves the time and the third digit agrees.
DOUBLE_BELOW = 4_000_000


class Logistic:
    """Multinomial logistic regression (multi-label: one binary regression a label).

    Minimises ``mean cross entropy + |W|^2 / (2 C N)``, which is scikit-learn's objective divided by C N; the bias is
    not penalised. Where there are fewer rows than features the fit runs in the span of the rows, which holds the
    exact solution.

    Args:
        x: (N, D) features.
        y: (N,) int64 or (N, K) 0/1.
        classes: K.
        iterations: most L-BFGS iterations a fit.
    """

    def __init__(self, x: Tensor, y: np.ndarray, classes: int, iterations: int) -> None:
        self.iterations = iterations
        self.mean = x.double().mean(0) if x.numel() <= DOUBLE_BELOW else x.mean(0)
        z = x.to(self.mean.dtype) - self.mean
        self.scale = inverse_std(z.square().mean(0), self.mean)
        z = z * self.scale
        self.span: Tensor | None = None
        if z.shape[0] < z.shape[1]:
            self.span = torch.linalg.qr(z.T).Q  # (D, N), orthonormal: |W| is |span^T W|
            z = z @ self.span
        self.z = z
        self.target = torch.from_numpy(y.astype(np.float64) if y.ndim == 2 else y).to(x.device)
        if y.ndim == 2:
            self.target = self.target.to(z.dtype)
        self.theta = z.new_zeros(z.shape[1] + 1, classes)  # last row: bias

    def fit(self, c: float) -> Affine:
        """The classifier at one C, started from the last one fitted."""
        theta = self.theta.clone().requires_grad_(True)
        optimiser = torch.optim.LBFGS([theta], lr=1.0, max_iter=self.iterations, tolerance_grad=1e-5,
                                      tolerance_change=1e-9, history_size=10, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimiser.zero_grad()
            logits = self.z @ theta[:-1] + theta[-1]
            if self.target.ndim == 1:
                loss = F.cross_entropy(logits, self.target)
            else:
                loss = F.binary_cross_entropy_with_logits(logits, self.target, reduction="none").sum(1).mean()
            loss = loss + theta[:-1].square().sum() / (2 * c * len(self.z))
            loss.backward()
            return loss

        with torch.enable_grad():
            optimiser.step(closure)
        self.theta = theta.detach()
        weight = self.theta[:-1] if self.span is None else self.span @ self.theta[:-1]
        weight = self.scale[:, None] * weight
        return Affine(weight.float(), (self.theta[-1] - self.mean @ weight).float())
