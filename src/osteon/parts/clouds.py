"""Sets of points in space: farthest points, nearest points, an order along a curve, and the Chamfer distance.

Shape letters: B batch, P points of a cloud, G points chosen of them, k neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Distances held at once while nearest points are sought.
HELD = 2**22


def farthest_points(points: Tensor, count: int) -> Tensor:
    """Greedy farthest points, from the first one on: (B, P, 3) -> (B, ``count``) int64.

    Every next point is the one farthest from those chosen (Eldar et al. 1997, "The farthest point strategy for
    progressive image sampling"). Where a cloud has fewer distinct points, its first point is chosen again.
    """
    batch, total, _ = points.shape
    if not 1 <= count <= total:
        raise ValueError(f"{count} of {total} points")
    sides = points.detach().transpose(1, 2).contiguous()
    far = torch.full((batch, total), torch.inf, device=points.device, dtype=points.dtype)
    chosen = [torch.zeros(batch, 1, dtype=torch.int64, device=points.device)]
    for _ in range(1, count):
        last = sides.gather(2, chosen[-1][:, None].expand(-1, 3, -1))
        far = torch.minimum(far, (sides - last).square().sum(1))
        chosen.append(far.argmax(1, keepdim=True))
    return torch.cat(chosen, 1)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(..., n, 3), (..., m, 3) -> (..., n, m), coordinate by coordinate: exact at 0, the same in any batch."""
    total = (a[..., :, None, 0] - b[..., None, :, 0]).square()
    for side in range(1, a.shape[-1]):
        total = total + (a[..., :, None, side] - b[..., None, :, side]).square()
    return total


def nearest_points(points: Tensor, centres: Tensor, count: int) -> Tensor:
    """Numbers of the ``count`` nearest points of every centre, the nearest first: (B, P, 3), (B, G, 3) -> (B, G, k)."""
    apart = squared_distances(centres.detach(), points.detach())
    return apart.topk(count, dim=-1, largest=False, sorted=True).indices


def take_points(values: Tensor, index: Tensor) -> Tensor:
    """Rows of (B, P, C) by number: index (B, ...) -> (B, ..., C)."""
    flat = index.flatten(1)[..., None].expand(-1, -1, values.shape[-1])
    return values.gather(1, flat).view(*index.shape, values.shape[-1])


def morton(cells: Tensor, bits: int = 10) -> Tensor:
    """Number of cells (..., 3) int64 along the Z-order curve (Morton 1966): bits of x, y and z in turn, x highest."""
    bit = torch.arange(bits, device=cells.device)
    place = 3 * bit + torch.tensor([[2], [1], [0]], device=cells.device)
    return (((cells[..., None] >> bit) & 1) << place).sum((-2, -1))


def curve_order(points: Tensor, bits: int = 10) -> Tensor:
    """Order of points along the Z-order curve of their bounding cube: (B, G, 3) -> (B, G) int64."""
    low = points.amin(1, keepdim=True)
    side = (points.amax(1, keepdim=True) - low).amax(2, keepdim=True).clamp(min=1e-12)
    cells = ((points - low) / side * 2**bits).long().clamp(0, 2**bits - 1)
    return morton(cells, bits).argsort(dim=1, stable=True)


def chamfer(a: Tensor, b: Tensor, real_a: Tensor | None = None, real_b: Tensor | None = None) -> Tensor:
    """Squared Chamfer distance (Fan et al. 2017, arXiv:1612.00603, section 4.1; means instead of sums).

    The mean over points of ``a`` of the squared distance to the nearest point of ``b``, plus the same the other way
    round. Neighbours are found in blocks without gradient, so that what is kept for the backward pass grows with
    n + m and not with n m.

    Args:
        a: (..., n, 3).
        b: (..., m, 3).
        real_a: (..., n) bool, which points of ``a`` there are; None = all.
        real_b: (..., m) bool, the same of ``b``.

    Returns:
        (...) of ``a``'s type; 0 where either set is empty.
    """
    shape = a.shape[:-2]
    a, b = a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:])
    real_a = None if real_a is None else real_a.reshape(a.shape[:2])
    real_b = None if real_b is None else real_b.reshape(b.shape[:2])
    near_b, near_a = _neighbours(a, b, real_a, real_b)
    there = (a - take_points(b, near_b)).square().sum(-1)
    back = (b - take_points(a, near_a)).square().sum(-1)
    total = _mean(there, real_a) + _mean(back, real_b)
    if real_a is not None:
        total = total * real_a.any(1)
    if real_b is not None:
        total = total * real_b.any(1)
    return total.view(shape)


@torch.no_grad()
def _neighbours(a: Tensor, b: Tensor, real_a: Tensor | None, real_b: Tensor | None) -> tuple[Tensor, Tensor]:
    """Of every point of a set the number of the nearest real one of the other: (R, n), (R, m)."""
    rows = max(1, HELD // (a.shape[1] * b.shape[1]))
    first, second = [], []
    for start in range(0, len(a), rows):
        part = slice(start, start + rows)
        apart = squared_distances(a[part], b[part])
        to_b = apart if real_b is None else apart.masked_fill(~real_b[part, None], torch.inf)
        to_a = apart if real_a is None else apart.masked_fill(~real_a[part, :, None], torch.inf)
        first.append(to_b.argmin(2))
        second.append(to_a.argmin(1))
    return torch.cat(first), torch.cat(second)


def _mean(values: Tensor, real: Tensor | None) -> Tensor:
    if real is None:
        return values.mean(1)
    return (values * real).sum(1) / real.sum(1).clamp(min=1)
