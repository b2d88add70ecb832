"""Recipes of views of sound: random spans of time, gain, noise, hidden bands of time and frequency.

Amounts follow BYOL for audio (Niizumi et al. 2021, arXiv:2103.06695, section III) and SpecAugment (Park et al. 2019,
arXiv:1904.08779, table 1) in kind; their sizes are for clips of about a second and are options.
"""

from __future__ import annotations

from collections.abc import Callable

from osteon.parts.types import DataSpec
from osteon.views.arrays import ArrayPlan


def _plan(spec: DataSpec, time: float, strength: float, *, bands: float = 1.0, hide: float = 0.0,
          extent: tuple[int, ...] | None = None) -> ArrayPlan:
    """A plan for spectrograms (bands, frames) or waves (samples); waves have no bands and their gain is a factor."""
    extent = extent or spec.extent
    if len(spec.extent) == 1:
        return ArrayPlan(extent, (time,), scale=0.3 * strength, noise=0.1 * strength, hide=(hide,))
    return ArrayPlan(extent, (bands, time), gain=0.3 * strength, noise=0.2 * strength, hide=(hide, hide))


def none(spec: DataSpec) -> list[ArrayPlan]:
    """No augmentation."""
    return [ArrayPlan(spec.extent, (1.0,) * len(spec.extent))]


def crop_flip(spec: DataSpec, *, min_scale: float = 0.8, n_views: int = 1) -> list[ArrayPlan]:
    """A random span of time, resized to the whole; nothing is mirrored."""
    return [_plan(spec, min_scale, 0.0)] * n_views


def simclr(spec: DataSpec, *, min_scale: float = 0.6, strength: float = 1.0, hide: float = 0.2,
           n_views: int = 2) -> list[ArrayPlan]:
    """Views drawn alike: spans of time and (nearly all) bands, gain, noise, hidden bands.

    Args:
        spec: the data.
        min_scale: smallest share of time in a view.
        strength: multiplies gain and noise.
        hide: largest share of time, and of the bands, that is hidden.
        n_views: number of views.
    """
    return [_plan(spec, min_scale, strength, bands=0.8, hide=hide)] * n_views


def byol(spec: DataSpec, *, min_scale: float = 0.6, strength: float = 1.0, hide: float = 0.2) -> list[ArrayPlan]:
    """A pair drawn as in :func:`simclr`."""
    return simclr(spec, min_scale=min_scale, strength=strength, hide=hide)


def multicrop(spec: DataSpec, *, style: str = "swav", n_local: int = 4, stride: int = 1, global_scale: float = 0.6,
              strength: float = 1.0, hide: float = 0.2) -> list[ArrayPlan]:
    """Two views of the whole clip, then ``n_local`` of half its length and resolution in time.

    Args:
        spec: the data.
        style: accepted for the sake of images, without effect.
        n_local: number of short views.
        stride: cells a token of the backbone.
        global_scale: smallest share of time in a whole view.
        strength: multiplies gain and noise.
        hide: largest share of time, and of the bands, that is hidden.
    """
    whole = _plan(spec, global_scale, strength, bands=0.8, hide=hide)
    frames = max(1, round(spec.extent[-1] / 2 / stride)) * stride
    short = _plan(spec, 0.3, strength, bands=0.8, hide=hide, extent=(*spec.extent[:-1], frames))
    return [whole, whole] + [short] * n_local


def supervised(spec: DataSpec, *, min_scale: float = 0.8, hide: float = 0.1) -> list[ArrayPlan]:
    """A span of time with hidden bands, for training with labels."""
    return [_plan(spec, min_scale, 0.0, hide=hide)]


#: Recipe name -> function of the data and keyword options that plans its views.
RECIPES: dict[str, Callable[..., list[ArrayPlan]]] = {
    "none": none, "crop_flip": crop_flip, "simclr": simclr, "byol": byol, "multicrop": multicrop,
    "supervised": supervised,
}
