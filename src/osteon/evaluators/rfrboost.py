"""RFRBoost: a residual network of random features, boosted layer by layer in closed form, reads the features.

Zozoulenko et al. 2025, "Random Feature Representation Boosting", section 3.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.evaluators._inputs import Array, labelled, numbered
from osteon.parts.random_feature_boosting import RIDGES, RandomFeatureBooster, fit_chosen
from osteon.parts.regression import scale_of

CARD = Card(kind="evaluator", name="rfrboost", papers=("Random Feature Representation Boosting",), modalities=("any",),
            differs="no batch normalisation between layers (the authors' keeps no running statistics, so that a "
                    "prediction would depend on the other test samples; their classification runs leave it off); one "
                    "penalty for maps and head, chosen on a validation part of the training samples instead of 100 "
                    "trials of a tuner over all options; penalties of 0 are taken as 0; two classes have two logits "
                    "instead of one; Gaussian features have normal weights of variance 1 / d (the authors' code: "
                    "uniform ones); with several labels a sample, squared errors of 0 and 1 and scores cut to [0, 1]",
            rows=(222,), labels=True, cost="a Gram matrix of 1,024 random features a layer, and a linear fit")


class RFRBoost:
    """Score test samples by a boosted representation and its linear head.

    Classes by cross-entropy and gradient boosting; greedy boosting is least squares on 0 and 1, its scores cut to
    [0, 1] and divided by their sum.

    Args:
        layers: residual layers.
        dim: width of the representation.
        width: random features of the representation, and as many of the input.
        eta: shrinkage, in (0, 1].
        ridge: penalty of maps and head; None = chosen on a validation part.
        variant: ``"gradient"`` or ``"greedy"``.
        features: weights from ``"swim"`` pairs or ``"gaussian"``.
        fraction: share of the training samples held out to choose the penalty.
    """

    needs = "labels"

    def __init__(self, *, layers: int = 5, dim: int = 128, width: int = 512, eta: float = 1.0,
                 ridge: float | None = None, variant: Literal["gradient", "greedy"] = "gradient",
                 features: Literal["swim", "gaussian"] = "swim", fraction: float = 0.2) -> None:
        if not 0 < fraction < 1:
            raise UsageError(f"The validation share {fraction} is not between 0 and 1.", where="fraction")
        self.layers, self.dim, self.width, self.eta, self.ridge = layers, dim, width, eta, ridge
        self.variant, self.features, self.fraction = variant, features, fraction
        self._make(ridge or 0.0, multi=False, seed=0)  # bad options are named now
        #: what the last call used: ``{"ridge": ...}``
        self.chosen: dict[str, float] = {}

    def _make(self, ridge: float, *, multi: bool, seed: int) -> RandomFeatureBooster:
        loss: Literal["cross_entropy", "mse"] = "mse" if multi or self.variant == "greedy" else "cross_entropy"
        return RandomFeatureBooster(loss=loss, layers=self.layers, dim=self.dim, width=self.width, eta=self.eta,
                                    ridge=ridge, variant=self.variant, features=self.features, seed=seed)

    def __call__(self, train_x: Array, train_y: Array, test_x: Array, *, classes: int, seed: int = 0) -> np.ndarray:
        """Probabilities (M, K) for test features (M, D) from train features (N, D) and labels (N,) or (N, K)."""
        x, y, test = (v if isinstance(v, np.ndarray) else v.cpu().numpy()
                      for v in labelled(train_x, train_y, test_x, classes))
        multi = y.ndim == 2
        known = np.arange(classes) if multi else np.unique(y)
        out = np.zeros((len(test), classes))
        if not multi and len(known) == 1:
            out[:, known[0]] = 1.0
            return out
        target = y.astype(np.float64) if multi else np.searchsorted(known, y)
        if self.variant == "greedy" and not multi:
            target = np.eye(len(known))[target]
        ridges = RIDGES if self.ridge is None else (self.ridge,)
        model = fit_chosen(lambda ridge: self._make(ridge, multi=multi, seed=seed), x, target, ridges=ridges,
                           fraction=self.fraction, seed=seed)
        self.chosen = {"ridge": model.ridge}
        scores = model.predict(test)
        if model.loss == "mse":
            scores = scores.clip(0, 1)
            if not multi:
                scores = (scores + 1e-12) / (scores + 1e-12).sum(1, keepdims=True)
        out[:, known] = scores
        return out

    def regress(self, train_x: Array, train_y: Array, test_x: Array, *, seed: int = 0) -> np.ndarray:
        """Numbers (M,) for test features (M, D) from train features (N, D) and targets (N,), by squared errors."""
        x, y, test = (v if isinstance(v, np.ndarray) else v.cpu().numpy() for v in numbered(train_x, train_y, test_x))
        mean, scale = scale_of(y)
        if not np.ptp(y) > 0:
            return np.full(len(test), mean)
        model = fit_chosen(lambda ridge: self._make(ridge, multi=True, seed=seed), x, (y - mean)[:, None] / scale,
                           ridges=RIDGES if self.ridge is None else [self.ridge], fraction=self.fraction, seed=seed)
        self.chosen = {"ridge": model.ridge}
        return np.asarray(mean + scale * model.predict(test)[:, 0])
