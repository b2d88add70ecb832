"""GraNd: keep the samples whose loss pulls hardest at the weights early in training.

Paul, Ganguli & Dziugaite 2021, "Deep Learning on a Data Diet", arXiv:2107.07075, definition 2.1. At initialisation the
score did not reproduce: Kirsch 2023, "Does 'Deep Learning on a Data Diet' reproduce?", arXiv:2303.14753.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from osteon.core.card import Card
from osteon.parts.selection import Pool, Selection
from osteon.parts.tracing import traced
from osteon.selectors._early import Early

CARD = Card(kind="selector", name="grand",
            papers=("Deep Learning on a Data Diet: Finding Important Examples Early in Training",
                    "Does \"Deep Learning on a Data Diet\" reproduce? Overall yes, but GraNd at Initialization does "
                    "not"),
            modalities=("image", "sound", "series", "text", "table", "graph", "points", "volume", "video", "several"),
            differs="scored after training has begun, not at initialisation, where the paper's result did not "
                    "reproduce (epochs=0 is allowed and warned of); the rank correlation with the norm of the input "
                    "is printed as a baseline; the scoring networks train by osteon's supervised recipe",
            rows=(232,), labels=True, cost="10 short trainings and one backward pass a sample in each")


def gradient_norm(network: nn.Module, x: Tensor, y: Tensor, *, chunk: int = 32) -> Tensor:
    """Euclidean length of each sample's cross-entropy gradient over all weights. (B, C, *extent), (B,) -> (B,).

    Args:
        network: samples -> logits, in eval mode.
        x: normalised samples.
        y: class numbers.
        chunk: samples whose gradients are held at once.
    """
    weights = {name: p.detach() for name, p in network.named_parameters()}
    buffers = {name: b.detach() for name, b in network.named_buffers()}

    def loss(params: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(network, {**params, **buffers}, (image[None],))
        return F.cross_entropy(logits.float(), label[None])

    def squared(image: Tensor, label: Tensor) -> Tensor:
        slopes = grad(loss)(weights, image, label)
        return torch.stack([g.double().square().sum() for g in slopes.values()]).sum()

    with sdpa_kernel(SDPBackend.MATH), traced():  # the fused attention kernels have no batched form
        return vmap(squared, chunk_size=chunk)(x, y.long()).sqrt()


class GraNd(Early):
    """Keep the samples with the largest gradient norm early in training, averaged over several networks.

    Args:
        runs: classifiers trained from different random weights.
        epochs: passes over the pool before scoring; 0 scores at initialisation, which does not reproduce.
        keep: ``"hardest"`` keeps the highest scores, ``"easiest"`` the lowest.
        offset: share of all samples left out at that end first; wrong labels score highest.
        chunk: samples whose gradients are held at once.
    """

    def __init__(self, *, runs: int = 10, epochs: float = 20.0, keep: Literal["hardest", "easiest"] = "hardest",
                 offset: float = 0.0, chunk: int = 32) -> None:
        super().__init__(runs=runs, epochs=epochs, keep=keep, offset=offset)
        self.chunk = chunk

    def __call__(self, pool: Pool, budget: int | None, *, seed: int = 0) -> Selection:
        """Rows with the highest (or lowest) mean gradient norm, highest (lowest) first."""
        sizes: list[np.ndarray] = []

        def score(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            sizes.append(x.detach().flatten(1).norm(dim=1).cpu().numpy())
            return gradient_norm(network, x, y, chunk=self.chunk)

        found, mean = self.select(pool, budget, seed, score, "grand")
        size = np.concatenate(sizes)[:pool.count]
        alike = _rank_correlation(mean, size)
        notes = [*found.notes, f"baseline: rank correlation with the norm of the input is {alike:+.2f}"]
        if not self.epochs:
            notes.insert(0, "WARNING: at initialisation this score did not reproduce; it is no better than random "
                            "(Kirsch 2023)")
        return replace(found, notes=notes)


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, equal values by row; 0 where one of them is constant."""
    ranks = [np.argsort(np.argsort(v, kind="stable"), kind="stable").astype(float) for v in (a, b)]
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(np.stack(ranks))[0, 1])
