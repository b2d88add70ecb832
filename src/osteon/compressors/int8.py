"""Eight-bit weights: a quarter of the bytes, at the same speed.

Jacob et al. 2018, arXiv:1712.05877, section 2.1. Codes and scales are torchao's; they run in plain PyTorch.
"""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from osteon.core.card import Card
from osteon.core.errors import MissingExtra, UsageError
from osteon.parts.calibration import Calibration, Moments
from osteon.parts.compact import Int8Conv2d, Int8Linear
from osteon.parts.compressor import Budget, Compressor, Fit, file_bytes, measure, unmet
from osteon.parts.reparam import Layer, as_matrix
from osteon.parts.surgery import note_edits, replace_layer

logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)  # it reports deprecations inside torchao
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # as does torchao itself, and kernels that this machine lacks
    try:
        from torchao.quantization.quant_primitives import MappingType, choose_qparams_affine, quantize_affine
    except ImportError as error:
        raise MissingExtra("torchao", "compress", why="Eight-bit quantisation") from error

if TYPE_CHECKING:
    from osteon.backbones import Backbone

CARD = Card(
    kind="compressor",
    name="int8",
    papers=("Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",),
    modalities=("image", "sound", "series", "text", "table", "graph", "points", "volume", "video", "several"),
    differs="Weights only, symmetric, one scale an output, without training for it (the paper: asymmetric, one "
    "scale a tensor, inputs too, trained). Inputs stay in floating point: PyTorch's own product of 8-bit matrices is "
    "20 times slower than the one of floats on CPUs without VNNI, and its faster kernels keep weights in a form that "
    "cannot be stored as plain tensors. So this saves bytes, not time. Layers are taken in the order of the error "
    "they cost a saved byte.",
    cost="1 forward per calibration image",
)


class Int8(Compressor):
    """Store weights as 8-bit codes, the least harmful layers first, until the file is small enough.

    Args:
        convolutions: also convolutions, not only linear layers.
        smallest: leave layers with fewer weights alone.
    """

    units: ClassVar[tuple[str, ...]] = ("bytes",)

    def __init__(self, *, convolutions: bool = True, smallest: int = 256) -> None:
        super().__init__()
        self.convolutions, self.smallest = convolutions, smallest

    def compress(self, backbone: Backbone, budget: Budget, calibration: Calibration, fit: Fit | None,
                 seed: int) -> Backbone:
        """Order the layers, then quantise one after another until the budget is met."""
        layers = self.layers(backbone)
        moments = calibration.moments(backbone, {n: m for n, m in layers.items() if getattr(m, "groups", 1) == 1})
        order = sorted(layers, key=lambda name: harm(layers[name], moments.get(name)))
        original = measure(backbone)
        limit = budget.limit(original)
        done: list[str] = []
        for name in order:
            replace_layer(backbone, name, quantised(layers[name]))
            done.append(name)
            if file_bytes(backbone) <= limit:
                break
        else:
            raise unmet(self.name, budget, original, measure(backbone))
        note_edits(backbone, [{"op": "int8", "layers": done}])
        self.notes.append(f"{len(done)} of {len(layers)} layers are kept in 8 bits, in the order of the error a saved "
                          "byte costs")
        return backbone

    def layers(self, network: nn.Module) -> dict[str, Layer]:
        """The layers that can be quantised.

        Raises:
            UsageError: there are none.
        """
        kinds: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d) if self.convolutions else (nn.Linear,)
        found: dict[str, Layer] = {
            name: m for name, m in network.named_modules()
            if isinstance(m, nn.Linear | nn.Conv2d) and type(m) in kinds and m.weight.numel() >= self.smallest
            and getattr(m, "padding_mode", "zeros") == "zeros"}
        if not found:
            raise UsageError(f"No layer has {self.smallest} weights or more.", where="smallest",
                             fix="Lower it with --set smallest=1.")
        return found


def codes_of(weight: Tensor) -> tuple[Tensor, Tensor]:
    """8-bit codes in -127..127 (the weight's shape) and one scale an output (out,): w is about codes * scale."""
    matrix = as_matrix(weight).float()
    block = (1, matrix.shape[1])
    scale, zero = choose_qparams_affine(matrix, MappingType.SYMMETRIC, block, torch.int8, quant_min=-127, quant_max=127,
                                        scale_dtype=torch.float32, eps=1e-12)
    codes = quantize_affine(matrix, block, scale, zero, torch.int8, -127, 127)
    return codes.view(weight.shape), scale.flatten()


def quantised(layer: Layer) -> nn.Module:
    """The layer in 8 bits."""
    made: Int8Linear | Int8Conv2d = Int8Linear(layer) if isinstance(layer, nn.Linear) else Int8Conv2d(layer)
    codes, scale = codes_of(layer.weight)
    made.codes.copy_(codes)
    made.scale.copy_(scale)
    return made


def harm(layer: Layer, moments: Moments | None) -> float:
    """Squared error of the layer's output over the output's own square, for each byte saved (3 a weight).

    Without moments (convolutions with groups) inputs count as uncorrelated and equally large.
    """
    codes, scale = codes_of(layer.weight)
    weight = as_matrix(layer.weight).double()
    error = weight - as_matrix(codes).double() * scale.double()[:, None]
    if moments is None:
        share = error.square().sum() / weight.square().sum().clamp(min=1e-30)
    else:
        c = moments.second_moment
        share = ((error @ c) * error).sum() / ((weight @ c) * weight).sum().clamp(min=1e-30)
    return float(share) / (3 * weight.numel())
