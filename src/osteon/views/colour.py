"""Colour changes of a whole batch at once, every sample with its own parameters, in its own order.

All functions take (B, C, H, W) floats in [0, 1] and return the same; factors are (B,). They follow torchvision's
definitions (which follow Pillow's) on floats: clamps after every step, grey as 0.2989 R + 0.587 G + 0.114 B, hue on the
exact HSV hexcone. Recipes: Chen et al. 2020 (SimCLR), appendix A; Grill et al. 2020 (BYOL), appendix B.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from osteon.parts.types import Draws

#: Numbers of the four operations of a colour jitter, as they stand in ``Jitter.order``.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


def _each(value: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)."""
    return value[:, None, None, None]


def grey(x: Tensor) -> Tensor:
    """Brightness of each pixel, (B, 1, H, W): the usual weights for three channels, else the mean over channels."""
    if x.shape[1] == 1:
        return x
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return (0.2989 * x[:, :1]).add_(x[:, 1:2], alpha=0.587).add_(x[:, 2:], alpha=0.114)


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply by ``factor`` (B,): 0 black, 1 unchanged."""
    return (x * _each(factor)).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Move away from the image's mean grey by ``factor`` (B,): 0 flat grey, 1 unchanged."""
    mean = grey(x).mean((1, 2, 3))
    return torch.addcmul(_each((1 - factor) * mean), x, _each(factor)).clamp_(0, 1)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Move away from each pixel's grey by ``factor`` (B,): 0 grey, 1 unchanged. Three channels only."""
    return torch.addcmul(grey(x) * _each(1 - factor), x, _each(factor)).clamp_(0, 1)


def hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by ``shift`` (B,) full turns in [-0.5, 0.5], exactly, on the HSV hexcone. Three channels only."""
    red, green, blue = x.unbind(1)
    top, bottom = torch.maximum(red, green), torch.minimum(red, green)
    torch.maximum(top, blue, out=top)
    torch.minimum(bottom, blue, out=bottom)
    chroma = top - bottom
    # Position on the hexcone in sixths of a turn, times the chroma: nothing is divided, and grey pixels stay.
    h = torch.where(top == green, (blue - red).add_(chroma, alpha=2), (red - green).add_(chroma, alpha=4))
    h = torch.where(top == red, green - blue, h)
    h.addcmul_(chroma, (6 * (shift - shift.floor()))[:, None, None])
    turn = 6 * chroma
    h.addcmul_(turn, (h < 0).to(h.dtype)).addcmul_(turn, (h >= turn).to(h.dtype), value=-1)
    out = torch.empty_like(x)
    # HSV to RGB without cases: each channel is a trapezium over the hexcone.
    for channel, middle in enumerate((3, 2, 4)):
        away = torch.sub(h, chroma, alpha=middle).abs_()
        part = away.sub_(chroma) if channel == 0 else torch.sub(2 * chroma, away, out=away)
        torch.add(bottom, torch.minimum(part.clamp_(min=0), chroma, out=part), out=out[:, channel])
    return out


def to_grey(x: Tensor) -> Tensor:
    """Every channel replaced by the grey value."""
    return grey(x).expand_as(x)


def solarise(x: Tensor, threshold: float | Tensor = 0.5) -> Tensor:
    """Invert pixels at or above ``threshold`` (a number or (B,))."""
    if isinstance(threshold, Tensor):
        threshold = _each(threshold)
    return torch.where(x >= threshold, 1.0 - x, x)


def blur(x: Tensor, sigma: Tensor, sigma_max: float | None = None) -> Tensor:
    """Gaussian blur with a standard deviation per sample, mirrored at the border (edge pixel not repeated).

    Args:
        x: (B, C, H, W), any range.
        sigma: (B,) in pixels, > 0.
        sigma_max: sets the radius ``ceil(4 sigma_max)`` of the kernel; the largest of ``sigma`` when None. Give it
            whenever results must not depend on the rest of the batch.
    """
    reach = math.ceil(4 * (float(sigma.max()) if sigma_max is None else sigma_max))
    height, width = x.shape[2:]
    taps_v, taps_h = (_gaussian(sigma, min(reach, side - 1)) for side in (height, width))
    # A convolution with one kernel a sample is a grouped one over (sample, channel) planes.
    batch, channels = x.shape[:2]
    radius_v, radius_h = taps_v.shape[1] // 2, taps_h.shape[1] // 2
    planes = functional.pad(x, (radius_h, radius_h, radius_v, radius_v), mode="reflect").view(1, batch * channels,
                                                                                              height + 2 * radius_v, -1)
    kernel_v = taps_v.repeat_interleave(channels, 0)[:, None, :, None]
    kernel_h = taps_h.repeat_interleave(channels, 0)[:, None, None, :]
    planes = functional.conv2d(planes, kernel_v, groups=batch * channels)
    return functional.conv2d(planes, kernel_h, groups=batch * channels).view(batch, channels, height, width)


def _gaussian(sigma: Tensor, radius: int) -> Tensor:
    """Normalised Gaussian taps, (B, 2 radius + 1)."""
    offset = torch.arange(-radius, radius + 1, device=sigma.device, dtype=sigma.dtype)
    taps = torch.exp(-0.5 * (offset / sigma[:, None]) ** 2)
    return taps / taps.sum(1, keepdim=True)


@dataclass
class Jitter:
    """Parameters of a colour jitter, one a sample.

    Args:
        factor: (B, 4) brightness, contrast, saturation factors and hue shift.
        order: (B, 4) int64: the operation done first, second, ...
        on: (B,) bool, False leaves the sample alone.
    """

    factor: Tensor
    order: Tensor
    on: Tensor

    @classmethod
    def draw(cls, draws: Draws, strength: tuple[float, float, float, float], chance: float) -> Jitter:
        """Factors uniform in [max(0, 1 - s), 1 + s], hue in [-s, s], random order, done with probability ``chance``."""
        u = draws.rand(4)
        low = u.new_tensor([max(0.0, 1 - s) for s in strength[:3]] + [-strength[3]])
        high = u.new_tensor([1 + s for s in strength[:3]] + [strength[3]])
        return cls(low + (high - low) * u, draws.rand(4).argsort(1), draws.rand() < chance)


def jitter(x: Tensor, p: Jitter) -> Tensor:
    """Apply a colour jitter; each sample in its own order. Hue and saturation only touch three-channel images.

    Samples are grouped by the step at which their hue turns: each then costs one hue and three cheap operations,
    and samples that are left alone cost nothing.
    """
    out = x.clone()
    colourful = x.shape[1] == 3
    turn = torch.where(p.on, (p.order == HUE).to(torch.int8).argmax(1), 4)
    for step in range(4):
        rows = (turn == step).nonzero()[:, 0]
        if not len(rows):
            continue
        y, factor, order = x[rows], p.factor[rows], p.order[rows]
        for k in range(4):
            if k == step:
                y = hue(y, factor[:, HUE]) if colourful else y
            else:
                y = _blend_step(y, order[:, k], factor)
        out[rows] = y
    return out


def _blend_step(x: Tensor, op: Tensor, factor: Tensor) -> Tensor:
    """One of brightness, contrast, saturation per sample as ``clamp(f x + a grey(x) + c)``; ``op`` (B,)."""
    f = factor.gather(1, op[:, None])[:, 0]
    rest = 1 - f
    shade = grey(x)
    mean = shade.mean((1, 2, 3))
    constant = _each(torch.where(op == CONTRAST, rest * mean, torch.zeros_like(f)))
    if x.shape[1] != 3:
        f = torch.where(op == SATURATION, torch.ones_like(f), f)
        return torch.addcmul(constant, x, _each(f)).clamp_(0, 1)
    amount = _each(torch.where(op == SATURATION, rest, torch.zeros_like(f)))
    return torch.addcmul(torch.addcmul(constant, shade, amount), x, _each(f)).clamp_(0, 1)
