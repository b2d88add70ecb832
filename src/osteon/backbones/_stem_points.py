"""How a cloud of points becomes tokens: groups of near points about centres that lie far from each other.

Yu et al. 2022 (Point-BERT, arXiv:2111.14819, section 3.1) and Pang et al. 2022 (Point-MAE, arXiv:2203.06604, section
3.1): farthest points are the centres, the nearest points of each are its group, in coordinates about the centre, and a
small PointNet makes a token of each group.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones._stems import Stem
from osteon.core.errors import UsageError
from osteon.parts.clouds import chamfer, curve_order, farthest_points, nearest_points, take_points

#: Tokens without being asked, and points of a cloud each of them needs.
USUAL_GROUPS, LEAST_POINTS = 64, 8


class PointGroups(Stem):
    """A token a group of near points: (B, 3 + F, P) -> (B, G, D), coordinates first, in the order of a Z-order curve.

    Neighbours in the order of tokens are near each other in space, so that spans of tokens (I-JEPA's blocks, SimMIM's
    cells) are regions and AIM reads a cloud along the curve. The choice of groups depends on the samples alone: the
    first point is the first centre. A cloud of P' points has ``P' // stride`` groups.

    What a token shows are the coordinates of its points about the centre, (B, G, 3 k); predictions are judged by the
    squared Chamfer distance. Further channels (normals, colours) are read and not predicted.

    Args:
        channels: 3 coordinates and F further values of a point.
        extent: (P,).
        dim: width of a token.
        groups: tokens of a cloud, a divisor of P; 0 = the largest one up to 64 that leaves 8 points a token.
        size: points of a group; 0 = twice as many as make the groups meet (P / G).
    """

    place_width = 3
    own_error = True

    def __init__(self, channels: int, extent: Sequence[int], dim: int, *, groups: int = 0, size: int = 0) -> None:
        super().__init__()
        points = check_cloud(channels, extent)
        self.asked = bool(groups)
        most = min(USUAL_GROUPS, max(1, points // LEAST_POINTS))
        groups = groups or max(n for n in range(1, most + 1) if points % n == 0)
        if not 1 < groups <= points or points % groups:
            raise UsageError(f"{points:,} points do not make {groups} groups.", where="groups",
                             fix="Give a divisor of the number of points, or read them with --set points=1024.")
        self.stride, self.groups = points // groups, groups
        self.size = min(size or 2 * self.stride, points)
        if self.size < 2:
            raise UsageError(f"A group of {self.size} point has no shape.", where="size", fix="Give 2 or more.")
        self.shown_width = 3 * self.size
        half = max(1, dim // 2)
        self.lift, self.norm1, self.widen = nn.Linear(channels, half), nn.LayerNorm(half), nn.Linear(half, dim)
        self.local, self.whole = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False)
        self.norm2, self.out = nn.LayerNorm(dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Embed every group."""
        centres, index = self.group(x)
        values = take_points(x.transpose(1, 2), index)  # (B, G, k, 3 + F)
        values = torch.cat([values[..., :3] - centres[:, :, None], values[..., 3:]], -1)
        each = self.widen(F.relu(self.norm1(self.lift(values))))
        whole = each.amax(2, keepdim=True)
        # A linear map of a point's features beside its group's is the sum of two, the second once a group.
        mixed = F.relu(self.norm2(self.local(each) + self.whole(whole)))
        return self.out(mixed).amax(2)

    def group(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Centres (B, G, 3) and numbers of the points of every group, the nearest first, (B, G, k) int64."""
        centres = self.places(x)
        return centres, nearest_points(x[:, :3].transpose(1, 2), centres, min(self.size, x.shape[2]))

    def places(self, x: Tensor) -> Tensor:
        """The centres, (B, G, 3)."""
        points = x[:, :3].transpose(1, 2)
        centres = take_points(points, farthest_points(points, max(1, x.shape[2] // self.stride)))
        return take_points(centres, curve_order(centres))

    def shown(self, x: Tensor) -> Tensor:
        """Coordinates of every group about its centre, (B, G, 3 k)."""
        centres, index = self.group(x)
        return (take_points(x[:, :3].transpose(1, 2), index) - centres[:, :, None]).flatten(2)

    def shown_error(self, prediction: Tensor, shown: Tensor) -> Tensor:
        """Squared Chamfer distance of predicted groups (B, G, 3 k) to the true ones: (B, G) float32."""
        return chamfer(prediction.float().unflatten(-1, (-1, 3)), shown.float().unflatten(-1, (-1, 3)))

    def assemble(self, shown: Tensor, x: Tensor) -> Tensor:
        """Groups put back at their centres, ``stride`` points of each: (B, 3 + F, P); further channels are 0."""
        centres = self.places(x)
        groups = shown.unflatten(-1, (-1, 3)) + centres[:, :, None]
        some = torch.arange(self.stride, device=x.device) * groups.shape[2] // self.stride
        out = torch.zeros_like(x)
        flat = groups[:, :, some].flatten(1, 2).transpose(1, 2)
        out[:, :3, :flat.shape[2]] = flat
        out[:, :3, flat.shape[2]:] = flat[:, :, :1]  # points that do not fill a group
        return out

    def note(self) -> str:
        """What a token is, by which rule."""
        rule = "as asked" if self.asked else f"rule: at most {USUAL_GROUPS}, {LEAST_POINTS} points a token at least"
        return (f"tokens: {self.groups} groups of {self.size} near points about farthest points, in Z-order of their "
                f"centres ({rule})")


def check_cloud(channels: int, extent: Sequence[int]) -> int:
    """Number of points of samples (3 + F, P). Raises UsageError for samples of another shape."""
    if len(extent) != 1 or channels < 3:
        raise UsageError(f"Samples of {channels} channels and sides {tuple(extent)} are no clouds of points.",
                         where="stem", fix="Give clouds (3 + F, P), e.g. --set modality=points.")
    return int(extent[0])


STEM = PointGroups
