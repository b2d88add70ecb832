"""Random Feature Representation Boosting: a residual representation grown layer by layer without back-propagation.

Zozoulenko et al. 2025, "Random Feature Representation Boosting", algorithms for gradient and greedy boosting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from osteon.core.errors import DataError, UsageError
from osteon.parts.random_features import (
    RandomLayer,
    gaussian_layer,
    ridge_map,
    sandwiched,
    sandwiched_diagonal,
    sandwiched_scalar,
    swim_layer,
)
from osteon.parts.subsets import holdout

#: Penalties tried by :func:`fit_chosen`, on maps and head alike.
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
Maps = Literal["dense", "diagonal", "scalar"]


class Head:
    """A linear read-out ``x W + b`` with ``ridge |W|^2`` beside the mean loss; the bias is free.

    Args:
        loss: ``"mse"`` (mean over samples of the squared error) or ``"cross_entropy"``.
        ridge: penalty.
    """

    def __init__(self, loss: str, ridge: float) -> None:
        self.loss, self.ridge = loss, ridge
        self.weight, self.bias = np.zeros((0, 0)), np.zeros(0)

    def fit(self, x: np.ndarray, y: np.ndarray) -> None:
        """Fit to (N, D) and targets (N, K); cross-entropy goes on from the weights it has."""
        if self.loss == "mse":
            centre, mean = x.mean(0), y.mean(0)
            self.weight = ridge_map(x - centre, y - mean, len(x) * self.ridge)
            self.bias = mean - centre @ self.weight
            return
        from scipy.optimize import minimize

        shape = (x.shape[1] + 1, y.shape[1])
        known = self.weight.shape == (shape[0] - 1, shape[1])
        start = np.vstack([self.weight, self.bias]) if known else np.zeros(shape)

        def slope(flat: np.ndarray) -> tuple[float, np.ndarray]:
            theta = flat.reshape(shape)
            log_p = log_softmax(x @ theta[:-1] + theta[-1])
            wrong = (np.exp(log_p) - y) / len(x)
            gradient = np.vstack([x.T @ wrong + 2 * self.ridge * theta[:-1], wrong.sum(0)])
            penalty = self.ridge * float(np.square(theta[:-1]).sum())
            return -float((y * log_p).sum()) / len(x) + penalty, gradient.ravel()

        theta = minimize(slope, start.ravel(), jac=True, method="L-BFGS-B",
                         options={"maxiter": 100, "gtol": 1e-5}).x.reshape(shape)
        self.weight, self.bias = theta[:-1], theta[-1]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(N, D) -> (N, K) predictions or logits."""
        return x @ self.weight + self.bias


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """(N, K) -> (N, K) logarithms of probabilities."""
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def newton_step(logits: np.ndarray, move: np.ndarray, y: np.ndarray, iterations: int = 8) -> float:
    """The step a that minimises the mean cross-entropy of ``logits + a move`` against y; all (N, K).

    Newton's method on a convex function of one number; a step that does not lower the loss is halved.
    """
    def loss(a: float) -> float:
        return -float((y * log_softmax(logits + a * move)).sum())

    a, best = 0.0, loss(0.0)
    for _ in range(iterations):
        p = np.exp(log_softmax(logits + a * move))
        slope = float(((p - y) * move).sum())
        mean = (p * move).sum(1, keepdims=True)
        bend = float((p * np.square(move - mean)).sum())
        step = -slope / (bend + 1e-12 * len(y))
        for _ in range(20):
            value = loss(a + step)
            if value <= best:
                break
            step /= 2
        else:
            return a
        a, gain, best = a + step, best - value, value
        if gain <= 1e-10 * abs(best):
            break
    return a


