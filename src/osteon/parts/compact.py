"""Layers that are smaller than the ones they stand for: two thin factors, 8-bit codes, packed codes with a repair."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.core.errors import UsageError
from osteon.parts.reparam import Layer

Form = Literal["channel", "spatial"]


# -- low rank ----------------------------------------------------------------------------------------------------


def thin_matrix(weight: Tensor, form: Form = "channel") -> Tensor:
    """The matrix of a weight whose rank two thin layers share.

    Linear (out, in) as it is; kernel (N, C, kh, kw) as (N, C kh kw) for ``channel``, (C kh, N kw) for ``spatial``.
    """
    if weight.dim() == 2 or form == "channel":
        return weight.flatten(1)
    n, c, kh, kw = weight.shape
    return weight.permute(1, 2, 0, 3).reshape(c * kh, n * kw)


def fat_weight(matrix: Tensor, shape: torch.Size, form: Form = "channel") -> Tensor:
    """The inverse of :func:`thin_matrix`."""
    if len(shape) == 2 or form == "channel":
        return matrix.reshape(shape)
    n, c, kh, kw = shape
    return matrix.reshape(c, kh, n, kw).permute(2, 0, 1, 3).contiguous()


def thin_cost(layer: Layer, form: Form = "channel") -> int:
    """Numbers one unit of rank costs: rows plus columns of :func:`thin_matrix`."""
    rows, columns = thin_matrix(layer.weight, form).shape
    return rows + columns


def factored(layer: Layer, rank: int, form: Form = "channel") -> nn.Sequential:
    """Two thin layers, ``down`` and ``up``, without values, in the place of one. The bias is the second's.

    A convolution becomes k x k to ``rank`` channels and 1 x 1 (``channel``), or kh x 1 and 1 x kw (``spatial``).

    Raises:
        UsageError: a rank below 1, or a convolution with groups.
    """
    if rank < 1:
        raise UsageError(f"A rank of {rank} leaves nothing of a layer.", where="rank")
    has_bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        down: nn.Module = nn.Linear(layer.in_features, rank, bias=False)
        return nn.Sequential(OrderedDict(down=down, up=nn.Linear(rank, layer.out_features, bias=has_bias)))
    if layer.groups > 1 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise UsageError("Convolutions with groups or special padding cannot be factored.", where="layers")
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = layer.kernel_size, layer.stride, layer.padding, layer.dilation
    if form == "spatial":
        down = nn.Conv2d(layer.in_channels, rank, (kh, 1), (sh, 1), (ph, 0), (dh, 1), bias=False)
        up = nn.Conv2d(rank, layer.out_channels, (1, kw), (1, sw), (0, pw), (1, dw), bias=has_bias)
    else:
        down = nn.Conv2d(layer.in_channels, rank, (kh, kw), (sh, sw), (ph, pw), (dh, dw), bias=False)
        up = nn.Conv2d(rank, layer.out_channels, 1, bias=has_bias)
    return nn.Sequential(OrderedDict(down=down, up=up))


@torch.no_grad()
def factor(layer: Layer, rank: int, form: Form = "channel") -> nn.Sequential:
    """The closest pair of thin layers (truncated SVD, the singular values shared evenly between the two).

    Args:
        layer: linear layer or ungrouped convolution.
        rank: singular values kept.
        form: how a kernel is laid out, see :func:`thin_matrix`.
    """
    pair = factored(layer, rank, form).to(layer.weight.device, layer.weight.dtype)
    u, s, vh = torch.linalg.svd(thin_matrix(layer.weight, form).double(), full_matrices=False)
    root = s[:rank].sqrt()
    left, right = u[:, :rank] * root, root[:, None] * vh[:rank]
    down, up = pair.get_submodule("down"), pair.get_submodule("up")
    assert isinstance(down, nn.Linear | nn.Conv2d) and isinstance(up, nn.Linear | nn.Conv2d)
    if layer.weight.dim() == 4 and form == "spatial":
        n, c, kh, kw = layer.weight.shape
        down.weight.copy_(left.reshape(c, kh, rank).permute(2, 0, 1)[..., None])
        up.weight.copy_(right.reshape(rank, n, kw).permute(1, 0, 2)[:, :, None])
    else:
        down.weight.copy_(right.reshape(down.weight.shape))
        up.weight.copy_(left.reshape(up.weight.shape))
    if layer.bias is not None:
        assert up.bias is not None
        up.bias.copy_(layer.bias)
    return pair


# -- eight bits --------------------------------------------------------------------------------------------------


class _Int8(nn.Module):
    """Weight as 8-bit codes and one scale an output: ``w[o] = codes[o] * scale[o]``; the sum runs in floating point."""

    codes: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.register_buffer("codes", torch.zeros(layer.weight.shape, dtype=torch.int8))
        self.register_buffer("scale", torch.zeros(layer.weight.shape[0]))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())

    def weight(self) -> Tensor:
        """The weight the codes stand for, float32."""
        return self.codes.float() * self.scale.view(-1, *[1] * (self.codes.dim() - 1))


class Int8Linear(_Int8):
    """A linear layer stored as 8-bit codes.

    Args:
        layer: whose sizes and bias it takes; codes and scales are zero until they are set or loaded.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return F.linear(x, self.weight().to(x.dtype), self.bias)


