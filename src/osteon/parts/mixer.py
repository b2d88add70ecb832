"""Mixing by small MLPs along one side at a time, each behind a learned softmax gate: the layers of TSMixer and TTM.

Ekambaram et al. 2023, "TSMixer: Lightweight MLP-Mixer Model for Multivariate Time Series Forecasting", and Ekambaram et
al. 2024, "Tiny Time Mixers". Shape letters: B batch, C channels, P patches, D width of a patch's vector.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Mix(nn.Module):
    """``x + gate(mlp(norm(x)))`` along one side of (B, C, P, D); the gate is ``y * softmax(W y + b)``.

    Args:
        dim: D, over which values are normalised.
        side: which side is mixed: 1 the channels, 2 the patches, 3 the features.
        size: length of that side.
        expansion: width of the MLP's hidden layer over ``size``.
        dropout: rate of dropout after both layers of the MLP.
    """

    def __init__(self, dim: int, side: int, size: int, expansion: float = 2.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.side = side
        self.norm = nn.LayerNorm(dim)
        self.fc1, self.fc2 = nn.Linear(size, int(size * expansion)), nn.Linear(int(size * expansion), size)
        self.gate = nn.Linear(size, size)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, P, D) -> (B, C, P, D)."""
        y = self.norm(x).transpose(self.side, 3)
        y = self.drop(self.fc2(self.drop(F.gelu(self.fc1(y)))))
        y = y * self.gate(y).softmax(-1)
        return x + y.transpose(self.side, 3)


class MixerLayer(nn.Sequential):
    """Mix channels (only where there are several to mix), then patches, then features: (B, C, P, D) -> (B, C, P, D).

    Args:
        patches: P.
        dim: D.
        channels: C, or 1: channels stay apart.
        expansion: as in :class:`Mix`.
        dropout: as in :class:`Mix`.
    """

    def __init__(self, patches: int, dim: int, channels: int = 1, expansion: float = 2.0, dropout: float = 0.0) -> None:
        sides = [(1, channels)] if channels > 1 else []
        super().__init__(*(Mix(dim, side, size, expansion, dropout)
                           for side, size in [*sides, (2, patches), (3, dim)]))
