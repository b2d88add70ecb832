"""The change of a weight's singular values, which SVFit and VectorFit train."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.parts.reparam import Change, Layer, as_matrix


def rank_for(values: Tensor, energy: float) -> int:
    """The least number of leading singular values (R,) whose squares are at least a share ``energy`` of all squares."""
    squares = values.double().square()
    total = squares.sum()
    if total == 0:
        return 1
    shares = squares.cumsum(0) / total
    # Rounding may leave the last share just below 1.
    return min(len(values), int((shares < energy - 1e-12).sum()) + 1)


class SingularValues(Change):
    """``dW = U_r diag(s) V_r^T`` with trained ``s`` (r,), which starts at zero; optionally a trained shift of the bias.

    Args:
        layer: whose weight is decomposed; a kernel is a matrix (out, in * height * width).
        rank: fixed r, or 0 to take it from ``energy``.
        energy: share of the squared singular values that the first r must reach.
        bias: train the bias too, where the layer has one.
    """

    left: Tensor
    right: Tensor
    held: Tensor

    def __init__(self, layer: Layer, *, rank: int = 0, energy: float = 1.0, bias: bool = False) -> None:
        super().__init__()
        weight, shape = as_matrix(layer.weight), layer.weight.shape
        u, s, v = torch.linalg.svd(weight.float(), full_matrices=False)
        r = min(rank, len(s)) if rank else rank_for(s, energy)
        self.shape = shape
        self.register_buffer("left", u[:, :r].to(weight.dtype).contiguous(), persistent=False)
        self.register_buffer("right", v[:r].to(weight.dtype).contiguous(), persistent=False)
        self.shift = nn.Parameter(torch.zeros(r, dtype=weight.dtype, device=weight.device))
        self.offset = nn.Parameter(torch.zeros_like(layer.bias)) if bias and layer.bias is not None else None
        # Which of the two vectors rests: it then gets no gradient at all, so that the optimiser leaves it alone too.
        self.register_buffer("held", torch.zeros(2, dtype=torch.bool))

    def vectors(self) -> list[nn.Parameter]:
        """What trains: the shift of the singular values and, if asked for, that of the bias."""
        return [self.shift] if self.offset is None else [self.shift, self.offset]

    def values(self) -> Tensor:
        """The shift of the singular values, (r,), without gradient while it rests."""
        return self.shift.detach() if self.held[0] else self.shift

    def bias_delta(self) -> Tensor | None:
        """The shift of the bias, (out,), without gradient while it rests."""
        return self.offset.detach() if self.offset is not None and self.held[1] else self.offset

    def weight_delta(self) -> Tensor:
        """U_r diag(s) V_r^T in the shape of the weight."""
        return ((self.left * self.values()) @ self.right).reshape(self.shape)

    def respond(self, x: Tensor, base: Layer) -> Tensor | None:
        """``U_r (s * V_r^T x)``: r numbers a position instead of a whole weight."""
        if isinstance(base, nn.Linear):
            return F.linear(F.linear(x, self.right) * self.values(), self.left)
        if base.groups > 1:
            return None
        filters = self.right.reshape(-1, *self.shape[1:])
        scaled = base._conv_forward(x, filters, None) * self.values()[:, None, None]
        return F.conv2d(scaled, self.left[:, :, None, None])
