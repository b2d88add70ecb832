"""Label maps as images: a random Gaussian a label, then the faults that images have, each by chance.

Dey et al. 2025, "Learning General-Purpose Biomedical Volume Representations using Randomized Synthesis", section 3 and
the authors' released data engine: what is done, in which order and how often. How strongly is ours.

Shape letters: b samples, C channels, D H W sides (D is 1 of images), K labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from osteon.parts.label_maps import MAX_LABELS
from osteon.parts.types import Draws
from osteon.views.solids import along, blur

#: Cells of the lattices of gradient noise along every side.
LATTICES = (2, 4, 8)


@dataclass(frozen=True)
class Rendering:
    """How often each fault strikes a sample, in the order in which they are applied.

    Args:
        texture: largest factor of gradient (Perlin) noise that multiplies everything; always there.
        bias: chance of a smooth factor over space.
        spikes: chance of a spike in k-space, a plane wave.
        gamma: chance of a power between 0.5 and 2.
        smooth: chance of Gaussian smoothing.
        gibbs: chance of ringing: the highest frequencies are cut off.
        sharpen: chance of sharpening.
        coarse: chance of a lower resolution.
    """

    texture: float = 1.0
    bias: float = 0.98
    spikes: float = 0.2
    gamma: float = 0.5
    smooth: float = 0.5
    gibbs: float = 0.5
    sharpen: float = 0.25
    coarse: float = 0.33

    def render(self, labels: Tensor, draws: Draws, channels: int = 1) -> Tensor:
        """One image of each label map, voxel for voxel, in float32 under autocast too.

        Args:
            labels: (b, *extent) int64 from 0 to K - 1, two or three sides.
            draws: the stream of this image.
            channels: each channel has Gaussians of its own, all have the same faults.

        Returns:
            (b, C, *extent) float32; every channel of every sample runs from 0 to 1.
        """
        with torch.autocast(labels.device.type, enabled=False):
            return self._render(labels, draws, channels)

    def _render(self, labels: Tensor, draws: Draws, channels: int) -> Tensor:
        extent = tuple(labels.shape[1:])
        solid = labels if len(extent) == 3 else labels[:, None]
        x = gaussians(solid, draws.fork("label"), channels)
        x = x * (1 + self.texture * texture(draws.fork("texture"), solid.shape[1:]))
        for name, fault in FAULTS.items():
            stream = draws.fork(name)
            struck = stream.rand() < getattr(self, name)
            if struck.any():
                x = torch.where(struck.view(-1, 1, 1, 1, 1), fault(x, stream), x)
        return unit(x).view(len(labels), channels, *extent)


def gaussians(labels: Tensor, draws: Draws, channels: int) -> Tensor:
    """Values of each label around a random mean in [0, 1], deviation 0.02 to 0.1: (b, D, H, W) -> (b, C, D, H, W)."""
    mean, spread = draws.rand(channels, MAX_LABELS), draws.uniform(0.02, 0.1, channels, MAX_LABELS)
    at = labels.flatten(1)[:, None].expand(-1, channels, -1)
    noise = draws.randn(channels, *labels.shape[1:])
    return (mean.gather(2, at).view_as(noise) + spread.gather(2, at).view_as(noise) * noise).clamp(min=0)


def texture(draws: Draws, sides: Sequence[int]) -> Tensor:
    """Gradient noise of three scales, each of a random amplitude up to 1: (b, 1, D, H, W), about -1 to 1."""
    weight = draws.fork("weight").rand(len(LATTICES))
    total = torch.stack([perlin(draws.fork(f"scale{n}"), sides, n) for n in LATTICES], 1)
    return torch.einsum("bs,bsdhw->bdhw", weight, total)[:, None]


def perlin(draws: Draws, sides: Sequence[int], cells: int) -> Tensor:
    """Perlin noise (Perlin 1985, "An image synthesizer"; the fade of 2002) on ``cells`` lattice cells along each side.

    At every lattice point a random direction stands; a place takes the products of its corners' directions with its
    offsets from them, faded into each other, so that it is 0 on lattice points. -> (b, D, H, W).
    """
    slopes = draws.randn(cells + 1, cells + 1, cells + 1, 3)
    slopes = slopes / slopes.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    point = torch.arange(cells + 1, device=slopes.device)
    weights, offsets = [], []
    for side in sides:
        off = ((torch.arange(side, device=slopes.device) + 0.5) / side * cells)[:, None] - point
        weights.append(fade((1 - off.abs()).clamp(min=0)))  # (side, points): of the two around a place
        offsets.append(weights[-1] * off)
    return torch.stack([torch.einsum("bijk,di,hj,wk->bdhw", slopes[..., axis], *(
        offsets[side] if side == axis else weights[side] for side in range(3))) for axis in range(3)]).sum(0)


def fade(t: Tensor) -> Tensor:
    """``6 t^5 - 15 t^4 + 10 t^3``: from 0 to 1 with no slope and no curvature at either end."""
    return t**3 * (t * (6 * t - 15) + 10)


def unit(x: Tensor) -> Tensor:
    """Every channel of every sample from 0 to 1; a constant one is 0. (b, C, D, H, W)."""
    low, high = x.amin((2, 3, 4), keepdim=True), x.amax((2, 3, 4), keepdim=True)
    return (x - low) / (high - low).clamp(min=1e-6)


def _bias(x: Tensor, draws: Draws) -> Tensor:
    """A factor exp(p), p a polynomial of degree up to 3 in Legendre's basis, coefficients within 0.2."""
    basis = []
    for side in x.shape[2:]:
        t = (2 * torch.arange(side, device=x.device) + 1 - side) / side
        basis.append(torch.stack([torch.ones_like(t), t, (3 * t**2 - 1) / 2, (5 * t**3 - 3 * t) / 2]))
    size = draws.uniform(-0.2, 0.2, 4, 4, 4)
    degree = torch.arange(4, device=size.device)
    low = (degree[:, None, None] + degree[:, None] + degree) <= 3
    return x * torch.einsum("bijk,id,jh,kw->bdhw", size * low, *basis)[:, None].exp()


