"""Out-of-distribution scores: which inputs are unlike what a classifier on these features was fitted on.

The scores of Li et al. 2024, "MOODv2: Masked Image Modeling for Out-of-Distribution Detection", arXiv:2401.02611,
section 3: each from its own paper, named below. Higher always means more like the training data.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from osteon.core.card import Card
from osteon.core.errors import DataError, UsageError, nearest
from osteon.parts.metrics import auroc as _auroc

CARD = Card(
    kind="analysis",
    name="ood",
    papers=("MOODv2: Masked Image Modeling for Out-of-Distribution Detection",),
    modalities=("image", "sound", "series", "text", "table", "graph", "points", "volume", "video", "several"),
    differs="the classifier is a logistic regression on half of the labelled samples instead of the network's own; "
            "settings of each score are those of its own paper",
    rows=(276,),
    backbones=("tokens", "maps"),
    labels=True,
    cost="1 forward per sample",
    switch="osteon analyse RUN SOURCE --only ood --ood SOURCE",
)

#: name -> what it looks at
SCORES: dict[str, str] = {
    "msp": "largest probability (Hendrycks & Gimpel 2017)",
    "max_logit": "largest logit (Hendrycks et al. 2022)",
    "energy": "log-sum-exp of the logits (Liu et al. 2020)",
    "react": "energy with features clipped at a quantile (Sun et al. 2021)",
    "kl_matching": "closeness of the probabilities to a class's typical ones (Hendrycks et al. 2022)",
    "grad_norm": "L1 norm of the last layer's gradient towards the uniform distribution (Huang et al. 2021)",
    "mahalanobis": "distance to the nearest class mean under a shared covariance (Lee et al. 2018)",
    "residual": "length outside the principal subspace (Wang et al. 2022)",
    "vim": "energy less the scaled length outside the principal subspace (Wang et al. 2022)",
}


class OODScorer:
    """One score: fitted on training features, then applied to any.

    Args:
        kind: a name in :data:`SCORES`.
        weight: (K, D) of the classifier on the features.
        bias: (K,).
        subspace: dimensions of the principal subspace; 0 = 512 where D >= 768, else D / 2, less than D.
        quantile: of the training features, where ``react`` clips.
    """

    def __init__(self, kind: str, weight: Tensor, bias: Tensor, *, subspace: int = 0, quantile: float = 0.99) -> None:
        if kind not in SCORES:
            raise UsageError(f"There is no score called '{kind}'.{nearest(kind, SCORES)}", where="kind",
                             fix=f"Scores: {', '.join(SCORES)}.")
        self.kind, self.weight, self.bias = kind, weight.double(), bias.double()
        width = weight.shape[1]
        self.subspace = subspace or min(width - 1, 512 if width >= 768 else max(1, width // 2))
        self.quantile = quantile

    def fit(self, x: Tensor, y: Tensor | None = None) -> OODScorer:
        """Look at training features (N, D); ``mahalanobis`` also needs their classes (N,)."""
        x = x.double()
        logits = self._logits(x)
        if self.kind == "react":
            flat = x.reshape(-1)
            rank = min(flat.numel() - 1, int(self.quantile * (flat.numel() - 1)))
            self._clip = float(flat.kthvalue(rank + 1).values)
        elif self.kind == "kl_matching":
            p, told = logits.softmax(1), logits.argmax(1)
            # A class that is never predicted has no template; an empty one would divide by zero.
            self._templates = torch.stack([p[told == c].mean(0) for c in told.unique()])
        elif self.kind == "mahalanobis":
            if y is None:
                raise DataError("The Mahalanobis score needs the classes of the training samples.", where="y")
            self._means = torch.stack([x[y == c].mean(0) for c in y.unique()])
            centred = torch.cat([x[y == c] - x[y == c].mean(0) for c in y.unique()])
            self._precision = torch.linalg.pinv(centred.T @ centred / len(x), hermitian=True)
        elif self.kind in ("residual", "vim"):
            self._origin = -torch.linalg.pinv(self.weight) @ self.bias
            shifted = x - self._origin
            _, vectors = torch.linalg.eigh(shifted.T @ shifted / len(x))
            self._outside = vectors[:, :x.shape[1] - self.subspace]  # the weakest directions
            lengths = (shifted @ self._outside).norm(dim=1)
            self._scale = float(logits.max(1).values.mean() / lengths.mean().clamp(min=1e-12))
        return self

    def score(self, x: Tensor) -> Tensor:
        """Scores (M,) of features (M, D); higher = more like the training data."""
        x = x.double()
        logits = self._logits(x)
        if self.kind == "msp":
            return logits.softmax(1).max(1).values
        if self.kind == "max_logit":
            return logits.max(1).values
        if self.kind == "energy":
            return logits.logsumexp(1)
        if self.kind == "react":
            return self._logits(x.clamp(max=self._clip)).logsumexp(1)
        if self.kind == "kl_matching":
            p = logits.softmax(1)
            gap = torch.xlogy(p, p).sum(1, keepdim=True) - p @ self._templates.clamp(min=1e-300).log().T
            return -gap.min(1).values
        if self.kind == "grad_norm":
            # d/dW of sum_k -log p_k is (K p - 1) x^T: the L1 norm of an outer product is the product of L1 norms.
            return (logits.softmax(1) * logits.shape[1] - 1).abs().sum(1) * x.abs().sum(1)
        if self.kind == "mahalanobis":
            gap = x[:, None] - self._means[None]
            return -torch.einsum("mkd,de,mke->mk", gap, self._precision, gap).min(1).values
        length = ((x - self._origin) @ self._outside).norm(dim=1)
        return -length if self.kind == "residual" else logits.logsumexp(1) - self._scale * length

    def _logits(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Probability that a sample of the distribution scores above one from outside; a tie counts half."""
    scores = torch.cat([inside, outside]).double().cpu().numpy()
    return _auroc(np.stack([-scores, scores], 1), np.r_[np.ones(len(inside), int), np.zeros(len(outside), int)])


def false_positives(inside: Tensor, outside: Tensor, at: float = 0.95) -> float:
    """Share of outside samples above the threshold that ``at`` of the inside ones pass (FPR95); lower is better."""
    ranked = inside.sort(descending=True).values
    threshold = ranked[min(len(ranked) - 1, max(0, int(np.ceil(at * len(ranked))) - 1))]
    return float((outside >= threshold).double().mean())
