"""Recipes of views of series: spans of time, jitter, scaling, hidden stretches of time.

The changes are those of Um et al. 2017 (arXiv:1706.00527, section 3: jittering, scaling, cropping of wearable sensors'
signals), with hidden stretches after SpecAugment (Park et al. 2019, arXiv:1904.08779). Amounts are in deviations of the
data. Nothing is mirrored: time has a direction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from osteon.parts.types import DataSpec
from osteon.views.arrays import ArrayPlan


def _plan(spec: DataSpec, span: float, strength: float = 0.0, hide: float = 0.0) -> ArrayPlan:
    return ArrayPlan(spec.extent, (span,), gain=0.1 * strength, scale=0.2 * strength, noise=0.3 * strength,
                     hide=(hide,))


def none(spec: DataSpec) -> list[ArrayPlan]:
    """No augmentation."""
    return [_plan(spec, 1.0)]


def crop_flip(spec: DataSpec, *, min_scale: float = 0.8, n_views: int = 1) -> list[ArrayPlan]:
    """A random span of time, stretched to the whole; nothing is mirrored."""
    return [_plan(spec, min_scale)] * n_views


def simclr(spec: DataSpec, *, min_scale: float = 0.5, strength: float = 1.0, hide: float = 0.2,
           n_views: int = 2) -> list[ArrayPlan]:
    """Views drawn alike: a span of time, a factor and a shift a channel, jitter, a hidden stretch.

    Args:
        spec: the data.
        min_scale: smallest share of time in a view.
        strength: multiplies factor, shift and jitter.
        hide: largest share of time that is hidden.
        n_views: number of views.
    """
    return [_plan(spec, min_scale, strength, hide)] * n_views


def byol(spec: DataSpec, *, min_scale: float = 0.5, strength: float = 1.0, hide: float = 0.2) -> list[ArrayPlan]:
    """A pair drawn as in :func:`simclr`."""
    return simclr(spec, min_scale=min_scale, strength=strength, hide=hide)


def multicrop(spec: DataSpec, *, style: str = "swav", n_local: int = 4, stride: int = 1, global_scale: float = 0.6,
              strength: float = 1.0, hide: float = 0.2) -> list[ArrayPlan]:
    """Two views of nearly the whole series, then ``n_local`` of short spans at half the length.

    Args:
        spec: the data.
        style: accepted for the sake of images, without effect.
        n_local: number of short views.
        stride: steps a token of the backbone; the length of short views is a multiple of it.
        global_scale: smallest share of time in a long view.
        strength: multiplies factor, shift and jitter.
        hide: largest share of time that is hidden.
    """
    long = _plan(spec, global_scale, strength, hide)
    steps = max(1, round(spec.extent[0] / 2 / stride)) * stride
    return [long, long] + [replace(long, extent=(steps,), spans=(0.25,))] * n_local


def supervised(spec: DataSpec, *, min_scale: float = 0.8, strength: float = 0.5, hide: float = 0.1) -> list[ArrayPlan]:
    """A span of time, slightly changed, for training with labels."""
    return [_plan(spec, min_scale, strength, hide)]


#: Recipe name -> function of the data and keyword options that plans its views.
RECIPES: dict[str, Callable[..., list[ArrayPlan]]] = {
    recipe.__name__: recipe for recipe in (none, crop_flip, simclr, byol, multicrop, supervised)}
