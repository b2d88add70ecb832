"""Views of volumes and clips: crops of three sides, mirrors, gain, contrast, blur and noise, drawn for the whole batch.

A sample is (C, D, H, W): channels, depth or time, height, width. Crop, resize, mirror and blur are one banded matrix a
side and sample, as for images (:mod:`osteon.views.crop`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from osteon.core.errors import UsageError
from osteon.parts.types import DataSpec, Draws, Geometry, View
from osteon.views.crop import resample_matrix
from osteon.views.pipeline import standardise

Sides = tuple[float, float, float]


@dataclass(frozen=True)
class SolidPlan:
    """What one view consists of, in the order in which it is done. Amounts are in deviations of the data.

    Args:
        extent: sides of the view.
        spans: smallest share of each side that is kept; the largest is 1. The crop is resized to the view's sides.
        flips: probability of a mirror along each side.
        blur: largest deviation, in cells of the view, of a Gaussian along each side; the deviation is uniform from 0,
            one share of the largest for all sides.
        contrast: deviation of the logarithm of a factor on what differs from the sample's mean, a channel each.
        gain: deviation of a shift of the whole sample, a channel each.
        noise: largest deviation of white noise; the deviation itself is uniform from 0.
    """

    extent: tuple[int, int, int]
    spans: Sides = (1.0, 1.0, 1.0)
    flips: Sides = (0.0, 0.0, 0.0)
    blur: Sides = (0.0, 0.0, 0.0)
    contrast: float = 0.0
    gain: float = 0.0
    noise: float = 0.0

    def view(self, x: Tensor, spec: DataSpec, draws: Draws) -> View:
        """Draw and compute the view of samples (B, C, D, H, W) already divided by ``spec.scale``."""
        edges, params = sample_edges(draws.fork("crop"), self.spans).to(x.device), dict[str, Tensor]()
        flip = draws.fork("flip").rand(3) < torch.tensor(self.flips, device=draws.device)
        if any(self.flips):
            params["flips"] = flip
        y = standardise(x, spec)
        if min(self.spans) < 1 or self.extent != tuple(x.shape[2:]) or any(self.flips):
            y = cut(y, edges, self.extent, flip.to(x.device))
        if any(self.blur):
            params["blur"] = draws.fork("blur").rand()
            for side in (side for side in range(3) if self.blur[side]):
                y = blur(y, params["blur"] * self.blur[side], side)
        y = self._values(y, draws, params)
        box = torch.stack([edges[:, 2, 0], edges[:, 1, 0], edges[:, 2, 1], edges[:, 1, 1]], 1)
        return View(y, Geometry(box, flip[:, 2], edges[:, 0]), params)

    def _values(self, y: Tensor, draws: Draws, params: dict[str, Tensor]) -> Tensor:
        """Contrast, gain and noise of standardised samples; what was drawn goes into ``params``."""
        batch, channels = y.shape[:2]
        if self.contrast:
            params["contrast"] = (self.contrast * draws.fork("contrast").randn(channels)).exp()
            middle = y.mean((2, 3, 4), keepdim=True)
            y = middle + (y - middle) * params["contrast"].view(batch, channels, 1, 1, 1)
        if self.gain:
            params["gain"] = self.gain * draws.fork("gain").randn(channels)
            y = y + params["gain"].view(batch, channels, 1, 1, 1)
        if self.noise:
            stream = draws.fork("noise")
            params["noise"] = self.noise * stream.rand()
            y = y + params["noise"].view(batch, 1, 1, 1, 1) * stream.randn(*y.shape[1:])
        return y


def sample_edges(draws: Draws, spans: Sides) -> Tensor:
    """Random stretches of each side as fractions (B, 3, 2): shares uniform from the least to 1, places uniform."""
    if not all(0 < share <= 1 for share in spans):
        raise UsageError(f"Crops of {spans} of the sides of a sample are impossible.", where="views",
                         fix="Give shares in (0, 1].")
    u = draws.rand(3, 2)
    least = torch.tensor(spans, device=u.device)
    share = least + (1 - least) * u[..., 0]
    start = u[..., 1] * (1 - share)
    return torch.stack([start, start + share], -1)


def cut(x: Tensor, edges: Tensor, size: tuple[int, ...], flip: Tensor) -> Tensor:
    """Crop, resize and mirror: trilinear, antialiased where it gets smaller.

    Args:
        x: (B, C, D, H, W) float.
        edges: (B, 3, 2) first and last edge of each side, as fractions.
        size: sides of the result.
        flip: (B, 3) bool, True mirrors that side.

    Returns:
        (B, C, *size).
    """
    for side, length in enumerate(size):
        have = x.shape[2 + side]
        edge = edges[:, side].to(x) * have
        x = along(x, resample_matrix(edge[:, 0], edge[:, 1], have, length, flip[:, side]), side)
    return x


def blur(x: Tensor, sigma: Tensor, side: int) -> Tensor:
    """Gaussian of deviation ``sigma`` (B,) cells along one side, weights normalised at the borders."""
    cell = torch.arange(x.shape[2 + side], device=x.device, dtype=x.dtype)
    distance = (cell[:, None] - cell) / sigma.to(x).clamp(min=1e-3)[:, None, None]
    return along(x, (-distance.square() / 2).softmax(-1), side)


def along(x: Tensor, weights: Tensor, side: int) -> Tensor:
    """Apply a matrix a sample (B, out, in) along one side of (B, C, D, H, W)."""
    moved = x.movedim(2 + side, 1)  # (B, in, ...)
    out = torch.bmm(weights, moved.reshape(len(x), moved.shape[1], -1))
    return out.view(len(x), -1, *moved.shape[2:]).movedim(1, 2 + side)


@dataclass(frozen=True)
class Manner:
    """How the samples of one modality may be changed.

    Args:
        spans: least share of every side when ``min_scale`` of a sample (of a frame, in clips) is kept at least.
        flips: sides that are mirrored when mirrors are asked for.
        blur: sides that are blurred.
    """

    spans: Callable[[float], Sides]
    flips: tuple[bool, bool, bool]
    blur: tuple[bool, bool, bool]

    def plan(self, spec: DataSpec, min_scale: float, strength: float, flip: bool) -> SolidPlan:
        """A view at full size: the amounts are those of ``strength`` 1."""
        if not 0 < min_scale <= 1:
            raise UsageError(f"Crops of {min_scale} of a sample are impossible.", where="min_scale",
                             fix="Give a share in (0, 1].")
        if strength < 0:
            raise UsageError(f"A strength of {strength} has no meaning.", where="strength", fix="Give 0 or more.")
        flips, blurs = (cast(Sides, tuple(share * on for on in sides))
                        for share, sides in ((0.5 * flip, self.flips), (strength, self.blur)))
        return SolidPlan(cast(tuple[int, int, int], tuple(spec.extent)), self.spans(min_scale), flips, blurs,
                         contrast=0.3 * strength, gain=0.3 * strength, noise=0.3 * strength)


def recipes_of(manner: Manner) -> dict[str, Callable[..., list[SolidPlan]]]:
    """Recipe name -> function of the data and keyword options that plans its views, by the names images have.

    ``min_scale`` is the smallest share of a sample (of a frame, in clips) in a view, ``strength`` multiplies blur,
    contrast, gain and noise, and ``flip`` mirrors at random; nothing is mirrored without it.
    """

    def none(spec: DataSpec) -> list[SolidPlan]:
        return [SolidPlan(cast(tuple[int, int, int], tuple(spec.extent)))]

    def crop_flip(spec: DataSpec, *, min_scale: float = 0.5, flip: bool = False, n_views: int = 1) -> list[SolidPlan]:
        return [manner.plan(spec, min_scale, 0.0, flip)] * n_views

    def simclr(spec: DataSpec, *, min_scale: float = 0.3, strength: float = 1.0, flip: bool = False,
               n_views: int = 2) -> list[SolidPlan]:
        return [manner.plan(spec, min_scale, strength, flip)] * n_views

    def byol(spec: DataSpec, *, min_scale: float = 0.3, strength: float = 1.0, flip: bool = False) -> list[SolidPlan]:
        return simclr(spec, min_scale=min_scale, strength=strength, flip=flip)

    def multicrop(spec: DataSpec, *, style: str = "swav", n_local: int = 4, stride: int = 1, global_scale: float = 0.5,
                  strength: float = 1.0, flip: bool = False) -> list[SolidPlan]:
        whole = manner.plan(spec, global_scale, strength, flip)
        part = manner.plan(spec, global_scale / 4, strength, flip)
        half = tuple(max(1, round(side / 2 / stride)) * stride for side in spec.extent)
        return [whole, whole] + [replace(part, extent=cast(tuple[int, int, int], half))] * n_local

    def supervised(spec: DataSpec, *, min_scale: float = 0.5, strength: float = 0.5,
                   flip: bool = False) -> list[SolidPlan]:
        return [manner.plan(spec, min_scale, strength, flip)]

    return {recipe.__name__: recipe for recipe in (none, crop_flip, simclr, byol, multicrop, supervised)}
