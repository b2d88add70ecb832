"""Projection and prediction heads."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from osteon.parts.norm import BatchNorm


def mlp(widths: tuple[int, ...], *, norm: Literal["batch", "layer", "none"] = "batch", last_norm: bool = False,
        last_shift: bool = False, bias: bool | None = None, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """A projection head: linear, norm, activation, repeated; the last layer linear, by choice normalised.

    Args:
        widths: input width, hidden widths, output width.
        norm: normalisation of the hidden layers.
        last_norm: BatchNorm on the output.
        last_shift: whether that last BatchNorm has a scale and a shift.
        bias: bias of the hidden linear layers; by default present only without normalisation.
        activation: non-linearity between layers.
    """
    layers: list[nn.Module] = []
    pairs = list(zip(widths[:-1], widths[1:], strict=True))
    hidden_bias = (norm == "none") if bias is None else bias
    for a, b in pairs[:-1]:
        layers.append(nn.Linear(a, b, bias=hidden_bias))
        if norm == "batch":
            layers.append(BatchNorm(b))
        elif norm == "layer":
            layers.append(nn.LayerNorm(b))
        layers.append(activation())
    a, b = pairs[-1]
    layers.append(nn.Linear(a, b, bias=not last_norm))
    if last_norm:
        layers.append(BatchNorm(b, affine=last_shift))
    return nn.Sequential(*layers)


class L2Norm(nn.Module):
    """Scale every row to unit length. (..., D) -> (..., D)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return rows of unit Euclidean length."""
        return F.normalize(x, dim=-1)
