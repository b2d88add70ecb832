"""Parts of one video as views: two clips, each changed as one, or single frames from all over it.

Clips: Qian et al. 2021, "Spatiotemporal Contrastive Video Representation Learning" (CVRL), sections 3.2 and 3.3.
Frames: Xu and Wang 2021, "Rethinking Self-supervised Correspondence Learning: A Video Frame-level Similarity
Perspective" (VFS).
Shape letters: B batch, C channels, T frames of a video, L frames of a clip, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from osteon.core.errors import UsageError
from osteon.parts.types import DataSpec, Draws, Geometry, View
from osteon.views import colour
from osteon.views.crop import crop_resize, sample_boxes
from osteon.views.pipeline import Plan, standardise, to_unit
from osteon.views.recipes import Views


def start_gaps(uniform: Tensor, room: int) -> Tensor:
    """Whole gaps 0 to ``room`` whose probability falls linearly: ``(2 (room - d) + 1) / (room + 1)^2`` of gap d.

    The density ``1 - d / D`` of the paper with D = room + 1, rounded down. ``uniform`` (B,) in [0, 1) -> (B,) int64.
    """
    return ((room + 1) * (1 - (1 - uniform).sqrt())).long().clamp(max=room)


def clip_starts(have: int, frames: int, draws: Draws) -> Tensor:
    """First frames of two clips of ``frames`` frames in a video of ``have``, in random order: (B, 2) int64.

    Where the video is shorter than a clip both start at its first frame.
    """
    room = max(0, have - frames)
    gap = start_gaps(draws.fork("gap").rand(), room)
    first = (draws.fork("place").rand() * (room - gap + 1)).long().minimum(room - gap)
    pair = torch.stack([first, first + gap], 1)
    swap = draws.fork("order").rand() < 0.5
    return torch.where(swap[:, None], pair.flip(1), pair)


def segment_frames(have: int, count: int, draws: Draws) -> Tensor:
    """A random frame of each of ``count`` equal parts of a video of ``have`` frames: (B, count) int64, ascending."""
    if not 1 <= count <= have:
        raise UsageError(f"A video of {have} frames has no {count} segments.", where="frames",
                         fix="Ask for fewer frames, or read more (--set frames=...).")
    edges = (torch.arange(count + 1) * have).div(count, rounding_mode="floor").to(draws.device)
    length = edges[1:] - edges[:-1]
    return edges[:-1] + (draws.rand(count) * length).long().minimum(length - 1)


def take_clip(videos: Tensor, start: Tensor, frames: int) -> Tensor:
    """Frames ``start`` (B,) and following of each video, which begins again where it ends: (B, C, T, H, W) -> L."""
    index = (start[:, None].to(videos.device) + torch.arange(frames, device=videos.device)) % videos.shape[2]
    where = index[:, None, :, None, None].expand(-1, videos.shape[1], -1, *videos.shape[3:])
    return videos.gather(2, where)


@dataclass(frozen=True)
class ClipPlan:
    """A view of a clip: what :class:`~osteon.views.pipeline.Plan` says of an image, drawn once for all frames."""

    plan: Plan

    def view(self, x: Tensor, spec: DataSpec, draws: Draws) -> View:
        """Draw and compute it from clips (B, C, L, H, W) divided by ``spec.scale``.

        Contrast is about the mean of the whole clip: its frames are one tall image to the colour changes. A crop, a
        mirror and a blur are those of a frame, the same for every frame.
        """
        b, c, frames, height, width = x.shape
        plan, params = self.plan, dict[str, Tensor]()
        box = sample_boxes(draws.fork("crop"), height, width, scale=plan.scale or (1.0, 1.0), ratio=plan.ratio)
        flip = draws.fork("flip").rand() < plan.flip
        y = crop_resize(x.reshape(b, c * frames, height, width), box, plan.size, flip)
        height, width = plan.size
        y = y.reshape(b, c, frames * height, width)
        if plan.jitter is not None:
            p = colour.Jitter.draw(draws.fork("jitter"), plan.jitter, plan.jitter_chance)
            y = colour.jitter(y, p)
            params |= {"jitter": p.on, "jitter_factor": p.factor}
        if plan.grey:
            params["grey"] = draws.fork("grey").rand() < plan.grey
            y = torch.where(_each(params["grey"]), colour.to_grey(y), y)
        if plan.blur:
            stream = draws.fork("blur")
            on, sigma = stream.rand() < plan.blur, stream.uniform(*plan.sigma)
            params["blur"] = torch.where(on, sigma, 0.0)
            soft = colour.blur(y.reshape(b, c * frames, height, width), sigma, plan.sigma[1]).reshape(y.shape)
            y = torch.where(_each(on), soft, y)
        if plan.solarise:
            params["solarise"] = draws.fork("solarise").rand() < plan.solarise
            y = torch.where(_each(params["solarise"]), colour.solarise(y), y)
        return View(standardise(y.reshape(b, c, frames, height, width), spec), Geometry(box, flip), params)


def clip_plan(spec: DataSpec, *, crop_min: float, ratio: tuple[float, float], flip: bool,
              jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0), grey: float = 0.0, blur: float = 0.0,
              solarise: float = 0.0) -> ClipPlan:
    """A view at full size with what the data allow: hue, saturation and grey need three channels, colours 8 bits.

    Args:
        spec: the data.
        crop_min: smallest share of a frame in a crop.
        ratio: aspect of a crop.
        flip: mirror half of the views left-right.
        jitter: half-ranges of brightness, contrast, saturation and hue.
        grey: chance that colour is removed.
        blur: chance of a blur.
        solarise: chance of solarisation.
    """
    if not 0 < crop_min <= 1 or min(jitter) < 0 or not all(0 <= share <= 1 for share in (grey, blur, solarise)):
        raise UsageError("crop_min is a share in (0, 1], strengths are at least 0, and chances lie in [0, 1].",
                         where="views")
    unit, colours = spec.scale != 1, spec.channels == 3
    b, c, s, h = jitter
    allowed = (b, c, s, min(h, 0.5)) if colours else (b, c, 0.0, 0.0)
    return ClipPlan(Plan((spec.extent[1], spec.extent[2]), (crop_min, 1.0), ratio, flip=0.5 * flip,
                         jitter=allowed if unit and any(allowed) else None, grey=grey * (colours and unit), blur=blur,
                         solarise=solarise * unit))


def _each(on: Tensor) -> Tensor:
    return on[:, None, None, None]


def _check_rows(videos: Tensor, draws: Draws) -> None:
    if len(videos) != len(draws.rows):
        raise UsageError(f"{len(videos)} videos came with draws for {len(draws.rows)} rows.", where="views",
                         fix="Give the draws of exactly these rows: draws.at(rows).")


@dataclass
class ClipPair(Views):
    """Two clips of every video, each by a plan of its own.

    Args:
        frames: L, frames of a clip.
    """

    frames: int = 0

    def __call__(self, images: Tensor, draws: Draws) -> list[View]:
        """Videos (B, C, T, H, W) as stored -> two views (B, C, L, H, W); ``params["start"]`` (B,): the first frame."""
        _check_rows(images, draws)
        return _views(self, images, clip_starts(images.shape[2], self.frames, draws.fork("time")), self.frames, draws)


class SegmentFrames(Views):
    """A frame of each of as many equal parts of every video as there are plans, each frame a view of its own."""

    def __call__(self, images: Tensor, draws: Draws) -> list[View]:
        """Videos (B, C, T, H, W) as stored -> views (B, C, 1, H, W) in order; ``params["start"]`` (B,): which frame."""
        _check_rows(images, draws)
        return _views(self, images, segment_frames(images.shape[2], len(self.plans), draws.fork("time")), 1, draws)


def _views(maker: Views, videos: Tensor, starts: Tensor, frames: int, draws: Draws) -> list[View]:
    """The view of plan i shows ``frames`` frames from ``starts[:, i]``."""
    out = []
    for i, plan in enumerate(maker.plans):
        assert isinstance(plan, ClipPlan)
        clip = to_unit(take_clip(videos, starts[:, i], frames), maker.spec)
        view = plan.view(clip, maker.spec, draws.fork(f"view{i}"))
        out.append(View(view.x, view.geometry, {**view.params, "start": starts[:, i]}))
    return out
