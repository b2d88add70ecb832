"""Residual convolutional network, dense or sparse.

He et al. 2016, arXiv:1512.03385, sections 3.3 and 4.2. Sparse (masked) convolution: Tian et al. 2023 (SparK),
arXiv:2301.03580, section 3.1. Module names are torchvision's, so that its weights load.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones._base import Backbone
from osteon.core.card import Card
from osteon.core.errors import UsageError
from osteon.parts.norm import BatchNorm
from osteon.parts.stochastic_depth import Mode, StochasticDepth, drop_rates
from osteon.parts.targets import enlarge
from osteon.parts.types import Features

CARD = Card(
    kind="backbone",
    name="resnet",
    papers=("Deep Residual Learning for Image Recognition",
            "Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked Modeling"),
    modalities=("image", "volume", "video"),
    differs="The stride of a bottleneck sits on its 3 x 3 convolution, as in torchvision; images of at most 64 px get "
    "a 3 x 3 stem without pooling; batch statistics cover all ranks; resnet_tiny and resnet_mini have three stages.",
    backbones=("maps",),
    cost="grows linearly with the number of pixels",
)

#: Name -> kind of block, blocks and widths a stage.
SIZES: dict[str, dict[str, Any]] = {
    "resnet_tiny": {"block": "basic", "depths": (2, 2, 2), "widths": (16, 32, 64)},
    "resnet_mini": {"block": "basic", "depths": (2, 2, 2), "widths": (32, 64, 128)},
    "resnet18": {"block": "basic", "depths": (2, 2, 2, 2), "widths": (64, 128, 256, 512)},
    "resnet50": {"block": "bottleneck", "depths": (3, 4, 6, 3), "widths": (64, 128, 256, 512)},
}
STRIDE_RULE = "rule: 4 for images up to 16 px, 8 up to 64 (or half, if only half divides the size), else 2 a stage"

#: Sides of a map -> (B, *sides) bool, True = visible; None = everything is visible.
Visible = dict[tuple[int, ...], Tensor] | None


def default_stride(size: int, stages: int, stem: int) -> int:
    """Pixels a cell of the last map, see ``STRIDE_RULE``; ``stem`` is the stride of the stem."""
    if size > 64:
        return stem * 2 ** (stages - 1)
    wanted = max(stem, 4 if size <= 16 else 8)
    return wanted // 2 if size % wanted and size % (wanted // 2) == 0 and wanted // 2 >= stem else wanted


def stage_strides(stages: int, stem: int, stride: int) -> list[int]:
    """Stride of every stage, 1 or 2, the last stages first to halve, so that all of them make ``stride`` in total."""
    halvings = (stride // stem).bit_length() - 1
    if stride < stem or stem * 2**halvings != stride or halvings > stages:
        possible = ", ".join(str(stem * 2**i) for i in range(stages + 1))
        raise UsageError(f"A stem of stride {stem} and {stages} stages cannot make a stride of {stride}.",
                         where="stride", fix=f"Possible: {possible}.")
    return [1] * (stages - halvings) + [2] * halvings


class Residual(nn.Module):
    """Two 3 x 3 convolutions (or 1 x 1, 3 x 3, 1 x 1: bottleneck) beside a shortcut.

    Args:
        inputs: channels in.
        width: channels inside; also channels out, times 4 for a bottleneck.
        stride: of the (first) 3 x 3 convolution and the shortcut.
        bottleneck: the three-convolution form.
        drop: rate of stochastic depth.
        drop_mode: for single samples or mini-batches.
        sides: 2 for images, 3 for volumes and clips.
    """

    def __init__(self, inputs: int, width: int, stride: int, *, bottleneck: bool, drop: float,
                 drop_mode: Mode = "row", sides: int = 2) -> None:
        super().__init__()
        outputs = width * 4 if bottleneck else width
        shapes = ([(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)] if bottleneck
                  else [(inputs, width, 3, stride), (width, width, 3, 1)])
        self.count = len(shapes)
        for i, (a, b, kernel, step) in enumerate(shapes, 1):
            self.add_module(f"conv{i}", _conv(a, b, kernel, step, sides))
            self.add_module(f"bn{i}", BatchNorm(b))
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(_conv(inputs, outputs, 1, stride, sides), BatchNorm(outputs))
        self.drop_path = StochasticDepth(drop, mode=drop_mode)

    def forward(self, x: Tensor, visible: Visible = None) -> Tensor:
        """(B, C, *sides) -> (B, C', *sides / stride); hidden positions come in and go out as zero."""
        shortcut = x if self.downsample is None else _sparse(self.downsample[0], self.downsample[1], x, visible)
        return F.relu(self.drop_path.join(shortcut, lambda: self._branch(x, visible)))

    def _branch(self, x: Tensor, visible: Visible) -> Tensor:
        for i in range(1, self.count + 1):
            x = _sparse(self.get_submodule(f"conv{i}"), self.get_submodule(f"bn{i}"), x, visible)
            if i < self.count:
                x = F.relu(x)
        return x

    def last_norm(self) -> BatchNorm:
        """The norm at the end of the branch."""
        norm = self.get_submodule(f"bn{self.count}")
        assert isinstance(norm, BatchNorm)
        return norm


def _conv(inputs: int, outputs: int, kernel: int, stride: int, sides: int) -> nn.Conv2d | nn.Conv3d:
    kind = nn.Conv2d if sides == 2 else nn.Conv3d
    return kind(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def _sparse(conv: nn.Module, norm: nn.Module, x: Tensor, visible: Visible) -> Tensor:
    """Convolution and norm; a norm over visible positions leaves zeros at hidden ones, so nothing leaks through."""
    x = conv(x)
    return norm(x) if visible is None else norm(x, where=visible[tuple(x.shape[2:])])


class ResNet(Backbone):
    """Residual network for images, and with three-dimensional convolutions for volumes and clips.

    Args:
        name: the name it was built by.
        channels: number of input channels.
        size: side of the images in pixels, or their height and width, or the three sides of other samples.
        block: ``"basic"`` or ``"bottleneck"``.
        depths: blocks a stage.
        widths: width of each stage (a bottleneck puts out four times as much).
        stem: 3 x 3 convolution of stride 1 (``"cifar"``), or 7 x 7 of stride 2 with max pooling (``"imagenet"``);
            ``"auto"`` takes the first up to 64 px.
        stride: pixels a cell of the last map, a power of two; 0 = by image size.
        zero_init: start every residual branch at zero (Goyal et al. 2017, arXiv:1706.02677, section 5.1).
        drop_path: rate of stochastic depth at the last block, growing linearly from 0 at the first.
        drop_mode: ``"row"`` leaves branches out of single samples; ``"batch"`` out of whole mini-batches, without
            computing them, at rates that grow from drop_path / blocks.
    """

    kind = "maps"

    def __init__(self, name: str, *, channels: int, size: int | Sequence[int], block: Literal["basic", "bottleneck"],
                 depths: Sequence[int], widths: Sequence[int], stem: Literal["auto", "cifar", "imagenet"] = "auto",
                 stride: int = 0, zero_init: bool = False, drop_path: float = 0.0,
                 drop_mode: Mode = "row") -> None:
        if (block not in ("basic", "bottleneck") or stem not in ("auto", "cifar", "imagenet")
                or len(depths) != len(widths) or min(*depths, *widths, 1) < 1):
            raise UsageError("block is basic or bottleneck, stem auto, cifar or imagenet, depths as many as widths.",
                             where=f"{name}: block={block}, stem={stem}, depths={depths}, widths={widths}")
        extent = (size, size) if isinstance(size, int) else tuple(size)
        if len(extent) not in (2, 3):
            raise UsageError(f"{name} takes images, volumes and clips, not samples with {len(extent)} "
                             f"side{'s' * (len(extent) > 1)}.", where="backbone", fix="Choose a ViT, e.g. vit_tiny.")
        side = min(extent)
        kind = stem if stem != "auto" else "cifar" if side <= 64 else "imagenet"
        stem_stride = 1 if kind == "cifar" else 4
        total = stride or default_stride(side, len(depths), stem_stride)
        steps = stage_strides(len(depths), stem_stride, total)
        options: dict[str, Any] = {"block": block, "depths": list(depths), "widths": list(widths), "stem": kind,
                                   "stride": total, "zero_init": zero_init, "drop_path": drop_path,
                                   **({"drop_mode": drop_mode} if drop_mode != "row" else {})}
        super().__init__(name, channels=channels, size=size, options=options)
        self.notes += [f"{kind} stem: " + ("as asked" if stem != "auto" else "rule: cifar up to 64 px, else imagenet"),
                       f"{total} px a cell of the last map: " + ("as asked" if stride else STRIDE_RULE)]
        self._build(block == "bottleneck", depths, widths, steps, kind, drop_path, drop_mode)
        self.stride = total
        self.level_strides = tuple(stem_stride * _product(steps[:i + 1]) for i in range(len(steps)))
        self._initialise(zero_init)

    def _build(self, bottleneck: bool, depths: Sequence[int], widths: Sequence[int], steps: list[int], stem: str,
               drop_path: float, drop_mode: Mode) -> None:
        sides = len(self.extent)
        self.conv1 = _conv(self.channels, widths[0], *((3, 1) if stem == "cifar" else (7, 2)), sides)
        self.bn1 = BatchNorm(widths[0])
        pool = nn.MaxPool2d if sides == 2 else nn.MaxPool3d
        self.maxpool = None if stem == "cifar" else pool(3, stride=2, padding=1)
        rates = iter(drop_rates(drop_path, sum(depths), drop_mode))
        inputs, expansion, dims = widths[0], 4 if bottleneck else 1, []
        for i, (depth, width, step) in enumerate(zip(depths, widths, steps, strict=True), 1):
            blocks = nn.ModuleList()
            for j in range(depth):
                blocks.append(Residual(inputs, width, 1 if j else step, bottleneck=bottleneck, drop=next(rates),
                                       drop_mode=drop_mode, sides=sides))
                inputs = width * expansion
            self.add_module(f"layer{i}", blocks)
            dims.append(inputs)
        self.level_dims, self.dim, self.token_dim = tuple(dims), inputs, inputs

    def grid(self, *extent: int) -> tuple[int, ...]:
        """Sides of the last map, rows and columns of images; sides that the stride does not divide are rounded up."""
        return tuple(-(-side // self.stride) for side in extent)

    def forward(self, x: Tensor, *, keep: Tensor | None = None, mask: Tensor | None = None,
                mask_token: Tensor | None = None) -> Features:
        """(B, C, *extent) -> Features; under ``mask`` hidden positions of every map are zero and count nowhere."""
        if keep is not None:
            raise self._refuse("keep: a convolution needs the whole grid", "Use mask, or a ViT such as vit_tiny.")
        if mask_token is not None:
            raise self._refuse("mask_token: hidden positions stay empty", "Fill them in the decoder.")
        self._check_images(x)
        visible = None if mask is None else self._visible(mask, x)
        if visible is not None:
            x = x.masked_fill(~visible[tuple(x.shape[2:])][:, None], 0)
        x = F.relu(_sparse(self.conv1, self.bn1, x, visible))
        if self.maxpool is not None:
            x = self.maxpool(x)
            if visible is not None:
                x = x * visible[tuple(x.shape[2:])][:, None]
        levels = []
        for i in range(1, len(self.level_dims) + 1):
            for block in self.get_submodule(f"layer{i}").children():
                x = block(x, visible)
            levels.append(x)
        tokens = x.flatten(2).transpose(1, 2)
        shown = tokens.shape[1] if mask is None else (~mask).sum(1, keepdim=True).clamp(min=1)
        return Features(pooled=tokens.sum(1) / shown, tokens=tokens, grid=tuple(x.shape[2:]), levels=levels)

    def _visible(self, mask: Tensor, x: Tensor) -> dict[tuple[int, ...], Tensor]:
        """The visible positions at the resolution of every map, from the input's down to the last one's."""
        grid = super().grid(*x.shape[2:])
        self._check_mask(mask, x.shape[0], grid)
        coarse = ~mask.reshape(-1, *grid)
        factors = [2**i for i in range(self.stride.bit_length())]
        return {tuple(side * f for side in grid): enlarge(coarse, f) for f in factors}

    def _initialise(self, zero_init: bool) -> None:
        """He-normal convolutions by fan-out (He et al. 2015, arXiv:1502.01852, equation 14)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Residual) and zero_init:
                nn.init.zeros_(torch.as_tensor(module.last_norm().weight))


def _product(steps: list[int]) -> int:
    result = 1
    for step in steps:
        result *= step
    return result
