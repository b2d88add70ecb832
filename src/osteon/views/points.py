"""Recipes of views of clouds of points: turned, stretched, moved, trembling, thinned out, cut.

Stretching and moving are Point-MAE's augmentation (Pang et al. 2022, arXiv:2203.06604, released code); turning,
trembling and thinning are those of PointNet and PointNet++ (Qi et al. 2017); cuts by a cube or a half-space are random
crops. Amounts are in units of a cloud's own radius for clouds in the unit sphere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from osteon.core.errors import UsageError
from osteon.parts.types import DataSpec, Draws, Geometry, View
from osteon.views.crop import full_boxes
from osteon.views.pipeline import standardise

#: Ways to turn a cloud.
TURNS = ("none", "up", "all")


@dataclass(frozen=True)
class PointsPlan:
    """What one view consists of, in the order in which it is done.

    Args:
        points: of the view.
        keep: smallest share of the points in a cut; the share is uniform from it to 1. Half of the cuts keep what lies
            on one side of a plane, half what lies in a cube about one of the points.
        drop: largest share of the points that are thinned out at random; the share is uniform from 0.
        turn: about no axis, the up axis of the data, or anyhow (uniform rotations).
        stretch: largest factor on each axis; the factors are uniform from its inverse.
        shift: largest shift along each axis.
        jitter: deviation of the noise on every coordinate, which is cut at 2.5 times that.
    """

    points: int
    keep: float = 1.0
    drop: float = 0.0
    turn: str = "none"
    stretch: float = 1.0
    shift: float = 0.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.keep <= 1 and 0 <= self.drop < 1 and self.stretch >= 1 and self.shift >= 0
                and self.jitter >= 0 and self.turn in TURNS):
            raise UsageError(f"Views of clouds with keep={self.keep:g}, drop={self.drop:g}, turn={self.turn}, "
                             f"stretch={self.stretch:g} are impossible.", where="views of points",
                             fix=f"Give shares in (0, 1], a turn of {', '.join(TURNS)}, a strength of 0 or more.")

    def view(self, x: Tensor, spec: DataSpec, draws: Draws) -> View:
        """Draw and compute the view of clouds (B, 3 + F, P)."""
        batch, params = len(x), dict[str, Tensor]()
        if self.keep < 1 or self.drop or self.points != x.shape[2]:
            index, params["kept"] = self.choose(x, draws)
            x = x.gather(2, index[:, None].expand(-1, x.shape[1], -1))
        place, others = x[:, :3], x[:, 3:]
        normals = bool(spec.traits.get("normals"))
        if self.turn != "none":
            turn = rotations(draws.fork("turn"), str(spec.traits.get("up", "z")) if self.turn == "up" else "").to(x)
            params["turn"] = turn
            place = turned(place, turn)
            if normals:
                others = torch.cat([turned(others[:, :3], turn), others[:, 3:]], 1)
        if self.stretch > 1:
            factor = draws.fork("stretch").uniform(1 / self.stretch, self.stretch, 3)
            params["stretch"] = factor
            place = place * factor[..., None]
            if normals:  # of a stretched surface: divided by the factors, and of length 1 again
                bent = others[:, :3] / factor[..., None]
                bent = bent / bent.norm(dim=1, keepdim=True).clamp(min=1e-12)
                others = torch.cat([bent, others[:, 3:]], 1)
        if self.shift:
            params["shift"] = draws.fork("shift").uniform(-self.shift, self.shift, 3)
            place = place + params["shift"][..., None]
        if self.jitter:
            noise = self.jitter * draws.fork("jitter").randn(3, place.shape[2])
            place = place + noise.clamp(-2.5 * self.jitter, 2.5 * self.jitter)
        whole = torch.zeros(batch, dtype=torch.bool, device=x.device)
        return View(standardise(torch.cat([place, others], 1), spec), Geometry(full_boxes(batch, x.device), whole),
                    params)

    def choose(self, x: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Which points the view has, (B, points) int64, in random order, and which of the cloud may be in it (B, P).

        Points too few are repeated in turn.
        """
        total = x.shape[2]
        rank = cut_rank(x[:, :3], draws.fork("cut"))
        share = draws.fork("keep").uniform(self.keep, 1.0) if self.keep < 1 else torch.ones(len(x), device=x.device)
        inside = rank < (share * total).ceil().clamp(min=1)[:, None]
        thin = draws.fork("drop").rand(total)
        if self.drop:
            stays = thin >= self.drop * draws.fork("thin").rand()[:, None]
            kept = inside & stays
            kept = torch.where(kept.any(1, keepdim=True), kept, inside)
        else:
            kept = inside
        order = torch.where(kept, draws.fork("order").rand(total), 2.0).argsort(1)
        turn = torch.arange(self.points, device=x.device) % kept.sum(1, keepdim=True)
        return order.gather(1, turn), kept