class Int8Conv2d(_Int8):
    """A convolution stored as 8-bit codes.

    Args:
        layer: whose geometry and bias it takes.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__(layer)
        self.geometry = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation,
                         "groups": layer.groups}
        if layer.padding_mode != "zeros":
            raise UsageError(f"Padding by {layer.padding_mode} is not supported in 8 bits.", where="layers")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, H', W')."""
        return F.conv2d(x, self.weight().to(x.dtype), self.bias, **self.geometry)  # type: ignore[arg-type]


# -- fewer bits, with a repair -----------------------------------------------------------------------------------


class PackedLinear(nn.Module):
    """A linear layer as packed codes of a few bits and, beside it, a low-rank repair: ``(W_c + B A) x + b``.

    Args:
        layer: whose sizes and bias it takes; everything else is zero until it is set or loaded.
        bits: 2, 4 or 8 bits a weight; 8 / bits of them share a byte.
        group: inputs that share a scale.
        rank: of the repair; 0 = none.
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear, *, bits: int, group: int, rank: int) -> None:
        super().__init__()
        if bits not in (2, 4, 8):
            raise UsageError(f"Weights are packed to 2, 4 or 8 bits, not {bits}.", where="bits")
        self.in_features, self.out_features, self.bits, self.group = layer.in_features, layer.out_features, bits, group
        groups = -(-layer.in_features // group)
        packed = -(-layer.in_features * bits // 8)
        self.register_buffer("codes", torch.zeros(layer.out_features, packed, dtype=torch.uint8))
        self.register_buffer("scale", torch.zeros(layer.out_features, groups))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())
        self.down = nn.Parameter(torch.zeros(rank, layer.in_features)) if rank else None
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank)) if rank else None

    @torch.no_grad()
    def encode(self, weight: Tensor, keep: Tensor | None = None) -> Tensor:
        """Round a weight (out, in) to the nearest codes, symmetric in each group; returns what the codes stand for.

        Args:
            weight: the weight.
            keep: (out, in) bool, False = zero.
        """
        largest = 2 ** (self.bits - 1) - 1
        value = weight.detach().float() if keep is None else weight.detach().float() * keep
        width = self.scale.shape[1] * self.group
        grouped = F.pad(value, (0, width - value.shape[1])).unflatten(1, (-1, self.group))
        self.scale.copy_(grouped.abs().amax(2).clamp(min=1e-12) / largest)
        whole = (grouped / self.scale[..., None]).round().clamp(-largest, largest).flatten(1)[:, :value.shape[1]]
        self.codes.copy_(_pack(whole.to(torch.int16) + 2 ** (self.bits - 1), self.bits))
        return self.weight()

    def weight(self) -> Tensor:
        """The weight the codes stand for, without the repair, (out, in) float32."""
        whole = _unpack(self.codes, self.bits)[:, :self.in_features].float() - 2 ** (self.bits - 1)
        return whole * self.scale.repeat_interleave(self.group, 1)[:, :self.in_features]

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        out = F.linear(x, self.weight().to(x.dtype), self.bias)
        if self.down is None or self.up is None:
            return out
        return out + F.linear(F.linear(x, self.down), self.up)


def _pack(codes: Tensor, bits: int) -> Tensor:
    """(out, in) codes from 0 -> (out, ceil(in bits / 8)) uint8, the first code in the lowest bits."""
    each = 8 // bits
    padded = F.pad(codes, (0, -codes.shape[1] % each)).unflatten(1, (-1, each))
    shifts = torch.arange(0, 8, bits, dtype=torch.int16)
    return (padded.to(torch.int16) << shifts).sum(2).to(torch.uint8)


def _unpack(packed: Tensor, bits: int) -> Tensor:
    """The inverse of :func:`_pack`, (out, 8 / bits * bytes)."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    return ((packed[..., None] >> shifts) & (2**bits - 1)).flatten(1)