class RandomFeatureBooster:
    """Grow a representation and a linear head on it; nothing is trained by gradient descent through layers.

    ``x_0`` is one layer of random features of the standardised input. Layer t draws random features F of ``x_t`` and of
    the input and adds ``eta A F``. Gradient: A is the ridge regression of the negative gradient ``G = r W^T`` (r what
    the head leaves, ``|G| = sqrt(N)``) on F, times the step that lowers the loss most. Greedy, for squared errors: A
    minimises ``|r - F A W|^2 + N ridge |A|^2``. Then the head is fitted anew.

    Args:
        loss: ``"cross_entropy"`` for classes, ``"mse"`` for numbers.
        layers: number of residual layers; 0 is a network of one layer of random features.
        dim: width of the representation.
        width: random features of the representation, and as many of the input.
        eta: shrinkage of every layer, in (0, 1].
        ridge: penalty of the head.
        map_ridge: penalty of the maps; None = as the head's.
        variant: ``"gradient"`` or ``"greedy"``.
        maps: of greedy boosting: a full matrix, a diagonal one or a number. The latter two add ``dim`` features of the
            representation and of the input.
        features: weights from ``"swim"`` pairs or ``"gaussian"``.
        scale: of the features; None = 0.5 of pairs, 1 of normal weights.
        seed: of the features.

    Attributes:
        losses: the mean loss on the training data of x_0 and after each layer.
    """

    def __init__(self, *, loss: Literal["cross_entropy", "mse"] = "cross_entropy", layers: int = 5, dim: int = 128,
                 width: int = 512, eta: float = 1.0, ridge: float = 1e-4, map_ridge: float | None = None,
                 variant: Literal["gradient", "greedy"] = "gradient", maps: Maps = "dense",
                 features: Literal["swim", "gaussian"] = "swim", scale: float | None = None, seed: int = 0) -> None:
        for name, value, known in (("loss", loss, ("cross_entropy", "mse")),
                                   ("variant", variant, ("gradient", "greedy")),
                                   ("features", features, ("swim", "gaussian")),
                                   ("maps", maps, ("dense", "diagonal", "scalar"))):
            if value not in known:
                raise UsageError(f"{name} must be one of {', '.join(known)}, not {value!r}.", where=name)
        if variant == "greedy" and loss != "mse":
            raise UsageError("Greedy boosting is defined for squared errors.", where="variant",
                             fix="Use variant=gradient for classes.")
        if maps != "dense" and variant != "greedy":
            raise UsageError(f"{maps} maps belong to greedy boosting.", where="maps", fix="Use variant=greedy.")
        if layers < 0 or min(dim, width) < 1 or not 0 < eta <= 1:
            raise UsageError("layers must be 0 or more, dim and width 1 or more, and eta in (0, 1].", where="rfrboost")
        if ridge < 0 or (map_ridge or 0) < 0 or (scale is not None and not scale > 0):
            raise UsageError("Penalties must not be negative, and the scale positive.", where="rfrboost")
        self.loss, self.layers, self.dim, self.width, self.eta = loss, layers, dim, width, eta
        self.ridge, self.map_ridge = ridge, ridge if map_ridge is None else map_ridge
        self.variant, self.maps, self.features = variant, maps, features
        self.scale, self.seed = scale or (0.5 if features == "swim" else 1.0), seed
        self.losses: list[float] = []

    def fit(self, x: np.ndarray, y: np.ndarray, classes: int | None = None) -> RandomFeatureBooster:
        """Fit to samples (N, d) and classes (N,), or numbers (N,) or (N, K); returns itself.

        Args:
            x: samples.
            y: class numbers for cross-entropy, numbers for squared errors.
            classes: K of cross-entropy; None = one more than the largest.

        Raises:
            DataError: shapes do not fit, or values are not finite.
        """
        x, target = self._checked(x, y, classes)
        self.mean = x.mean(0)
        deviation = x.std(0)
        self.inverse = np.where(deviation > 1e-9 * np.abs(self.mean) + 1e-30, 1 / np.maximum(deviation, 1e-30), 0.0)
        x = (x - self.mean) * self.inverse
        rng = np.random.default_rng(self.seed)
        self.start = self._draw(x, target, self.dim, rng)
        self.steps: list[Callable[[np.ndarray, np.ndarray], np.ndarray]] = []
        phi, self.head = self.start(x), Head(self.loss, self.ridge)
        self.head.fit(phi, target)
        self.losses = [self._measure(phi, target)]
        for _ in range(self.layers):
            width = self.width if self.maps == "dense" else self.dim
            layers = self._draw(phi, target, width, rng), self._draw(x, target, width, rng)
            step, added = self._map(layers, phi, x, target)
            self.steps.append(step)
            phi = phi + self.eta * added
            self.head.fit(phi, target)
            self.losses.append(self._measure(phi, target))
        return self

    def transform(self, x: np.ndarray) -> np.ndarray:
        """The representation: (M, d) -> (M, dim) float64. A row depends on no other row."""
        x = (np.asarray(x, np.float64) - self.mean) * self.inverse
        phi = self.start(x)
        for step in self.steps:
            phi = phi + self.eta * step(phi, x)
        return phi

    def predict(self, x: np.ndarray) -> np.ndarray:
        """(M, d) -> probabilities (M, K) for cross-entropy, numbers (M, K) for squared errors."""
        out = self.head(self.transform(x))
        return np.exp(log_softmax(out)) if self.loss == "cross_entropy" else out

    def _checked(self, x: np.ndarray, y: np.ndarray, classes: int | None) -> tuple[np.ndarray, np.ndarray]:
        x, y = np.asarray(x, np.float64), np.asarray(y)
        if x.ndim != 2 or not len(x) or len(x) != len(y):
            raise DataError(f"Samples {x.shape} and targets {y.shape} do not fit together.", where="x, y")
        if not np.isfinite(x).all() or not np.isfinite(y).all():
            raise DataError("Samples or targets hold NaN or infinite values.", where="x, y")
        if self.loss == "mse":
            return x, y.reshape(len(y), -1).astype(np.float64)
        count = int(y.max()) + 1 if classes is None else classes
        if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= count:
            raise DataError(f"Classes must be whole numbers (N,) from 0 to {count - 1}.", where="y")
        return x, np.eye(count)[y]

    def _draw(self, x: np.ndarray, target: np.ndarray, width: int, rng: np.random.Generator) -> RandomLayer:
        if self.features == "swim":
            return swim_layer(x, target, width, self.scale, rng)
        return gaussian_layer(x, width, self.scale, rng)

    def _map(self, layers: tuple[RandomLayer, RandomLayer], phi: np.ndarray, x: np.ndarray,
             target: np.ndarray) -> tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], np.ndarray]:
        """The residual layer, a function of representation and input, without eta, and what it adds here."""
        inner, outer = layers
        w, logits = self.head.weight, self.head(phi)
        left = target - (logits if self.loss == "mse" else np.exp(log_softmax(logits)))
        if self.maps != "dense":
            f = inner(phi) + outer(x)
            solve = sandwiched_diagonal if self.maps == "diagonal" else sandwiched_scalar
            a = solve(left, w, f, self.map_ridge)
            return lambda phi, x: a * (inner(phi) + outer(x)), a * f
        f = np.concatenate([inner(phi), outer(x)], 1)
        if self.variant == "greedy":
            a = sandwiched(left, w, f, self.map_ridge)
            return lambda phi, x: np.concatenate([inner(phi), outer(x)], 1) @ a, f @ a
        a, bias = self._gradient(f, left, w, logits, target)
        return lambda phi, x: np.concatenate([inner(phi), outer(x)], 1) @ a + bias, f @ a + bias

    def _gradient(self, f: np.ndarray, left: np.ndarray, w: np.ndarray, logits: np.ndarray,
                  target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Map and bias towards the negative gradient. The regression of r W^T is that of r, times W^T."""
        norm = np.sqrt(np.square(left @ w.T).sum())
        if not norm > 0:
            return np.zeros((f.shape[1], len(w))), np.zeros(len(w))
        centre, mean = f.mean(0), left.mean(0)
        a = ridge_map(f - centre, left - mean, len(f) * self.map_ridge)
        towards = w.T * (np.sqrt(len(f)) / norm)
        a, bias = a @ towards, (mean - centre @ a) @ towards
        move = (f @ a + bias) @ w
        if self.loss == "mse":
            length = float((left * move).sum()) / (float(np.square(move).sum()) + 1e-5 * len(f))
        else:
            length = newton_step(logits, move, target)
        return length * a, length * bias

    def _measure(self, phi: np.ndarray, target: np.ndarray) -> float:
        out = self.head(phi)
        if self.loss == "mse":
            return float(np.square(target - out).sum(1).mean())
        return -float((target * log_softmax(out)).sum()) / len(target)


def fit_chosen(make: Callable[[float], RandomFeatureBooster], x: np.ndarray, y: np.ndarray, classes: int | None = None,
               *, ridges: Sequence[float] = RIDGES, fraction: float = 0.2, seed: int = 0) -> RandomFeatureBooster:
    """Fit with the penalty that is best on a validation part of the training samples; the winner is fitted on all.

    Classes are split by class and judged by cross-entropy, numbers at random and by squared error. Where no sample can
    be held out, the middle penalty is used.

    Args:
        make: a booster of a penalty.
        x: (N, d) samples.
        y: targets.
        classes: K of cross-entropy.
        ridges: penalties tried.
        fraction: share held out.
        seed: which samples are.
    """
    y = np.asarray(y)
    classed = y.ndim == 1 and np.issubdtype(y.dtype, np.integer)
    count = classes if classes is not None or not classed else int(y.max()) + 1
    fit, held = holdout(y if classed else np.zeros(len(y), np.int64), fraction, seed)
    best, chosen = np.inf, ridges[len(ridges) // 2]
    for ridge in ridges if len(held) and len(ridges) > 1 else ():
        out = (model := make(ridge)).fit(x[fit], y[fit], count).predict(x[held])
        if model.loss == "cross_entropy":
            error = -float(np.log(np.maximum(out[np.arange(len(held)), y[held]], 1e-12)).mean())
        else:
            error = float(np.square(out - y[held].reshape(len(held), -1)).mean())
        if error < best:
            best, chosen = error, ridge
    return make(chosen).fit(x, y, count)