def cut_rank(place: Tensor, draws: Draws) -> Tensor:
    """Order in which points (B, 3, P) are kept by a cut: along a direction, or by the cube about a point; (B, P)."""
    direction = draws.randn(3)
    along = (place * direction[..., None]).sum(1)
    at = (draws.rand() * place.shape[2]).long().clamp(max=place.shape[2] - 1)
    centre = place.gather(2, at[:, None, None].expand(-1, 3, 1))
    about = (place - centre).abs().amax(1)
    key = torch.where(draws.rand()[:, None] < 0.5, along, about)
    return key.argsort(dim=1, stable=True).argsort(dim=1, stable=True)


def rotations(draws: Draws, up: str = "") -> Tensor:
    """Random rotations (B, 3, 3): about an axis ``x``, ``y`` or ``z``, or uniform over all (unit quaternions)."""
    if not up:
        q = draws.randn(4)
        w, x, y, z = (q / q.norm(dim=1, keepdim=True)).unbind(1)
        rows = [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
                2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
                2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]
        return torch.stack(rows, 1).view(-1, 3, 3)
    angle = draws.uniform(0, 2 * math.pi)
    axis = "xyz".index(up)
    first, second = (axis + 1) % 3, (axis + 2) % 3
    out = torch.zeros(len(angle), 3, 3, device=angle.device)
    out[:, axis, axis] = 1
    out[:, first, first] = out[:, second, second] = angle.cos()
    out[:, first, second], out[:, second, first] = -angle.sin(), angle.sin()
    return out


def turned(place: Tensor, turn: Tensor) -> Tensor:
    """Vectors (B, 3, P) under rotations (B, 3, 3); summed side by side, so that a row is the same in any batch."""
    return sum(turn[:, :, side, None] * place[:, side:side + 1] for side in range(3))  # type: ignore[return-value]


def none(spec: DataSpec) -> list[PointsPlan]:
    """No augmentation."""
    return [PointsPlan(spec.extent[0])]


def crop_flip(spec: DataSpec, *, min_scale: float = 1.0, strength: float = 1.0, turn: str = "none",
              n_views: int = 1) -> list[PointsPlan]:
    """Point-MAE's: each axis stretched by 2/3 to 3/2 and moved by up to 0.2; nothing is mirrored or cut.

    Args:
        spec: the data.
        min_scale: smallest share of the points in a cut; 1 = none.
        strength: multiplies stretch and shift.
        turn: ``none``, ``up`` or ``all``.
        n_views: number of views.
    """
    return [PointsPlan(spec.extent[0], min_scale, turn=turn, stretch=1.5**strength, shift=0.2 * strength)] * n_views


def simclr(spec: DataSpec, *, min_scale: float = 0.6, strength: float = 1.0, turn: str = "up", drop: float = 0.3,
           n_views: int = 2) -> list[PointsPlan]:
    """Views drawn alike: a cut, points thinned out, turned, stretched, moved, trembling.

    Args:
        spec: the data.
        min_scale: smallest share of the points in a cut.
        strength: multiplies stretch, shift and jitter.
        turn: ``none``, ``up`` (about the up axis) or ``all``.
        drop: largest share of the points thinned out.
        n_views: number of views.
    """
    plan = PointsPlan(spec.extent[0], min_scale, drop, turn, 1.25**strength, 0.1 * strength, 0.02 * strength)
    return [plan] * n_views


def byol(spec: DataSpec, *, min_scale: float = 0.6, strength: float = 1.0, turn: str = "up",
         drop: float = 0.3) -> list[PointsPlan]:
    """A pair drawn as in :func:`simclr`."""
    return simclr(spec, min_scale=min_scale, strength=strength, turn=turn, drop=drop)


def multicrop(spec: DataSpec, *, style: str = "swav", n_local: int = 4, stride: int = 1, global_scale: float = 0.6,
              strength: float = 1.0, turn: str = "up", drop: float = 0.3) -> list[PointsPlan]:
    """Two views of most of a cloud, then ``n_local`` of small parts of it with half as many points.

    Args:
        spec: the data.
        style: accepted for the sake of images, without effect.
        n_local: number of views of parts.
        stride: points a token of the backbone; the points of a part are a multiple of it.
        global_scale: smallest share of the points in a whole view.
        strength: multiplies stretch, shift and jitter.
        turn: ``none``, ``up`` or ``all``.
        drop: largest share of the points thinned out.
    """
    whole = simclr(spec, min_scale=global_scale, strength=strength, turn=turn, drop=drop, n_views=1)[0]
    few = max(1, round(spec.extent[0] / 2 / stride)) * stride
    return [whole, whole] + [replace(whole, points=few, keep=0.25)] * n_local


def supervised(spec: DataSpec, *, min_scale: float = 0.8, strength: float = 1.0, turn: str = "up",
               drop: float = 0.1) -> list[PointsPlan]:
    """Slight cuts, turned, stretched and moved, for training with labels."""
    return simclr(spec, min_scale=min_scale, strength=strength, turn=turn, drop=drop, n_views=1)


#: Recipe name -> function of the data and keyword options that plans its views.
RECIPES: dict[str, Callable[..., list[PointsPlan]]] = {
    recipe.__name__: recipe for recipe in (none, crop_flip, simclr, byol, multicrop, supervised)}
