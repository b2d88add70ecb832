"""One view of a batch: the plan of what is drawn, and its execution on the device of the input.

Every part of a plan draws from its own named stream, so switching one part on or off leaves the others as they were,
and a sample's view depends on its global row alone, never on which other rows are held here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from osteon.core.errors import UsageError
from osteon.parts.types import DataSpec, Draws, Geometry, View
from osteon.views import colour, randaugment
from osteon.views.crop import crop_resize, full_boxes, sample_boxes


@dataclass(frozen=True)
class Plan:
    """What one view consists of, in the order in which it is done.

    Args:
        size: (h, w) of the view in pixels.
        scale: smallest and largest share of the image in a crop; None takes the whole image.
        ratio: smallest and largest aspect (width over height) of a crop.
        flip: probability of a left-right mirror.
        augment: RandAugment settings or None.
        jitter: half-ranges of brightness, contrast, saturation, hue; None for no jitter.
        jitter_chance: probability of the jitter.
        grey: probability of removing colour.
        blur: probability of a Gaussian blur.
        sigma: smallest and largest standard deviation of the blur, in pixels.
        solarise: probability of inverting the pixels above one half.
    """

    size: tuple[int, int]
    scale: tuple[float, float] | None = None
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.0
    augment: randaugment.Settings | None = None
    jitter: tuple[float, float, float, float] | None = None
    jitter_chance: float = 0.8
    grey: float = 0.0
    blur: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)
    solarise: float = 0.0


def to_unit(images: Tensor, spec: DataSpec) -> Tensor:
    """Stored values (B, C, *extent) of any dtype to float32 divided by ``spec.scale``."""
    if images.ndim != 2 + len(spec.extent) or images.shape[1] != spec.channels:
        sides = "H, W" if len(spec.extent) == 2 else ", ".join("TDHW"[:len(spec.extent)])
        what = "images" if spec.modality == "image" else "samples"
        raise UsageError(f"Views take {what} of shape (B, {spec.channels}, {sides}), not "
                         f"{tuple(images.shape)}.", where=what,
                         fix="Give a batch with the number of channels the data was measured with.")
    x = images.to(torch.float32)
    return x if spec.scale == 1 else x / spec.scale


def normalise(images: Tensor, spec: DataSpec) -> Tensor:
    """Stored values to zero mean and unit variance by the measured statistics: what evaluation feeds a backbone.

    Args:
        images: (B, C, *extent) uint8, uint16 or float.
        spec: gives scale, mean and standard deviation; a constant channel is only centred.

    Returns:
        (B, C, *extent) float32.
    """
    return standardise(to_unit(images, spec), spec)


def standardise(x: Tensor, spec: DataSpec) -> Tensor:
    """The last step of every view: ``(x - mean) / std`` per channel on values already divided by ``spec.scale``."""
    mean, std = _moments(x, spec)
    return (x - mean).div_(std)


def denormalise(x: Tensor, spec: DataSpec) -> Tensor:
    """Back from normalised values to values divided by ``spec.scale`` (for pictures); inverse of the last step."""
    mean, std = _moments(x, spec)
    return x * std + mean


def _moments(x: Tensor, spec: DataSpec) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel, to be broadcast over the sides of a sample."""
    shape = (-1, *[1] * len(spec.extent))
    std = torch.tensor([s if s > 0 else 1.0 for s in spec.std], dtype=x.dtype, device=x.device)
    return torch.tensor(spec.mean, dtype=x.dtype, device=x.device).view(shape), std.view(shape)


def make_view(x: Tensor, plan: Plan, spec: DataSpec, draws: Draws) -> View:
    """Draw and compute one view.

    Args:
        x: (B, C, H, W) float32, already divided by ``spec.scale``.
        plan: what to do.
        spec: statistics for the final normalisation.
        draws: the stream of this view.

    Returns:
        The normalised view with its geometry and every drawn parameter (see :func:`make_views` for the names).
    """
    batch, _, height, width = x.shape
    params: dict[str, Tensor] = {}
    box = full_boxes(batch, x.device)
    if plan.scale is not None:
        box = sample_boxes(draws.fork("crop"), height, width, scale=plan.scale, ratio=plan.ratio)
    flip = draws.fork("flip").rand() < plan.flip
    if plan.scale is None and plan.size == (height, width):
        # Nothing is resampled: keep the values exact.
        y = torch.where(flip[:, None, None, None], x.flip(-1), x) if plan.flip else x
    else:
        y = crop_resize(x, box, plan.size, flip)
    if plan.augment is not None:
        y, drawn = randaugment.rand_augment(y, draws.fork("randaugment"), plan.augment, fill=spec.mean)
        params |= drawn
    if plan.jitter is not None:
        p = colour.Jitter.draw(draws.fork("jitter"), plan.jitter, plan.jitter_chance)
        y = colour.jitter(y, p)
        params |= {"jitter": p.on, "jitter_factor": p.factor, "jitter_order": p.order}
    if plan.grey:
        params["grey"] = draws.fork("grey").rand() < plan.grey
        y = _where(params["grey"], y, colour.to_grey)
    if plan.blur:
        stream = draws.fork("blur")
        on, sigma = stream.rand() < plan.blur, stream.uniform(*plan.sigma)
        params["blur"] = torch.where(on, sigma, 0.0)
        rows = on.nonzero()[:, 0]
        if len(rows):
            y = y.index_copy(0, rows, colour.blur(y[rows], sigma[rows], plan.sigma[1]))
    if plan.solarise:
        params["solarise"] = draws.fork("solarise").rand() < plan.solarise
        y = _where(params["solarise"], y, colour.solarise)
    return View(standardise(y, spec), Geometry(box, flip), params)


def _where(on: Tensor, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """``change`` applied to the samples that are on, computed for those only."""
    rows = on.nonzero()[:, 0]
    return x.index_copy(0, rows, change(x[rows]).contiguous()) if len(rows) else x
