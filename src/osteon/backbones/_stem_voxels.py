"""How a cloud of points becomes tokens in linear time: one a cell of a grid, of as many cells as hold points.

Chen et al. 2024 (P3P, arXiv:2408.10007): every cell is divided into small voxels, each voxel's place within its cell
has weights of its own, and a token is the mean of its voxels under those weights ("sparse weight indexing").
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones._stem_points import check_cloud
from osteon.backbones._stems import Stem, present_or_none
from osteon.core.errors import UsageError
from osteon.parts.clouds import chamfer, morton, take_points


class Voxels:
    """Where the points of a batch lie, all computed in time linear in the number of points.

    Attributes:
        cell: (B, P) int64, number of each point's cell in Z-order.
        token: (B, P) int64, number of each point's token.
        voxel: (B, P) int64, number of each point's voxel within its cell.
        inside: (B, P, 3) place within the cell, -1 to 1.
        centres: (B, N, 3) centre of every token's cell; 0 of tokens without a cell.
        count: (B,) occupied cells.
        half: (B, 1, 1) half the side of a cell.
    """

    def __init__(self, x: Tensor, tokens: int, fine: int) -> None:
        side = int(round(tokens ** (1 / 3) + 1e-6, 6))  # cells of a grid, at most as many as there are tokens
        side -= side**3 > tokens
        points = x[:, :3].transpose(1, 2).detach()
        low, high = points.amin(1, keepdim=True), points.amax(1, keepdim=True)
        size = (high - low).amax(2, keepdim=True).clamp(min=1e-12) / side
        corner = (low + high) / 2 - size * side / 2
        scaled = ((points - corner) / size).clamp(0, side)
        place = scaled.long().clamp(max=side - 1)  # (B, P, 3)
        within = scaled - place  # 0 to 1
        small = (within * fine).long().clamp(max=fine - 1)
        self.voxel = (small[..., 0] * fine + small[..., 1]) * fine + small[..., 2]
        self.inside, self.half = 2 * within - 1, size / 2
        bits = max(1, (side - 1).bit_length())
        self.cell = morton(place, bits)
        held = torch.zeros(x.shape[0], 8**bits, dtype=torch.int64, device=x.device).scatter(1, self.cell, 1)
        number = held.cumsum(1) - 1  # of every cell in Z-order among the occupied ones
        self.count = held.sum(1)
        self.token = number.gather(1, self.cell)
        middle = corner + (place + 0.5) * size
        self.centres = torch.zeros(x.shape[0], tokens, 3, dtype=points.dtype, device=x.device).scatter(
            1, self.token[..., None].expand(-1, -1, 3), middle)


class VoxelTokens(Stem):
    """A token a cell that holds points: (B, 3 + F, P) -> (B, N, D), in Z-order, then tokens that fill up.

    The grid is the bounding cube of a cloud, so many cells a side that their number is at most N = ``P' // stride`` for
    a cloud of P' points: no point is ever left out, each belongs to exactly one token. A voxel holds the mean of its
    points: coordinates within the cell (-1 to 1), further channels, and a constant.

    What a token shows is, for each of its voxels, those coordinates and channels and a mark, 1 where the voxel is
    occupied: (B, N, fine^3 (C + 1)). Predictions are judged as in the authors' code by the squared Chamfer distance of
    the coordinates in occupied voxels, the squared error of further channels there, and the cross-entropy of occupancy.

    Args:
        channels: C = 3 coordinates and F further values of a point.
        extent: (P,).
        dim: width of a token.
        cells: cells a side of the grid.
        fine: voxels a side of a cell.
    """

    place_width = 3
    own_error = True

    def __init__(self, channels: int, extent: Sequence[int], dim: int, *, cells: int = 4, fine: int = 4) -> None:
        super().__init__()
        points = check_cloud(channels, extent)
        if cells < 2 or not 1 <= fine <= 16 or cells**3 > points:
            raise UsageError(f"{points:,} points cannot be cut into {cells} x {cells} x {cells} cells of {fine} voxels "
                             "a side.", where="cells", fix="Give cells >= 2, no more cells than points, fine 1 to 16.")
        self.tokens = min(n for n in range(cells**3, points + 1) if points % n == 0)
        self.stride, self.cells, self.fine, self.channels = points // self.tokens, cells, fine, channels
        self.shown_width = fine**3 * (channels + 1)
        self.weight = nn.Parameter(torch.empty(fine**3, channels + 1, dim))
        self.initialise()

    def forward(self, x: Tensor) -> Tensor:
        """Embed every cell."""
        where, tokens = self._voxels(x)
        voxel = where.token * self.fine**3 + where.voxel
        voxels = x.new_zeros(x.shape[0], tokens * self.fine**3)
        together = voxels.scatter_add(1, voxel, torch.ones_like(x[:, 0]))  # points of every voxel
        occupied = (together > 0).view(x.shape[0], tokens, -1).sum(2)
        values = torch.cat([where.inside, x[:, 3:].transpose(1, 2), torch.ones_like(where.inside[..., :1])], -1)
        values = values / together.gather(1, voxel)[..., None]
        each = torch.einsum("bpc,bpcd->bpd", values.to(self.weight.dtype), self.weight[where.voxel])
        total = each.new_zeros(x.shape[0], tokens, each.shape[-1]).scatter_add(
            1, where.token[..., None].expand_as(each), each)
        return total / occupied.clamp(min=1)[..., None]

    def _voxels(self, x: Tensor) -> tuple[Voxels, int]:
        tokens = max(1, x.shape[2] // self.stride)
        return Voxels(x, tokens, self.fine), tokens

    def places(self, x: Tensor) -> Tensor:
        """Centres of the cells, (B, N, 3)."""
        return self._voxels(x)[0].centres

    def present(self, x: Tensor) -> Tensor | None:
        """Tokens that have a cell."""
        where, tokens = self._voxels(x)
        return present_or_none(torch.arange(tokens, device=x.device) < where.count[:, None])

    def shown(self, x: Tensor) -> Tensor:
        """What every voxel holds and whether it holds anything, (B, N, fine^3 (C + 1))."""
        where, tokens = self._voxels(x)
        voxel = (where.token * self.fine**3 + where.voxel)[..., None]
        values = torch.cat([where.inside, x[:, 3:].transpose(1, 2), torch.ones_like(where.inside[..., :1])], -1)
        total = values.new_zeros(x.shape[0], tokens * self.fine**3, self.channels + 1).scatter_add(
            1, voxel.expand_as(values), values)
        return (total / total[..., -1:].clamp(min=1)).view(x.shape[0], tokens, -1)

    def shown_error(self, prediction: Tensor, shown: Tensor) -> Tensor:
        """Error of every token, (B, N) float32; see the class."""
        guess, true = (v.float().unflatten(-1, (-1, self.channels + 1)) for v in (prediction, shown))
        real = true[..., -1] > 0.5
        places = chamfer(guess[..., :3], true[..., :3], real, real)
        marks = F.binary_cross_entropy_with_logits(guess[..., -1], real.float(), reduction="none").mean(-1)
        if self.channels == 3:
            return places + marks
        others = (guess[..., 3:-1] - true[..., 3:-1]).square().mean(-1)
        return places + marks + (others * real).sum(-1) / real.sum(-1).clamp(min=1)

    def shown_values(self, prediction: Tensor) -> Tensor:
        """Predictions with marks of 0 or 1."""
        values = prediction.float().unflatten(-1, (-1, self.channels + 1)).clone()
        values[..., -1] = (values[..., -1] > 0).float()
        return values.flatten(-2)

    def assemble(self, shown: Tensor, x: Tensor) -> Tensor:
        """The means of all occupied voxels, repeated until they are P points: (B, 3 + F, P)."""
        where, _ = self._voxels(x)
        values = shown.unflatten(-1, (-1, self.channels + 1))
        there = torch.arange(values.shape[1], device=x.device) < where.count[:, None]
        marks = (values[..., -1] > 0.5) & there[..., None]
        absolute = where.centres[:, :, None] + values[..., :3] * where.half[..., None]
        flat = torch.cat([absolute, values[..., 3:-1]], -1).flatten(1, 2)
        first = (~marks).flatten(1).int().argsort(dim=1, stable=True)
        turn = torch.arange(x.shape[2], device=x.device) % marks.flatten(1).sum(1, keepdim=True).clamp(min=1)
        return take_points(flat, first.gather(1, turn)).transpose(1, 2).to(x.dtype)

    def note(self) -> str:
        """What a token is."""
        return (f"tokens: {self.cells} x {self.cells} x {self.cells} cells of a cloud's bounding cube, {self.fine} x "
                f"{self.fine} x {self.fine} voxels each, at most {self.tokens}; cells without points are left out")

    def initialise(self) -> None:
        """Xavier-uniform, as a linear map on one voxel: a token is the mean of maps of one voxel each."""
        bound = (6 / (self.weight.shape[1] + self.weight.shape[2])) ** 0.5
        nn.init.uniform_(self.weight, -bound, bound)


STEM = VoxelTokens
