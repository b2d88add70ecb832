"""Random resized crops of a whole batch at once, with antialiasing, as two banded matrix products an image.

An output row is a weighted mean of input rows, and likewise for columns, so crop, resize and mirror of one image are
``Wv X Wh^T`` with ``W[o, k] = tri((k + 1/2 - c_o) / max(s, 1))``, rows normalised, where ``s`` is the size of an
output pixel in input pixels and ``c_o`` its centre. A mirrored view reverses the rows of ``Wh``.
Boxes follow Szegedy et al., Going Deeper with Convolutions, section 6, as torchvision's RandomResizedCrop draws them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from osteon.core.errors import UsageError
from osteon.parts.types import Draws

#: Slack, in pixels, for boxes that come back from fractions of the image in float32.
_SLACK = 1e-3
#: Pixels of an image from which, on a CPU, torch's own antialiased resize of one image after the other beats the
#: dense product (three times at 256 to 224, measured on one core); below it the matrices win.
_LARGE = 96 * 96


def full_boxes(count: int, device: torch.device | str = "cpu") -> Tensor:
    """Boxes that are the whole image: (count, 4) of 0, 0, 1, 1."""
    return torch.tensor([0.0, 0.0, 1.0, 1.0], device=device).repeat(count, 1)


def sample_boxes(draws: Draws, height: int, width: int, *, scale: tuple[float, float] = (0.08, 1.0),
                 ratio: tuple[float, float] = (3 / 4, 4 / 3), tries: int = 10) -> Tensor:
    """Boxes of random area and aspect, on whole pixels, drawn for every sample at once.

    Area is uniform in ``scale`` (share of the image), aspect log-uniform in ``ratio`` (width over height). The first
    of ``tries`` candidates that fits is placed uniformly; if none fits, the largest centred box of allowed aspect is
    taken.

    Returns:
        (B, 4) float x0, y0, x1, y1 as fractions of the image.
    """
    if not 0 < scale[0] <= scale[1] <= 1:
        raise UsageError(f"A crop takes a share of the image between 0 and 1, not {scale}.", where="scale",
                         fix="Give (smallest, largest) with 0 < smallest <= largest <= 1.")
    if not 0 < ratio[0] <= ratio[1]:
        raise UsageError(f"The aspect range {ratio} is empty.", where="ratio", fix="Give (smallest, largest) > 0.")
    u = draws.rand(tries, 2).double()
    area = height * width * (scale[0] + (scale[1] - scale[0]) * u[..., 0])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * u[..., 1])
    w, h = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
    first = fits.to(torch.int8).argmax(1, keepdim=True)
    found = fits.any(1)
    w, h = w.gather(1, first)[:, 0], h.gather(1, first)[:, 0]
    place = draws.rand(2).double()
    x = torch.minimum((place[:, 0] * (width - w + 1)).floor(), width - w)
    y = torch.minimum((place[:, 1] * (height - h + 1)).floor(), height - h)
    drawn = torch.stack((x, y, x + w, y + h), 1)
    fallback = drawn.new_tensor(_centre_box(height, width, ratio))
    size = drawn.new_tensor([width, height, width, height])
    return (torch.where(found[:, None], drawn, fallback) / size).float()


def _centre_box(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """The largest centred box whose aspect lies in ``ratio``, in pixels x0, y0, x1, y1."""
    w, h = width, height
    if width / height < ratio[0]:
        h = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        w = max(1, round(height * ratio[1]))
    x, y = (width - w) // 2, (height - h) // 2
    return x, y, x + w, y + h


def resample_matrix(start: Tensor, stop: Tensor, size_in: int, size_out: int, flip: Tensor | None = None, *,
                    cubic: bool = False) -> Tensor:
    """Weights that resample a stretch of pixels to ``size_out`` pixels, antialiased.

    Args:
        start: (B,) first edge of the stretch, in pixels.
        stop: (B,) last edge of the stretch, in pixels.
        size_in: length of the input.
        size_out: length of the output.
        flip: (B,) bool, True reverses the output.
        cubic: Keys' cubic filter with a = -1/2 in the place of the triangle.

    Returns:
        (B, size_out, size_in), every row sums to 1; pixels outside the stretch weigh nothing.
    """
    step = ((stop - start) / size_out)[:, None]
    order = torch.arange(size_out, device=start.device, dtype=start.dtype).expand(len(start), -1)
    if flip is not None:
        order = torch.where(flip[:, None], size_out - 1 - order, order)
    centre = start[:, None] + (order + 0.5) * step
    pixel = torch.arange(size_in, device=start.device, dtype=start.dtype)
    distance = (pixel + 0.5 - centre[..., None]).abs_().div_(step.clamp(min=1.0)[..., None])
    weight = _cubic(distance) if cubic else (1.0 - distance).clamp_(min=0.0)
    inside = (pixel + 1 > start[:, None] + _SLACK) & (pixel < stop[:, None] - _SLACK)
    weight *= inside[:, None]
    return weight.div_(weight.sum(-1, keepdim=True).clamp_(min=1e-12))


def _cubic(d: Tensor) -> Tensor:
    """Keys' cubic at distances ``d`` >= 0: Keys 1981, Cubic convolution interpolation, equation 15."""
    near, far = (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2
    return torch.where(d < 1, near, torch.where(d < 2, far, 0.0))


def crop_resize(images: Tensor, box: Tensor, size: tuple[int, int], flip: Tensor | None = None, *,
                cubic: bool = False) -> Tensor:
    """Cut a box out of every image, resize it with antialiasing, and mirror some.

    Args:
        images: (B, C, H, W) float.
        box: (B, 4) x0, y0, x1, y1 as fractions of the image.
        size: (h, w) of the views.
        flip: (B,) bool, True mirrors left-right.
        cubic: bicubic in the place of bilinear; it overshoots the range of the values by up to a few percent.

    Returns:
        (B, C, h, w), what torchvision's ``resized_crop(..., antialias=True)`` gives image by image.
    """
    batch, channels, height, width = images.shape
    edge = box.to(images) * torch.tensor([width, height, width, height], dtype=images.dtype, device=images.device)
    if images.device.type == "cpu" and height * width >= _LARGE:
        whole = edge.round()
        if bool(((edge - whole).abs() < _SLACK).all()):
            return _one_by_one(images, whole, size, flip, "bicubic" if cubic else "bilinear")
    across = resample_matrix(edge[:, 0], edge[:, 2], width, size[1], flip, cubic=cubic)
    down = resample_matrix(edge[:, 1], edge[:, 3], height, size[0], cubic=cubic)
    rows = torch.bmm(images.reshape(batch, channels * height, width), across.mT).view(batch, channels, height, size[1])
    # One product a channel reads the strided slices in place; a broadcast matmul would copy ``down`` C times.
    out = images.new_empty(batch, channels, *size)
    for c in range(channels):
        out[:, c] = torch.bmm(down, rows[:, c])
    return out


def _one_by_one(images: Tensor, edge: Tensor, size: tuple[int, int], flip: Tensor | None, mode: str) -> Tensor:
    """The same for boxes on whole pixels ``edge`` (B, 4), image by image, touching only the pixels of the box."""
    out = images.new_empty(len(images), images.shape[1], *size)
    mirrored = [False] * len(images) if flip is None else flip.tolist()
    for i, (x0, y0, x1, y1) in enumerate(edge.long().tolist()):
        view = functional.interpolate(images[i:i + 1, :, y0:y1, x0:x1], size, mode=mode, antialias=True)
        out[i] = view[0].flip(-1) if mirrored[i] else view[0]
    return out
