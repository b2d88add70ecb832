"""Layer masking: take a region away from a convolutional network inside its layers, so that no fill colour is seen.

Balasubramanian & Feizi 2023, "Towards Improved Input Masking for Convolutional Neural Networks", arXiv:2211.14646,
section 3. In Transformers tokens are left out instead: Jain et al. 2022, "Missingness Bias in Model Debugging".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones.resnet import Residual, ResNet
from osteon.core.card import Card
from osteon.core.errors import UsageError

CARD = Card(
    kind="analysis",
    name="layer_masking",
    papers=("Towards Improved Input Masking for Convolutional Neural Networks", "Missingness Bias in Model Debugging"),
    modalities=("image", "sound", "series", "text", "table", "graph", "points", "volume", "video", "several"),
    differs="masks are cells of a grid; attribution takes each cell away once, and its score is the likeness of the "
            "features instead of a class's probability. Of Transformers tokens are left out, spans or blocks of the "
            "grid at a time, where a place means the same in every sample (not of texts, graphs, clouds and sets)",
    rows=(179,),
    cost="1 forward per sample and cell",
    switch="osteon analyse RUN SOURCE --only layer_masking",
)


def fill_from_neighbours(x: Tensor, known: Tensor, times: int) -> tuple[Tensor, Tensor]:
    """Fill unknown cells by the average of their known 3 x 3 neighbours, ``times`` times over.

    Args:
        x: (B, C, H, W), 0 where unknown.
        known: (B, 1, H, W) of 0 and 1.
        times: rounds; each reaches one cell farther.

    Returns:
        Both, the reached cells known now. No gradient flows through the filling.
    """
    ones = x.new_ones(1, 1, 3, 3)
    for _ in range(times):
        b, c, h, w = x.shape
        with torch.no_grad():
            total = F.conv2d(x.reshape(b * c, 1, h, w), ones, padding=1).reshape(b, c, h, w)
            count = F.conv2d(known, ones, padding=1)
            average, reached = total / (count + 1e-5), (count > 0).to(x.dtype)
        x = torch.where(known > 0, x, average * reached)
        known = reached
    return x, known


def masked_features(network: ResNet, x: Tensor, visible: Tensor) -> Tensor:
    """Pooled features (B, D) of images of which only a part is seen.

    Before every convolution wider than 1 x 1 the hidden cells next to visible ones are filled from these (as often as
    the kernel is wide); after it, cells whose window held nothing visible are hidden; a sum is visible where both
    summands are; the pooled feature is the mean of visible cells.

    Args:
        network: osteon's ResNet, in eval mode.
        x: (B, C, H, W) normalised; what is hidden may hold anything, even NaN.
        visible: (B, H, W) bool.

    Raises:
        UsageError: another kind of network, whose functional operations cannot be followed; or nothing is visible.
    """
    if not isinstance(network, ResNet):
        raise UsageError("Layer masking follows osteon's ResNet only.", where=type(network).__name__,
                         fix="Use resnet_tiny ... resnet50; ViTs leave tokens out with keep.")
    if visible.shape != (x.shape[0], *x.shape[-2:]) or not bool(visible.flatten(1).any(1).all()):
        raise UsageError("visible must be bool (B, H, W) with something visible in every image.", where="visible")
    known = visible[:, None].to(x.dtype)
    x = torch.where(known > 0, x, torch.zeros_like(x))
    x, known = _convolve(network.conv1, network.bn1, x, known)
    x = F.relu(x)
    if network.maxpool is not None:
        x, known = network.maxpool(x), network.maxpool(known)
    for i in range(1, len(network.level_dims) + 1):
        for block in network.get_submodule(f"layer{i}").children():
            assert isinstance(block, Residual)
            x, known = _block(block, x, known)
    return (x * known).sum((2, 3)) / known.sum((2, 3)).clamp(min=1)


def _block(block: Residual, x: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    branch, seen = x, known
    for i in range(1, block.count + 1):
        branch, seen = _convolve(block.get_submodule(f"conv{i}"), block.get_submodule(f"bn{i}"), branch, seen)
        if i < block.count:
            branch = F.relu(branch)
    shortcut, beside = x, known
    if block.downsample is not None:
        shortcut, beside = _convolve(block.downsample[0], block.downsample[1], x, known)
    both = seen * beside
    return F.relu(torch.where(both > 0, shortcut + block.drop_path(branch), torch.zeros_like(branch))), both


def _convolve(conv: nn.Module, norm: nn.Module, x: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    assert isinstance(conv, nn.Conv2d)
    kernel, stride, padding = conv.kernel_size[0], conv.stride[0], conv.kernel_size[0] // 2
    # Filling serves the convolution alone; what counts as visible afterwards goes by the mask from before it.
    filled = fill_from_neighbours(x, known, kernel)[0] if kernel > 1 else x
    known = F.max_pool2d(known, kernel, stride, padding)
    out = norm(conv(filled))
    return torch.where(known > 0, out, torch.zeros_like(out)), known


#: Most cells along each side of a grid of tokens, by its number of sides.
CELLS = {1: 16, 2: 4, 3: 3}


def token_cells(grid: Sequence[int]) -> Tensor:
    """The cell that every token of a grid belongs to, in raster order: (N,) int64, cells counted so too."""
    cell = torch.zeros(1, dtype=torch.int64)
    for side in grid:
        parts = min(side, CELLS.get(len(grid), 3))
        cell = (cell[:, None] * parts + torch.arange(side) * parts // side).flatten()
    return cell


@torch.no_grad()
def token_attribution(likeness: Callable[[Tensor], Tensor], cell: Tensor, count: int) -> Tensor:
    """How much each cell of tokens matters: what leaving its tokens out takes from a likeness of 1.

    Args:
        likeness: (B, K) int64 tokens that stay -> (B,).
        cell: (N,) cell of every token.
        count: samples B.

    Returns:
        (B, cells).
    """
    lost = [1 - likeness((cell != c).nonzero()[:, 0].expand(count, -1)) for c in range(int(cell.max()) + 1)]
    return torch.stack(lost, 1)


@torch.no_grad()
def attribution(score: Callable[[Tensor, Tensor], Tensor], x: Tensor, cells: int = 4) -> Tensor:
    """How much each of ``cells`` x ``cells`` regions matters: the score of the whole less that without the region.

    Args:
        score: (images (B, C, H, W), visible (B, H, W)) -> (B,).
        x: (B, C, H, W).
        cells: regions along a side; at most the side in pixels.

    Returns:
        (B, cells, cells).
    """
    b, _, h, w = x.shape
    whole = score(x, torch.ones(b, h, w, dtype=torch.bool, device=x.device))
    out = x.new_zeros(b, cells, cells)
    rows, columns = (torch.arange(n, device=x.device) * cells // n for n in (h, w))
    for i in range(cells):
        for j in range(cells):
            hidden = (rows == i)[:, None] & (columns == j)[None]
            out[:, i, j] = whole - score(x, (~hidden).expand(b, h, w))
    return out
