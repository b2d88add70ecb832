"""Batch normalisation that sees the whole global batch and, if asked, only visible positions.

Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 1. Statistics over visible positions only: Tian et al. 2023 (SparK),
arXiv:2301.03580, section 3.1.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from osteon.core.errors import UsageError

#: Values of a feature from which careless sums are avoided: below, they are right to seven digits.
MANY = 2048


class _SumOverRanks(torch.autograd.Function):
    """Sum of a tensor over all ranks. What every rank's loss owes to the sum flows back to every rank."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad)
        return grad


class _ByRows(torch.autograd.Function):
    """Training-mode batch norm of rows (R, C) by sums that do not lose digits.

    PyTorch's own CPU kernel for this memory layout (rows, and images in channels_last) adds the R values of a feature
    one after the other in float32; with 100,000 of them that is wrong by 1e-5, which the backward passes of a deep
    network turn into one per cent of the gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        mean = x.sum(0) / len(x)
        centred = x - mean
        var = centred.square().sum(0) / len(x)
        scale = torch.rsqrt(var + eps)
        normal = centred.mul_(scale)
        ctx.save_for_backward(normal, scale, weight)
        ctx.mark_non_differentiable(mean, var)
        return torch.addcmul(bias, normal, weight), mean, var

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        normal, scale, weight = ctx.saved_tensors
        g, count = grads[0], len(normal)
        to_bias, to_weight = g.sum(0), (g * normal).sum(0)
        to_x = (g - to_bias / count).addcmul_(normal, to_weight / count, value=-1.0).mul_(weight * scale)
        return to_x, to_weight, to_bias, None


class _AcrossRanks(torch.autograd.Function):
    """Training-mode batch norm by the statistics of all ranks, in float32 or wider, with two messages a pass forward
    and one backward. Gradients of x are those of the sum of every rank's loss; of weight and bias, this rank's share.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        axes, shape = (0, *range(2, x.dim())), (1, -1, *[1] * (x.dim() - 2))
        sums = torch.cat([x.sum(axes), x.new_full((1,), x.numel() // x.shape[1])])
        dist.all_reduce(sums)
        mean, count = sums[:-1] / sums[-1], sums[-1].clone()
        normal = x - mean.view(shape)
        var = normal.square().sum(axes)
        dist.all_reduce(var)
        var = var / count
        scale = torch.rsqrt(var + eps)
        normal.mul_(scale.view(shape))
        ctx.save_for_backward(normal, scale, weight, count)
        ctx.mark_non_differentiable(mean, var, count)
        return torch.addcmul(bias.view(shape), normal, weight.view(shape)), mean, var, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (normal, scale, weight, count), g = ctx.saved_tensors, grads[0]
        axes, shape = (0, *range(2, g.dim())), (1, -1, *[1] * (g.dim() - 2))
        to_bias, to_weight = g.sum(axes), (g * normal).sum(axes)
        shared = torch.cat([to_bias, to_weight])
        dist.all_reduce(shared)
        of_bias, of_weight = (shared / count).view(2, *shape)
        to_x = (g - of_bias).addcmul_(normal, of_weight, value=-1.0).mul_((weight * scale).view(shape))
        return to_x, to_weight, to_bias, None


def distributed() -> bool:
    """Whether more than one process trains together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_ranks(x: Tensor) -> Tensor:
    """Differentiable sum of ``x`` (any shape, the same on every rank) over all ranks; the identity on one process."""
    return _SumOverRanks.apply(x) if distributed() else x


class BatchNorm(nn.Module):
    """Batch normalisation whose training statistics cover all ranks, on any device.

    The feature axis is the last one of (B, C) and (B, N, C) inputs and the second of (B, C, H, W) and (B, C, D, H, W).
    On one process it is PyTorch's own batch norm. Parameter and buffer names are PyTorch's, so weights interchange.

    Args:
        channels: number of features C.
        eps: added to the variance.
        momentum: weight of the new statistics in the running ones.
        affine: learn a scale per feature.
        shift: learn an offset per feature; None means the same as ``affine``.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, *, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True,
                 shift: bool | None = None) -> None:
        super().__init__()
        self.channels, self.eps, self.momentum = channels, eps, momentum
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if (affine if shift is None else shift) else None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(self, x: Tensor, where: Tensor | None = None) -> Tensor:
        """Normalise per feature; the output has the shape of ``x``.

        Args:
            x: (B, C), (B, N, C), (B, C, H, W) or (B, C, D, H, W).
            where: bool, True = visible: (B,), (B, N), (B, H, W) or (B, D, H, W) respectively. Hidden positions count in
                no statistic and come out as zero.
        """
        axis = 1 if x.dim() >= 4 else x.dim() - 1
        if x.dim() not in (2, 3, 4, 5) or x.shape[axis] != self.channels:
            raise UsageError(f"BatchNorm over {self.channels} features got a tensor of shape {tuple(x.shape)}.",
                             fix="Expected (B, C), (B, N, C), (B, C, H, W) or (B, C, D, H, W).")
        if where is None:
            if x.dim() != 3:
                return self._normalise(x)
            return self._normalise(x.reshape(-1, self.channels)).reshape(x.shape)
        return self._visible(x, where)

    def extra_repr(self) -> str:
        """Settings shown by ``print``."""
        return f"{self.channels}, eps={self.eps}, scale={self.weight is not None}, shift={self.bias is not None}"

    def _visible(self, x: Tensor, where: Tensor) -> Tensor:
        """Normalise the rows of visible positions alone and put zeros elsewhere."""
        last = x.movedim(1, -1) if x.dim() >= 4 else x
        if where.shape != last.shape[:-1] or where.dtype != torch.bool:
            raise UsageError(f"where must be a bool tensor of shape {tuple(last.shape[:-1])}.",
                             where=f"{where.dtype} {tuple(where.shape)}")
        index = where.reshape(-1).nonzero()[:, 0]
        flat = last.reshape(-1, self.channels)
        rows = self._normalise(flat.index_select(0, index))
        out = rows.new_zeros(flat.shape).index_copy(0, index, rows).reshape(last.shape)
        return out.movedim(-1, 1) if x.dim() >= 4 else out

    def _normalise(self, x: Tensor) -> Tensor:
        """(R, C), (B, C, H, W) or (B, C, D, H, W) with every position visible."""
        if self.training:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
            if distributed():
                return self._over_ranks(x)
            if x.numel() <= self.channels:
                self._refuse(x.numel() // self.channels)
            if x.device.type == "cpu" and x.dtype == torch.float32 and _by_rows(x):
                return self._precisely(x)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training,
                            self.momentum, self.eps)

    def _precisely(self, x: Tensor) -> Tensor:
        """Training-mode normalisation of what PyTorch's CPU kernel would sum carelessly."""
        rows = x.movedim(1, -1).reshape(-1, self.channels) if x.dim() >= 4 else x
        weight = x.new_ones(self.channels) if self.weight is None else self.weight
        bias = x.new_zeros(self.channels) if self.bias is None else self.bias
        out, mean, var = _ByRows.apply(rows, weight, bias, self.eps)
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_((var * (len(rows) / (len(rows) - 1))).to(self.running_var.dtype), self.momentum)
        if x.dim() == 2:
            return out
        return out.view(x.shape[0], *x.shape[2:], -1).movedim(-1, 1)

    def _over_ranks(self, x: Tensor) -> Tensor:
        """Training-mode normalisation with the statistics of the global batch (two passes, in float32 or wider)."""
        with torch.autocast(x.device.type, enabled=False):
            wide = x if x.dtype == torch.float64 else x.float()
            weight = wide.new_ones(self.channels) if self.weight is None else self.weight.to(wide.dtype)
            bias = wide.new_zeros(self.channels) if self.bias is None else self.bias.to(wide.dtype)
            out, mean, var, count = _AcrossRanks.apply(wide, weight, bias, self.eps)
        if x.numel() <= self.channels and count <= 1:  # the same on every rank, so that all of them stop here
            self._refuse(int(count))
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            unbiased = var * (count / (count - 1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        return out.to(x.dtype)

    def _refuse(self, count: int) -> None:
        raise UsageError(f"Batch normalisation needs at least two values per feature to train; it got {count}.",
                         fix="Use a larger batch, larger images, or fewer hidden positions.")


def _by_rows(x: Tensor) -> bool:
    """Whether the values of a feature lie apart in memory and are many."""
    if x.dim() == 2:
        return len(x) >= MANY
    layout = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    return x.numel() // x.shape[1] >= MANY and x.is_contiguous(memory_format=layout) and not x.is_contiguous()
