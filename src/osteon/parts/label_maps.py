"""Label maps out of nothing: many random shapes laid over each other, each cell numbered by the shape on top.

After the data engine of Dey et al. 2025, "Learning General-Purpose Biomedical Volume Representations using Randomized
Synthesis", section 3; its shapes are those of organs, ours are generated.

Shape letters: b samples, S shapes, D H W sides (D is 1 of images).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from osteon.core.errors import DataError, UsageError
from osteon.parts.types import Draws

#: Least and most radius of a shape, and of a body that holds them all, in halves of the longest side.
RADII, BODY = (0.1, 0.5), (0.7, 1.0)
#: Most labels of a sample.
MAX_LABELS = 512


@dataclass
class Shapes:
    """Closed bodies between ellipsoids, diamonds and boxes, stretched, turned, bent, some of them hollow.

    Args:
        centre: (b, S, 3), in halves of the longest side.
        turn: (b, S, 3, 3) rotations.
        radii: (b, S, 3) half axes.
        power: (b, S) of the norm that bounds them: 1 diamond, 2 ellipsoid, large a box.
        hollow: (b, S) share of the radius that is empty, 0 of solid ones.
        sway: (b, S, 3) how far, and to which side, a wave bends the shape.
        wave: (b, S, 3) the wave's direction and frequency.
        phase: (b, S).
    """

    centre: Tensor
    turn: Tensor
    radii: Tensor
    power: Tensor
    hollow: Tensor
    sway: Tensor
    wave: Tensor
    phase: Tensor

    @classmethod
    def draw(cls, draws: Draws, count: int, radii: tuple[float, float], reach: Tensor) -> Shapes:
        """``count`` shapes a sample; centres uniform in a box of half sides ``reach`` (3,)."""
        u = draws.fork("uniform").rand(count, 8)
        n = draws.fork("normal").randn(count, 3, 6)
        size = radii[0] + (radii[1] - radii[0]) * u[..., 3:4]
        turn = torch.linalg.qr(n[..., :3])[0]
        return cls((2 * u[..., :3] - 1) * reach.to(u), turn, size * (0.3 * n[..., 3]).exp(),
                   (math.log(8.0) * u[..., 4]).exp(), torch.where(u[..., 5] < 0.2, 0.4 + 0.4 * u[..., 6], 0.0),
                   0.3 * size * n[..., 4], 3.0 * n[..., 5], 2 * math.pi * u[..., 7])

    def paint(self, labels: Tensor, sample: int, number: int, value: int) -> None:
        """Write ``value`` into the cells of one sample's ``labels`` (D, H, W) that lie in one of its shapes."""
        at, longest = (sample, number), max(labels.shape)
        reach = float(self.radii[at].norm() + self.sway[at].norm())  # of a ball around the shape
        spans = []
        for side, middle in zip(labels.shape, self.centre[at].tolist(), strict=True):
            first, last = (((middle + way * reach) * longest + side - 1) / 2 for way in (-1, 1))
            spans.append(range(max(0, math.ceil(first)), min(side, math.floor(last) + 1)))
        if not all(spans):
            return
        axes = [middles(side, longest, labels.device)[span.start:span.stop]
                for side, span in zip(labels.shape, spans, strict=True)]
        away = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
        with torch.autocast(labels.device.type, enabled=False):
            bend = (away @ self.wave[at] + self.phase[at]).sin()[..., None] * self.sway[at]
            along = ((away + bend - self.centre[at]) @ self.turn[at]) / self.radii[at]
            far = torch.linalg.vector_norm(along, float(self.power[at]), dim=-1)
        part = labels[tuple(slice(span.start, span.stop) for span in spans)]
        part[(far <= 1) & (far >= self.hollow[at])] = value


def middles(side: int, longest: int, device: torch.device | str = "cpu") -> Tensor:
    """Middles of the cells of a side, in halves of the longest side from the sample's middle."""
    return (2 * torch.arange(side, device=device) + 1 - side) / longest


def usual_shapes(extent: Sequence[int]) -> tuple[int, int]:
    """Fewest and most shapes of a sample: the paper's 20 to 40 where the longest side has 64 cells or more, else fewer.

    5 to 10 for 16 cells, 3 to 6 at least.
    """
    most = min(40, max(6, 40 * max(extent) // 64))
    return most // 2, most


def compose(draws: Draws, extent: Sequence[int], *, least: int, most: int, body: float = 0.5) -> Tensor:
    """Random label maps: ``least`` to ``most`` shapes of any place, angle and size, later ones over earlier ones.

    Args:
        draws: of the local samples.
        extent: two or three sides, in cells; an image is a slice through solid shapes.
        least: fewest shapes of a sample.
        most: most of them.
        body: how often everything lies in one large body, whose own label is ``most + 1``, with nothing around it.

    Returns:
        (b, *extent) int64: 0 where nothing is, else the number of the shape on top, from 1.

    Raises:
        UsageError: for impossible numbers of shapes or sides.
    """
    if not 1 <= least <= most < MAX_LABELS - 1 or len(extent) not in (2, 3) or min(extent) < 1:
        raise UsageError(f"Label maps of {least} to {most} shapes in {' x '.join(map(str, extent))} cells cannot be "
                         "made.", where="least, most", fix=f"Give 1 <= least <= most < {MAX_LABELS - 1} and 2 or 3 "
                         "sides.")
    sides = (1,) * (3 - len(extent)) + tuple(extent)
    reach = torch.tensor([(side - 1) / max(sides) for side in sides])
    count = least + (draws.fork("count").rand() * (most - least + 1)).long()
    shapes = Shapes.draw(draws.fork("shapes"), most, RADII, reach)
    bodies = Shapes.draw(draws.fork("body"), 1, BODY, 0.2 * reach)
    bodies.hollow.zero_()
    held = (draws.fork("held").rand() < body).tolist()
    labels = torch.zeros(len(count), *sides, dtype=torch.int64, device=draws.device)
    for row, much in enumerate(count.tolist()):
        for number in range(much):
            shapes.paint(labels[row], row, number, number + 1)
        if held[row]:
            inside = torch.zeros_like(labels[row])
            bodies.paint(inside, row, 0, 1)
            labels[row] = torch.where(labels[row] == 0, most + 1, labels[row]) * inside
    return labels.view(-1, *extent)


def number_labels(values: Tensor, where: str = "segments") -> Tensor:
    """The labels of each sample numbered from 0 in ascending order: (b, *extent) whole numbers -> int64.

    Raises:
        DataError: a sample with more than :data:`MAX_LABELS` of them is no segmentation.
    """
    out = torch.empty(values.shape, dtype=torch.int64, device=values.device)
    for row, sample in zip(out, values, strict=True):
        known, inverse = torch.unique(sample, return_inverse=True)
        if len(known) > MAX_LABELS:
            raise DataError(f"A sample has {len(known):,} different values, more than the {MAX_LABELS} labels a "
                            "segmentation may have.", where=where, fix="Give segmentations, or no segments=true.")
        row.copy_(inverse)
    return out
