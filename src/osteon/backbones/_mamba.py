"""A bidirectional state-space block: a selective scan over the tokens in both directions, in place of attention.

Gu & Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", section 3; both directions as in
Zhu et al. 2024, "Vision Mamba". Shape letters: B batch, M tokens, D width, E inner width, S numbers of a state.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.core.errors import UsageError
from osteon.parts.stochastic_depth import Mode, StochasticDepth

#: Tokens that are scanned at once; memory is that of one such part, beside what the gradient keeps.
CHUNK = 64


def scan(decay: Tensor, inflow: Tensor) -> Tensor:
    """``h_t = decay_t * h_{t-1} + inflow_t`` with ``h_{-1} = 0`` along side 1: (B, M, ...) twice -> (B, M, ...).

    The gradient is a scan from the end; it keeps decays and states alone, so that memory grows with M.
    """
    if torch.is_grad_enabled() and (decay.requires_grad or inflow.requires_grad):
        return _Scan.apply(decay, inflow)
    return _scan(decay, inflow)


def _scan(decay: Tensor, inflow: Tensor, chunk: int = CHUNK) -> Tensor:
    """Within a chunk by doubling: log2(chunk) passes, of products of decays alone, so that nothing overflows.

    Hillis & Steele 1986. From chunk to chunk the last state is carried on.
    """
    out, last = list[Tensor](), torch.zeros_like(inflow[:, :1])
    for a, b in zip(decay.split(chunk, 1), inflow.split(chunk, 1), strict=True):
        step = 1
        while step < a.shape[1]:
            b = torch.cat([b[:, :step], b[:, step:] + a[:, step:] * b[:, :-step]], 1)
            a = torch.cat([a[:, :step], a[:, step:] * a[:, :-step]], 1)
            step *= 2
        out.append(b + a * last)
        last = out[-1][:, -1:]
    return torch.cat(out, 1)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, decay: Tensor, inflow: Tensor) -> Tensor:
        states = _scan(decay, inflow)
        ctx.save_for_backward(decay, states)
        return states

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        decay, states = ctx.saved_tensors
        none = torch.zeros_like(states[:, :1])
        flow = _scan(torch.cat([decay[:, 1:], none], 1).flip(1), grad.flip(1)).flip(1)
        return flow * torch.cat([none, states[:, :-1]], 1), flow


class Selective(nn.Module):
    """One direction: a short causal convolution, then a scan whose step, input and output depend on the token.

    Args:
        inner: E.
        state: S.
        kernel: tokens of the convolution.
    """

    def __init__(self, inner: int, state: int, kernel: int = 4) -> None:
        super().__init__()
        self.state, self.rank = state, max(1, math.ceil(inner / 32))
        self.conv = nn.Conv1d(inner, inner, kernel, groups=inner, padding=kernel - 1)
        self.select = nn.Linear(inner, self.rank + 2 * state, bias=False)
        self.step = nn.Linear(self.rank, inner)
        self.log_decay = nn.Parameter(torch.arange(1, state + 1).float().log().repeat(inner, 1))
        self.skip = nn.Parameter(torch.ones(inner))

    def initialise(self) -> None:
        """Steps between 0.001 and 0.1, evenly in the logarithm, as in the authors' code."""
        nn.init.uniform_(self.step.weight, -self.rank**-0.5, self.rank**-0.5)
        with torch.no_grad():
            size = torch.exp(torch.rand(len(self.skip)) * math.log(100.0) + math.log(1e-3))
            self.step.bias.copy_(size + torch.log(-torch.expm1(-size)))  # the inverse of softplus

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, E) -> (B, M, E); token t sees tokens up to t."""
        x = F.silu(self.conv(x.transpose(1, 2))[..., :x.shape[1]].transpose(1, 2))
        step, enter, leave = self.select(x).split([self.rank, self.state, self.state], -1)
        step = F.softplus(self.step(step)).float()  # (B, M, E)
        decay = torch.exp(-step[..., None] * self.log_decay.float().exp())
        states = scan(decay, (step * x.float())[..., None] * enter.float()[:, :, None])
        read = (states * leave.float()[:, :, None]).sum(-1)
        return (read + self.skip * x).to(x.dtype)


class MambaBlock(nn.Module):
    """``x + mix(norm(x))``: a gated branch scanned forwards and backwards, the two averaged.

    Args:
        dim: D.
        state: S.
        drop: rate of stochastic depth.
        drop_mode: for single samples or mini-batches.
        expand: E over D.
    """

    def __init__(self, dim: int, *, state: int = 16, drop: float = 0.0, drop_mode: Mode = "row",
                 expand: int = 2) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.enter, self.leave = nn.Linear(dim, 2 * expand * dim, bias=False), nn.Linear(expand * dim, dim, bias=False)
        self.ahead, self.back = Selective(expand * dim, state), Selective(expand * dim, state)
        self.drop_path = StochasticDepth(drop, mode=drop_mode)

    def forward(self, x: Tensor, attend: Tensor | None = None) -> Tensor:
        """(B, M, D) -> (B, M, D); ``attend`` is refused."""
        if attend is not None:
            raise UsageError("A state-space trunk has no attention to restrict.", where="trunk=mamba",
                             fix="Set backbone.trunk=attention.")
        return self.drop_path.join(x, lambda: self._branch(x))

    def _branch(self, x: Tensor) -> Tensor:
        value, gate = self.enter(self.norm(x)).chunk(2, -1)
        mixed = (self.ahead(value) + self.back(value.flip(1)).flip(1)) / 2
        return self.leave(mixed * F.silu(gate))
