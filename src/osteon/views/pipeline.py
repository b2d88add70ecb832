"""One view of a batch: the plan of what is drawn, and its execution on the device of the input.

Every part of a plan draws from its own named stream, so switching one part on or off leaves the others as they were,
and a sample's view depends on its global row alone, never on which other rows are held here. What was drawn is carried
out by the compiled kernel (``kernel.py``) on a CPU where it is there, else by torch operations; they agree to about
0.01 of 255 levels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from osteon.core.errors import UsageError
from osteon.parts.types import DataSpec, Draws, Geometry, View
from osteon.views import colour, kernel, randaugment
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
        cubic: resample bicubically in the place of bilinearly.
        clip: cut what bicubic overshoots to [0, 1].
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
    cubic: bool = False
    clip: bool = False


class Stored:
    """A batch as it is stored, and divided by the scale once somebody asks for that.

    Args:
        images: (B, C, *extent) of any dtype.
        spec: the data.
    """

    def __init__(self, images: Tensor, spec: DataSpec) -> None:
        check_shape(images, spec)
        self.images, self.spec = images, spec

    @cached_property
    def unit(self) -> Tensor:
        """(B, C, *extent) float32, divided by the scale."""
        return to_unit(self.images, self.spec)


@dataclass
class Drawn:
    """What was drawn for one view of a batch; None for a part that the plan does not have.

    Args:
        box: (B, 4) x0, y0, x1, y1 as fractions of the image.
        flip: (B,) bool.
        jitter: parameters of the colour jitter.
        grey: (B,) bool.
        blur: (B,) deviation in pixels, 0 for none.
        solarise: (B,) bool.
    """

    box: Tensor
    flip: Tensor
    jitter: colour.Jitter | None = None
    grey: Tensor | None = None
    blur: Tensor | None = None
    solarise: Tensor | None = None

    @classmethod
    def of(cls, plan: Plan, images: Tensor, draws: Draws) -> Drawn:
        """Draw everything of a plan but RandAugment."""
        height, width = images.shape[2:]
        box = full_boxes(len(images), images.device)
        if plan.scale is not None:
            box = sample_boxes(draws.fork("crop"), height, width, scale=plan.scale, ratio=plan.ratio)
        drawn = cls(box, draws.fork("flip").rand() < plan.flip)
        if plan.jitter is not None:
            drawn.jitter = colour.Jitter.draw(draws.fork("jitter"), plan.jitter, plan.jitter_chance)
        if plan.grey:
            drawn.grey = draws.fork("grey").rand() < plan.grey
        if plan.blur:
            stream = draws.fork("blur")
            on, sigma = stream.rand() < plan.blur, stream.uniform(*plan.sigma)
            drawn.blur = torch.where(on, sigma, 0.0)
        if plan.solarise:
            drawn.solarise = draws.fork("solarise").rand() < plan.solarise
        return drawn

    def params(self) -> dict[str, Tensor]:
        """The parameters a view reports."""
        found = {"grey": self.grey, "blur": self.blur, "solarise": self.solarise}
        if self.jitter is not None:
            found |= {"jitter": self.jitter.on, "jitter_factor": self.jitter.factor, "jitter_order": self.jitter.order}
        return {name: value for name, value in found.items() if value is not None}


def check_shape(images: Tensor, spec: DataSpec) -> None:
    """Refuse a batch that is not (B, C, *extent) with the data's number of channels and of sides."""
    if images.ndim != 2 + len(spec.extent) or images.shape[1] != spec.channels:
        sides = "H, W" if len(spec.extent) == 2 else ", ".join("TDHW"[:len(spec.extent)])
        what = "images" if spec.modality == "image" else "samples"
        raise UsageError(f"Views take {what} of shape (B, {spec.channels}, {sides}), not "
                         f"{tuple(images.shape)}.", where=what,
                         fix="Give a batch with the number of channels the data was measured with.")


def to_unit(images: Tensor, spec: DataSpec) -> Tensor:
    """Stored values (B, C, *extent) of any dtype to float32 divided by ``spec.scale``."""
    check_shape(images, spec)
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


def make_view(batch: Stored, plan: Plan, draws: Draws) -> View:
    """Draw and compute one view.

    Args:
        batch: the images (B, C, H, W) and their statistics for the final normalisation.
        plan: what to do.
        draws: the stream of this view.

    Returns:
        The normalised view with its geometry and every drawn parameter (see :func:`make_views` for the names).
    """
    spec, drawn = batch.spec, Drawn.of(plan, batch.images, draws)
    params = drawn.params()
    # Where nothing is resampled torch keeps the values exact.
    moved = plan.scale is not None or plan.size != tuple(batch.images.shape[2:])
    compiled = moved and kernel.takes(batch.images)
    if plan.augment is not None or not compiled:
        y = (_by_kernel(batch, plan, Drawn(drawn.box, drawn.flip), normalised=False) if compiled
             else _moved(batch.unit, plan, drawn, moved))
        if plan.augment is not None:
            y, augmented = randaugment.rand_augment(y, draws.fork("randaugment"), plan.augment, fill=spec.mean)
            params |= augmented
        x = standardise(_coloured(y, plan, drawn), spec)
    else:
        x = _by_kernel(batch, plan, drawn, normalised=True)
    return View(x, Geometry(drawn.box, drawn.flip), params)


def _by_kernel(batch: Stored, plan: Plan, drawn: Drawn, *, normalised: bool) -> Tensor:
    """Everything that was drawn, in one pass over the stored values; ``normalised`` is the last step of a view."""
    spec, (height, width) = batch.spec, batch.images.shape[2:]
    edge = (drawn.box.double() * drawn.box.new_tensor([width, height, width, height])).round_()
    mean, std = (spec.mean, [s if s > 0 else 1.0 for s in spec.std]) if normalised else ((), [])
    return kernel.render(batch.images, edge, plan.size, drawn.flip, scale=spec.scale, mean=mean, std=std,
                         cubic=plan.cubic, clip=plan.clip, jitter=drawn.jitter, grey=drawn.grey, sigma=drawn.blur,
                         sigma_max=plan.sigma[1], solarise=drawn.solarise)


def _moved(x: Tensor, plan: Plan, drawn: Drawn, resampled: bool) -> Tensor:
    """Crop, resize and mirror by torch operations."""
    if resampled:
        y = crop_resize(x, drawn.box, plan.size, drawn.flip, cubic=plan.cubic)
        return y.clamp_(0, 1) if plan.clip else y
    return torch.where(drawn.flip[:, None, None, None], x.flip(-1), x) if plan.flip else x


def _coloured(y: Tensor, plan: Plan, drawn: Drawn) -> Tensor:
    """Colour jitter, grey, blur and solarisation by torch operations."""
    if drawn.jitter is not None:
        y = colour.jitter(y, drawn.jitter)
    if drawn.grey is not None:
        y = _where(drawn.grey, y, colour.to_grey)
    if drawn.blur is not None:
        rows = drawn.blur.nonzero()[:, 0]
        if len(rows):
            y = y.index_copy(0, rows, colour.blur(y[rows], drawn.blur[rows], plan.sigma[1]))
    if drawn.solarise is not None:
        y = _where(drawn.solarise, y, colour.solarise)
    return y


def _where(on: Tensor, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """``change`` applied to the samples that are on, computed for those only."""
    rows = on.nonzero()[:, 0]
    return x.index_copy(0, rows, change(x[rows]).contiguous()) if len(rows) else x