def _spikes(x: Tensor, draws: Draws) -> Tensor:
    """A plane wave of up to half the sample's range: what one wrong value in k-space does."""
    sides, u = x.shape[2:], draws.rand(5)
    phase = 2 * math.pi * u[:, 0].view(-1, 1, 1, 1)
    for axis, side in enumerate(sides):
        waves = (u[:, 1 + axis] * side - side / 2).round()[:, None]  # whole cycles, up to one in two cells
        along_side = 2 * math.pi * waves * torch.arange(side, device=x.device) / side
        phase = phase + along_side.view(-1, *[side if i == axis else 1 for i in range(3)])
    strength = (0.1 + 0.4 * u[:, 4]).view(-1, 1, 1, 1, 1)
    return x + strength * (x.amax((2, 3, 4), keepdim=True) - x.amin((2, 3, 4), keepdim=True)) * phase.cos()[:, None]


def _gamma(x: Tensor, draws: Draws) -> Tensor:
    """A power uniform from 0.5 to 2 of values scaled to [0, 1]."""
    return unit(x).clamp(min=1e-6) ** draws.uniform(0.5, 2.0, 1, 1, 1, 1)


def _blurred(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian of deviations ``sigma`` (b, 3) cells along the three sides."""
    for side in range(3):
        x = blur(x, sigma[:, side], side)
    return x


def _smooth(x: Tensor, draws: Draws) -> Tensor:
    """Deviations of 0.25 to 1.5 cells, a side each."""
    return _blurred(x, draws.uniform(0.25, 1.5, 3))


def _gibbs(x: Tensor, draws: Draws) -> Tensor:
    """Frequencies beyond a radius are cut off: 0.3 to 1 of the largest."""
    square = torch.zeros((), device=x.device)
    for axis, side in enumerate(x.shape[2:]):
        place = [1, 1, 1]
        place[axis] = -1
        square = square + torch.fft.fftfreq(side, device=x.device).view(place).square()
    radius = square.sqrt()
    kept = radius <= draws.uniform(0.3, 1.0, 1, 1, 1, 1) * radius.max()
    return torch.fft.ifftn(torch.fft.fftn(x, dim=(2, 3, 4)) * kept, dim=(2, 3, 4)).real


def _sharpen(x: Tensor, draws: Draws) -> Tensor:
    """1 to 5 times what a Gaussian of 0.5 to 1 cells takes away is added."""
    sigma = draws.uniform(0.5, 1.0)[:, None].expand(-1, 3)
    return x + draws.uniform(1.0, 5.0, 1, 1, 1, 1) * (x - _blurred(x, sigma))


def _coarse(x: Tensor, draws: Draws) -> Tensor:
    """As read on a grid of 0.5 to 1 times the cells and enlarged linearly again."""
    share = draws.uniform(0.5, 1.0)
    for side in range(3):
        x = along(x, coarse_matrix(share, x.shape[2 + side]), side)
    return x


def coarse_matrix(share: Tensor, length: int) -> Tensor:
    """``share`` (b,) of the cells of a side are read, the nearest ones, and enlarged linearly: (b, length, length)."""
    few = (share * length).round().clamp(min=1)[:, None]  # (b, 1)
    cell = torch.arange(length, device=share.device)
    at = (((cell + 0.5) * few / length) - 0.5).clamp(min=0).minimum(few - 1)
    weights = torch.zeros(len(share), length, length, device=share.device)
    for low, weight in ((at.floor(), 1 - at.frac()), ((at.floor() + 1).minimum(few - 1), at.frac())):
        source = ((low + 0.5) * length / few).floor().long()
        weights.scatter_add_(2, source[..., None], weight[..., None])
    return weights


#: Fault -> function of images (b, C, D, H, W) and draws.
FAULTS = {"bias": _bias, "spikes": _spikes, "gamma": _gamma, "smooth": _smooth, "gibbs": _gibbs, "sharpen": _sharpen,
          "coarse": _coarse}
