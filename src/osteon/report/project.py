"""Features on a plane: two numbers a sample, for the map in the report."""

from __future__ import annotations

import numpy as np

from osteon.core.errors import UsageError

#: t-SNE compares every pair of points; beyond this many it takes minutes.
TSNE_LIMIT = 2000


def project_2d(features: np.ndarray, seed: int = 0, method: str = "pca") -> np.ndarray:
    """Place samples on a plane so that similar ones lie together.

    ``"pca"`` keeps the two directions of largest variance (exact, no randomness; each axis is turned so that its
    largest loading is positive). ``"tsne"`` (van der Maaten & Hinton 2008) keeps neighbourhoods, at most 2,000 samples:
    distances between far clusters then mean nothing.

    Args:
        features: (N, D) finite numbers.
        seed: seed of t-SNE's start.
        method: ``"pca"`` or ``"tsne"``.

    Returns:
        (N, 2) float32.
    """
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2:
        raise UsageError(f"Features must have the shape (N, D), not {x.shape}.", where="project_2d")
    if not np.isfinite(x).all():
        raise UsageError("The features contain NaN or infinity.", where="project_2d")
    if method not in ("pca", "tsne"):
        raise UsageError(f"Unknown projection {method!r}.", where="project_2d", fix="Use 'pca' or 'tsne'.")
    if method == "pca" or len(x) < 3:
        return _pca(x)
    if len(x) > TSNE_LIMIT:
        raise UsageError(f"t-SNE takes at most {TSNE_LIMIT} samples, not {len(x)}.", where="project_2d",
                         fix="Use method='pca' or pass fewer samples.")
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(x) - 1) / 3)
    # starting from PCA keeps the large-scale layout and makes the map the same every time
    fit = TSNE(2, perplexity=perplexity, init=_pca(x) / max(1e-12, float(_pca(x)[:, 0].std())) * 1e-4,
               random_state=seed)
    return fit.fit_transform(x.astype(np.float32)).astype(np.float32)


def _pca(x: np.ndarray) -> np.ndarray:
    """Scores on the first two principal axes, through whichever Gram matrix is smaller. (N, D) -> (N, 2)."""
    n, width = x.shape
    out = np.zeros((n, 2))
    if n == 0 or width == 0:
        return out.astype(np.float32)
    centred = x - x.mean(0)
    if width <= n:
        axes = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :2]
    else:
        values, left = np.linalg.eigh(centred @ centred.T)
        top = left[:, ::-1][:, :2] * np.sqrt(np.maximum(values[::-1][:2], 0))
        axes = centred.T @ top
        axes /= np.maximum(np.linalg.norm(axes, axis=0), 1e-12)
    turn = np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    scores = centred @ (axes * np.where(turn == 0, 1.0, turn))
    out[:, : scores.shape[1]] = scores
    return out.astype(np.float32)
