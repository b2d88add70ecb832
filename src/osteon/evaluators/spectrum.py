"""Spectrum: how the variance of features is spread over their directions, and whether they have collapsed.

Garrido et al. 2023, "RankMe", arXiv:2210.02885, equation 1; Chen & He 2021, "SimSiam", arXiv:2011.10566, section 4.1;
Wang & Isola 2020, arXiv:2005.10242, section 4.1.2. The numbers themselves are those of the evaluator ``label_free``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from osteon.core.card import Card

CARD = Card(
    kind="analysis",
    name="spectrum",
    papers=("RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised Representations by Their Rank",
            "Exploring Simple Siamese Representation Learning",
            "Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere"),
    modalities=("image", "sound", "series", "text", "table", "graph", "points", "volume", "video", "several"),
    differs="RankMe compares runs and has no threshold; the one shown for the effective rank, and that for collapse, "
            "are osteon's",
    backbones=("tokens", "maps", "nodes"),
    cost="1 forward per sample and a singular value decomposition",
    switch="osteon analyse RUN SOURCE --only spectrum",
)


def variance_shares(x: np.ndarray) -> np.ndarray:
    """Share of the variance in each principal direction of features (N, D), largest first: (min(N, D),), sum 1."""
    singular = np.linalg.svd((x - x.mean(0)).astype(np.float64), compute_uv=False)
    return singular**2 / max(float((singular**2).sum()), 1e-300)


def directions_for(shares: np.ndarray, levels: Sequence[float]) -> list[int]:
    """How many of the strongest directions hold each share of the variance."""
    return [int(np.searchsorted(shares.cumsum(), level - 1e-12) + 1) for level in levels]
