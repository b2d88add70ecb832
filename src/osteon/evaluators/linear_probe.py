"""Linear probe: a linear classifier on frozen features; the usual measure of what features make easy to read.

Alain & Bengio 2017, "Understanding intermediate layers using linear classifier probes", arXiv:1610.01644, section 3;
the closed form is Hoerl & Kennard's of 1970.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.evaluators._inputs import Array, labelled_rows, numbered_rows, one_hot, validation_quality
from osteon.evaluators._logistic import Logistic
from osteon.evaluators._ridge import BLOCK, Affine, Moments, RidgePath, fit_numbers, solve_moments, within
from osteon.parts.regression import scale_of
from osteon.parts.rows import OneHot, Rows
from osteon.parts.subsets import holdout

CARD = Card(kind="evaluator", name="linear_probe",
            papers=("Understanding intermediate layers using linear classifier probes",
                    "Ridge Regression: Biased Estimation for Nonorthogonal Problems"), modalities=("any",),
            differs="an exact fit on cached features (closed-form ridge, or L-BFGS) instead of epochs of SGD with "
                    "augmentation; features are standardised by training statistics; the strength of the penalty is "
                    "chosen on a validation part of the training data, never on test; numbers are predicted by the "
                    "same ridge regression",
            labels=True, cost="one N x D x D matrix product and one D x D eigendecomposition")

#: Ridge: penalty / N on standardised features, whose mean eigenvalue is 1.
RIDGE_GRID = tuple(float(v) for v in np.logspace(-6, 2, 17))
#: L-BFGS: inverse strength C, strongest penalty first so that each fit starts from a smoother one.
C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
#: Training rows from which one validation part is enough to choose a penalty by.
MANY = 2000
TEMPERATURES = tuple(float(v) for v in np.logspace(-2, 0.5, 21))


class LinearProbe:
    """Score test samples by a linear classifier fitted to frozen features.

    Features are standardised with the mean and standard deviation of the TRAINING samples only, and there is a bias.
    The penalty is chosen on a stratified validation part of the training samples (below 2,000 of them, on the average
    of five such parts), then the classifier is fitted again on all of them.

    ``solver="ridge"``: least squares on 0/1 labels in closed form, the whole grid of penalties from one
    eigendecomposition; with fewer samples than features the N x N matrix takes the place of the D x D one.
    Memory-mapped features are read in blocks and only their moments are kept.
    ``solver="lbfgs"``: logistic regression, one fit a penalty. ``solver="auto"``: ridge, unless the features are so
    narrow (fewer than 4 a class, one label a sample) that least squares hides classes lying between others; the rule
    looks at width and classes only, so a label-budget curve has one solver throughout.

    Args:
        solver: ``"auto"``, ``"ridge"`` or ``"lbfgs"``.
        fraction: share of the training data held out to choose the penalty.
        strength: fixed penalty instead of the choice: ridge, penalty / N on standardised features; L-BFGS, 1 / C.
        iterations: most L-BFGS iterations for one penalty.
    """

    needs = "labels"

    def __init__(self, *, solver: str = "auto", fraction: float = 0.1, strength: float | None = None,
                 iterations: int = 200) -> None:
        if solver not in ("auto", "ridge", "lbfgs"):
            raise UsageError(f"There is no solver {solver!r}.", where="solver", fix="Use auto, ridge or lbfgs.")
        if not 0 < fraction < 1:
            raise UsageError(f"The validation share {fraction} is not between 0 and 1.", where="fraction")
        if strength is not None and not strength > 0:
            raise UsageError(f"The penalty must be positive, not {strength}.", where="strength")
        if iterations < 1:
            raise UsageError(f"At least one iteration is needed, not {iterations}.", where="iterations")
        self.solver, self.fraction, self.strength, self.iterations = solver, fraction, strength, iterations
        #: what the last call used: ``{"solver": ..., "strength": ..., "temperature": ...}``
        self.chosen: dict[str, float | str] = {}

    def __call__(self, train_x: Array, train_y: Array, test_x: Array, *, classes: int, seed: int = 0) -> np.ndarray:
        """Probabilities (M, K) for test features (M, D) from train features (N, D) and labels (N,) or (N, K).

        Ridge scores become probabilities by a softmax (multi-label: a sigmoid about 1/2) whose temperature is chosen
        on the validation part; it does not change which class is highest.
        """
        x, y, test = labelled_rows(train_x, train_y, test_x, classes)
        solver = self._resolve(x.shape[1], classes, y.ndim == 2)
        parts = self._validation_parts(y, seed)
        if solver == "ridge":
            model, strength, temperature = _fit_ridge(x, y, classes, parts, self.strength)
            scores = _probabilities(model(test), temperature, y.ndim == 2)
        else:
            model, strength = _fit_lbfgs(x[:], y, classes, parts, self.strength, self.iterations)
            temperature, logits = 1.0, model(test)
            scores = torch.sigmoid(logits) if y.ndim == 2 else torch.softmax(logits, 1)
        self.chosen = {"solver": solver, "strength": strength, "temperature": temperature}
        return scores.cpu().numpy()

    def regress(self, train_x: Array, train_y: Array, test_x: Array, *, seed: int = 0) -> np.ndarray:
        """Numbers (M,) for test features (M, D) from train features (N, D) and targets (N,), by ridge regression.

        The penalty has the least squared error on training samples that did not fit it: each of five parts predicted
        from the other four, or from 2,000 samples on one part of a tenth. Features that are asked for are cut to what
        was seen of them in training and a deviation beyond, so that a rare one does not lead far out.
        """
        x, y, test = numbered_rows(train_x, train_y, test_x)
        mean, scale = scale_of(y)
        if not np.ptp(y) > 0:
            return np.full(len(test), mean)
        target = torch.from_numpy((y - mean) / scale).float().to(x.device)[:, None]
        grid = RIDGE_GRID if self.strength is None else (self.strength,)
        model, strength = fit_numbers(x, target, grid, folds=1 if len(y) >= MANY else min(5, len(y)), seed=seed)
        self.chosen = {"solver": "ridge", "strength": strength}
        return np.asarray(mean + scale * model(within(x, test))[:, 0].double().cpu().numpy())

    def _resolve(self, width: int, classes: int, multi: bool) -> str:
        if self.solver != "auto":
            return self.solver
        return "lbfgs" if not multi and classes > 2 and width < 4 * classes else "ridge"

    def _validation_parts(self, y: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """(fit, held) row numbers; five draws where one part would be too small to choose by, none if impossible."""
        repeats = 1 if len(y) >= MANY else 5
        parts = [holdout(y, self.fraction, seed * repeats + r) for r in range(repeats)]
        return [p for p in parts if len(p[1])]


def _probabilities(scores: Tensor, temperature: float, multi: bool) -> Tensor:
    """Regression outputs, near 0 or 1, as probabilities with the same order."""
    return torch.sigmoid((scores - 0.5) / temperature) if multi else torch.softmax(scores / temperature, 1)


@dataclass(frozen=True)
class _Held:
    """A validation part, x (V, D) and y (V,) or (V, K), beside the classifiers fitted without it."""

    path: RidgePath
    x: Rows
    y: np.ndarray
    classes: int

    def scores(self, strengths: Sequence[float]) -> Iterator[tuple[list[Tensor], np.ndarray]]:
        """Scores (b, K) of every strength and the labels, a block of rows at a time."""
        model = self.path.solve_path(strengths)
        size = max(1, min(BLOCK, 2**24 // (len(strengths) * self.classes)))
        for i, block in enumerate(self.x.split(size)):
            yield list(model(block).split(self.classes, dim=1)), self.y[i * size:(i + 1) * size]


def _fit_ridge(x: Rows, y: np.ndarray, classes: int, parts: list[tuple[np.ndarray, np.ndarray]],
               fixed: float | None) -> tuple[Affine, float, float]:
    """Classifier on all rows, penalty and temperature. Without a validation part: penalty 1 (the mean eigenvalue)."""
    hot, shift, everything = OneHot(y, classes, x.device), x.mean(), torch.arange(len(x))
    grid = RIDGE_GRID if fixed is None else (fixed,)
    held_parts: list[_Held] = []
    total: Moments | None = None
    for fit, held in parts:
        fit_rows, held_rows = torch.from_numpy(fit), torch.from_numpy(held)
        moments = None
        if len(fit) >= x.shape[1]:
            moments = Moments.of(x, hot, shift, fit_rows)
            if total is None:
                total = moments + Moments.of(x, hot, shift, held_rows)
        held_parts.append(_Held(RidgePath(x, hot, fit_rows, shift, moments), x.subset(held), y[held], classes))
    best, temperature = _choose_ridge(held_parts, grid)
    strength = 1.0 if not parts and fixed is None else grid[best]
    if total is not None:
        return solve_moments(total, shift, strength), strength, temperature
    return RidgePath(x, hot, everything, shift).solve(strength), strength, temperature


def _choose_ridge(parts: Sequence[_Held], grid: Sequence[float]) -> tuple[int, float]:
    """Number of the best penalty and the likeliest temperature for it."""
    if not parts:
        return 0, 0.25  # half-way between sure and unsure for outputs near 0 and 1
    quality = np.zeros((len(grid), 2))
    for part in parts:
        for scores, y in part.scores(grid):
            share = len(y) / len(part.y) / len(parts)
            quality += share * np.array([validation_quality(s.cpu().numpy(), y) for s in scores])
    best = max(range(len(quality)), key=lambda i: tuple(quality[i]))
    surprise = np.zeros(len(TEMPERATURES))
    for part in parts:
        for scores, y in part.scores((grid[best],)):
            surprise += [_surprise(scores[0].cpu(), y, t) for t in TEMPERATURES]
    return best, TEMPERATURES[int(surprise.argmin())]


def _surprise(scores: Tensor, y: np.ndarray, temperature: float) -> float:
    """Minus the log likelihood of labels, summed."""
    hot, multi = one_hot(y, scores.shape[1]), y.ndim == 2
    p = _probabilities(scores.double(), temperature, multi).clamp(1e-12, 1 - 1e-12)
    return -float((hot * p.log() + ((1 - hot) * (1 - p).log() if multi else 0)).sum())


def _fit_lbfgs(x: Tensor, y: np.ndarray, classes: int, parts: list[tuple[np.ndarray, np.ndarray]],
               fixed: float | None, iterations: int) -> tuple[Affine, float]:
    """Classifier on all rows and its penalty 1 / C. Without a validation part: C = 1."""
    if fixed is not None or not parts:
        strength = 1.0 if fixed is None else fixed
        return Logistic(x, y, classes, iterations).fit(1 / strength), strength
    quality = []
    for fit, held in parts:
        path = Logistic(x[torch.from_numpy(fit)], y[fit], classes, iterations)
        row = []
        for c in C_GRID:
            logits = path.fit(c)(x[torch.from_numpy(held)])
            p = torch.sigmoid(logits) if y.ndim == 2 else torch.softmax(logits, 1)
            row.append(validation_quality(p.cpu().numpy(), y[held]))
        quality.append(row)
    mean = np.mean(quality, axis=0)
    best = C_GRID[max(range(len(C_GRID)), key=lambda i: tuple(mean[i]))]
    return Logistic(x, y, classes, iterations).fit(best), 1 / best
