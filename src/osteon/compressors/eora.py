"""EoRA: weights of a few bits, and a low-rank repair where the inputs are large, without any training.

Liu et al. 2024, arXiv:2410.21271, section 3.2.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.calibration import Calibration
from osteon.parts.compact import PackedLinear
from osteon.parts.compressor import Budget, Compressor, Fit, search
from osteon.parts.surgery import apply_edits, replace_layer

if TYPE_CHECKING:
    from osteon.backbones import Backbone

CARD = Card(
    kind="compressor",
    name="eora",
    papers=("EoRA: Training-free Compensation for Compressed LLM with Eigenspace Low-Rank Approximation",),
    modalities=("image", "sound", "series", "text", "table", "graph", "points", "volume", "video", "several"),
    differs="Compressed weights come from rounding to the nearest code and from magnitude 2:4 sparsity; the paper "
    "repairs the output of GPTQ and SparseGPT. Eigenvalues below 1e-10 of the largest are dropped (pseudo-inverse) "
    "instead of being raised to the smallest positive one. The rank follows from the budget. Inputs are collected "
    "layer by layer through the layers repaired so far (the paper: block by block).",
    rows=(293,),
    backbones=("tokens",),
    cost="one pass over the calibration data a layer",
)


class EoRA(Compressor):
    """Linear layers as codes of a few bits, with the low-rank repair that is best on the calibration data.

    Args:
        bits: 2, 4 or 8 bits a weight.
        group: inputs that share a scale.
        sparsity: ``none``, or ``2:4``: of four neighbouring weights the two smallest are zero before rounding.
    """

    units: ClassVar[tuple[str, ...]] = ("bytes",)

    def __init__(self, *, bits: int = 4, group: int = 64, sparsity: Literal["none", "2:4"] = "none") -> None:
        super().__init__()
        if bits not in (2, 4, 8) or group < 4:
            raise UsageError(f"bits are 2, 4 or 8 and a group has at least 4 inputs, not {bits} and {group}.",
                             where="eora")
        self.bits, self.group, self.sparsity = bits, group, sparsity

    def compress(self, backbone: Backbone, budget: Budget, calibration: Calibration, fit: Fit | None,
                 seed: int) -> Backbone:
        """Spend the bytes that the codes leave on rank, then repair one layer after another."""
        layers = {name: m for name, m in backbone.named_modules() if type(m) is nn.Linear}
        if not layers:
            raise UsageError(f"{backbone.name} has no linear layers to repair.", where="eora",
                             fix="Use int8 or pela for convolutional networks.")

        def edit(strength: float) -> dict[str, object]:
            ranks = {name: int((1 - strength) * m.weight.numel() / (m.in_features + m.out_features))
                     for name, m in layers.items()}
            return {"op": "packed", "ranks": ranks, "bits": self.bits, "group": self.group}

        def make(strength: float) -> Backbone:
            network = copy.deepcopy(backbone)
            apply_edits(network, [edit(strength)])
            return network

        shell, strength = search(self.name, backbone, budget, make)
        network = copy.deepcopy(backbone)
        for name, layer in layers.items():
            packed = shell.get_submodule(name)
            assert isinstance(packed, PackedLinear)
            moments = calibration.moments(network, {name: _linear(network, name)})[name]
            self.repair(packed, layer.weight, moments.input_outer)
            replace_layer(network, name, packed)
        ranks = edit(strength)["ranks"]
        assert isinstance(ranks, dict)
        self.notes.append(f"{len(layers)} linear layers in {self.bits} bits with repairs of rank "
                          f"{min(ranks.values())} to {max(ranks.values())}")
        shell.load_state_dict(network.state_dict())
        return shell

    @torch.no_grad()
    def repair(self, packed: PackedLinear, weight: Tensor, outer: Tensor) -> None:
        """Fill a packed layer: codes of the weight, and the repair of what rounding (and sparsity) lost."""
        rough = packed.encode(weight, two_of_four(weight) if self.sparsity == "2:4" else None)
        if packed.down is not None and packed.up is not None:
            up, down = compensate(weight.detach().double() - rough.double(), outer, packed.down.shape[0])
            packed.up.copy_(up)
            packed.down.copy_(down)


def compensate(error: Tensor, outer: Tensor, rank: int, *, tolerance: float = 1e-10) -> tuple[Tensor, Tensor]:
    """B (out, r) and A (r, in) that make ``||(error - B A) X||_F`` smallest, with ``outer = X X^T``.

    With ``X X^T = Q L Q^T`` and ``S = Q L^(1/2)``: the truncated SVD of ``error S``, mapped back by ``S^-1`` on the
    directions the inputs have.

    Args:
        error: what the compression took from the weight, (out, in).
        outer: (in, in).
        rank: r; what exceeds the rank of the inputs is zero.
        tolerance: smallest eigenvalue used, as a share of the largest.
    """
    values, vectors = torch.linalg.eigh(outer.double())
    used = values > tolerance * values[-1].clamp(min=1e-300)
    root, basis = values[used].sqrt(), vectors[:, used]
    u, s, vh = torch.linalg.svd(error.double() @ basis * root, full_matrices=False)
    up, down = error.new_zeros(len(error), rank).double(), error.new_zeros(rank, error.shape[1]).double()
    r = min(rank, len(s))
    half = s[:r].sqrt()
    up[:, :r] = u[:, :r] * half
    down[:r] = half[:, None] * (vh[:r] / root) @ basis.T
    return up, down


def two_of_four(weight: Tensor) -> Tensor:
    """Which weights stay under 2:4 sparsity, (out, in) bool: the two largest of every four neighbours in a row."""
    out, width = weight.shape
    padded = nn.functional.pad(weight.detach().abs(), (0, -width % 4)).unflatten(1, (-1, 4))
    keep = torch.zeros_like(padded, dtype=torch.bool).scatter(2, padded.topk(2, 2).indices, True)
    return keep.flatten(1)[:, :width]


def _linear(network: nn.Module, name: str) -> nn.Linear:
    layer = network.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer
