"""RandAugment: a few random operations of one common strength a sample, done for all samples of one kind at once.

Cubuk et al. 2020, RandAugment: Practical Automated Data Augmentation, section 3; strengths and the probability of
one half a slot as in timm's increasing set, which Wightman et al. 2021 (ResNet strikes back, section 3) train with.

Operations: identity, autocontrast, equalize, invert, posterize, solarize, solarize_add, color, contrast, brightness,
sharpness, rotate, shear_x, shear_y, translate_x, translate_y. Values outside the image become the data's mean.
"color" needs three channels; what assumes values in [0, 1] is left out for data of another range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from osteon.core.errors import UsageError
from osteon.parts.types import Draws
from osteon.views import colour

#: Operations that move pixels; they work on any range of values.
GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
#: Every operation, in the order of its number in ``params["randaugment_op"]``.
OPS = ("identity", "autocontrast", "equalize", "invert", "posterize", "solarize", "solarize_add", "color", "contrast",
       "brightness", "sharpness", *GEOMETRIC)


@dataclass(frozen=True)
class Settings:
    """Strength of RandAugment.

    Args:
        count: operations a sample, one after the other.
        magnitude: mean strength, 0 to 10.
        std: standard deviation of the strength between samples and operations.
        chance: probability that a slot is used.
        ops: names to choose from, each as often.
    """

    count: int = 2
    magnitude: float = 7.0
    std: float = 0.5
    chance: float = 0.5
    ops: tuple[str, ...] = OPS

    def __post_init__(self) -> None:
        unknown = [op for op in self.ops if op not in OPS]
        if unknown or not self.ops:
            raise UsageError(f"RandAugment has no operation {unknown}.", where="ops", fix=f"Known: {', '.join(OPS)}.")
        if self.count < 1 or not 0 <= self.magnitude <= 10 or self.std < 0:
            raise UsageError("RandAugment takes at least one operation, magnitude 0 to 10 and std >= 0.",
                             where="magnitude", fix="The usual setting is count=2, magnitude=7, std=0.5.")


def allowed_ops(channels: int, unit_range: bool) -> tuple[str, ...]:
    """Operations defined for this number of channels and, unless values lie in [0, 1], for any range."""
    if not unit_range:
        return ("identity", *GEOMETRIC)
    return OPS if channels == 3 else tuple(op for op in OPS if op != "color")


def rand_augment(x: Tensor, draws: Draws, settings: Settings,
                 fill: Sequence[float]) -> tuple[Tensor, dict[str, Tensor]]:
    """Apply ``settings.count`` random operations to every sample of (B, C, H, W).

    Args:
        x: images; in [0, 1] unless only geometric operations are allowed.
        draws: the stream.
        settings: strength and operations.
        fill: value per channel of what comes from outside the image.

    Returns:
        The images and the drawn ``randaugment_op`` (B, count) numbers in :data:`OPS` and ``randaugment_level``
        (B, count) in [-1, 1] (sign: direction).
    """
    choice = (draws.rand(settings.count) * len(settings.ops)).long().clamp(max=len(settings.ops) - 1)
    op = torch.tensor([OPS.index(name) for name in settings.ops], device=x.device)[choice]
    op = torch.where(draws.rand(settings.count) < settings.chance, op, 0)
    level = (settings.magnitude + settings.std * draws.randn(settings.count)).clamp_(0, 10) / 10
    level = torch.where(draws.rand(settings.count) < 0.5, level, -level)
    colours = [number for number, name in enumerate(OPS) if name not in GEOMETRIC and name != "identity"]
    for slot in range(settings.count):
        x = x.clone()
        for number in colours:
            rows = (op[:, slot] == number).nonzero()[:, 0]
            if len(rows):
                x[rows] = _COLOUR[OPS[number]](x[rows], level[rows, slot])
        rows = (op[:, slot] >= OPS.index(GEOMETRIC[0])).nonzero()[:, 0]
        if len(rows):
            x[rows] = warp(x[rows], matrices(op[rows, slot], level[rows, slot], x.shape[-2:]), fill)
    return x, {"randaugment_op": op, "randaugment_level": level}


def matrices(op: Tensor, level: Tensor, size: Sequence[int]) -> Tensor:
    """Where each output pixel comes from: (B, 2, 3), acting on pixel coordinates (x, y, 1) from the image's centre.

    Rotation up to 30 degrees, shear up to 0.3, translation up to 0.45 of the side, at level 1.
    """
    height, width = size
    angle = level * math.radians(30)
    one, zero = torch.ones_like(level), torch.zeros_like(level)

    def of(name: str, value: Tensor, rest: Tensor) -> Tensor:
        return torch.where(op == OPS.index(name), value, rest)

    diagonal = of("rotate", angle.cos(), one)
    across = of("rotate", -angle.sin(), of("shear_x", 0.3 * level, zero))
    down = of("rotate", angle.sin(), of("shear_y", 0.3 * level, zero))
    move_x, move_y = of("translate_x", 0.45 * width * level, zero), of("translate_y", 0.45 * height * level, zero)
    return torch.stack((torch.stack((diagonal, across, move_x), 1), torch.stack((down, diagonal, move_y), 1)), 1)


def warp(x: Tensor, matrix: Tensor, fill: Sequence[float]) -> Tensor:
    """Resample (B, C, H, W) bilinearly at ``matrix`` (B, 2, 3) of every pixel; outside is ``fill`` per channel.

    These maps keep the scale, so four neighbours are enough and nothing aliases.
    """
    batch, channels, height, width = x.shape
    ys = torch.arange(height, device=x.device, dtype=x.dtype) - (height - 1) / 2
    xs = torch.arange(width, device=x.device, dtype=x.dtype) - (width - 1) / 2
    m = matrix.to(x)[..., None, None]
    from_x = m[:, 0, 0] * xs + m[:, 0, 1] * ys[:, None] + m[:, 0, 2] + (width - 1) / 2
    from_y = m[:, 1, 0] * xs + m[:, 1, 1] * ys[:, None] + m[:, 1, 2] + (height - 1) / 2
    ground = torch.tensor(fill, dtype=x.dtype, device=x.device)[:, None, None]
    flat = (x - ground).flatten(2)
    left, top = from_x.floor(), from_y.floor()
    out = torch.zeros_like(x)
    for dy in (0, 1):
        for dx in (0, 1):
            px, py = left + dx, top + dy
            weight = (1 - (from_x - px).abs()) * (1 - (from_y - py).abs())
            weight *= (px >= 0) & (px < width) & (py >= 0) & (py < height)
            index = (py.clamp(0, height - 1) * width + px.clamp(0, width - 1)).long().view(batch, 1, -1)
            out += flat.gather(2, index.expand(-1, channels, -1)).view_as(x) * weight[:, None]
    return out + ground


def autocontrast(x: Tensor) -> Tensor:
    """Stretch every channel of every sample to [0, 1]; constant channels stay."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    flat = high == low
    return torch.where(flat, x, (x - low) / torch.where(flat, 1.0, high - low))


def equalize(x: Tensor) -> Tensor:
    """Flatten every channel's histogram of 256 values, by Pillow's rule."""
    value = (x * 255.999).long().clamp_(0, 255).flatten(2)
    count = torch.zeros(*value.shape[:2], 256, dtype=torch.long, device=x.device)
    count.scatter_add_(2, value, torch.ones_like(value))
    total = count.cumsum(2)
    last = count.gather(2, total.argmax(2, keepdim=True))
    step = (value.shape[2] - last) // 255
    table = (total - count + step // 2) // step.clamp(min=1)
    out = torch.where(step > 0, table.clamp_(0, 255).gather(2, value), value)
    return (out.to(x.dtype) / 255).view_as(x)


def posterize(x: Tensor, bits: Tensor) -> Tensor:
    """Keep ``bits`` (B,) bits of every value."""
    levels = torch.exp2(bits.to(x.dtype))[:, None, None, None]
    return torch.minimum((x * levels).floor_(), levels - 1) / levels


def sharpness(x: Tensor, factor: Tensor) -> Tensor:
    """Move away from a smoothed copy by ``factor`` (B,): 0 smooth, 1 unchanged. The border pixels stay."""
    channels = x.shape[1]
    if min(x.shape[2:]) <= 2:
        return x
    kernel = x.new_tensor([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]]).div_(13).expand(channels, 1, 3, 3)
    out, inner, f = x.clone(), x[..., 1:-1, 1:-1], factor[:, None, None, None]
    out[..., 1:-1, 1:-1] = f * inner + (1 - f) * functional.conv2d(x, kernel, groups=channels)
    return out.clamp_(0, 1)


def _solarize_add(x: Tensor, level: Tensor) -> Tensor:
    add = (level.abs() * 110 / 255)[:, None, None, None]
    return torch.where(x < 128 / 255, (x + add).clamp_(0, 1), x)


#: Operation -> function of images and signed levels (B,) in [-1, 1].
_COLOUR: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "autocontrast": lambda x, level: autocontrast(x),
    "equalize": lambda x, level: equalize(x),
    "invert": lambda x, level: 1 - x,
    "posterize": lambda x, level: posterize(x, 4 - (level.abs() * 4).floor()),
    "solarize": lambda x, level: colour.solarise(x, 1 - level.abs()),
    "solarize_add": _solarize_add,
    "color": lambda x, level: colour.saturation(x, 1 + 0.9 * level),
    "contrast": lambda x, level: colour.contrast(x, 1 + 0.9 * level),
    "brightness": lambda x, level: colour.brightness(x, 1 + 0.9 * level),
    "sharpness": lambda x, level: sharpness(x, 1 + 0.9 * level),
}
