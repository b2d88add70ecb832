"""Networks that turn samples into features: our own here, everything else through ``timm:`` and ``hf:``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from osteon.backbones import gnn, gpht, per_frame, predformer, resnet, towers, ttm, vit
from osteon.backbones._base import Backbone
from osteon.core.errors import UsageError, nearest

#: Prefix of a name -> (module, class) of the door to another library, imported when first used.
DOORS = {"timm": ("osteon.backbones.timm_door", "TimmBackbone"), "hf": ("osteon.backbones.hf_door", "HfBackbone")}

#: osteon's own: the class of a family, and its sizes by name.
FAMILIES: tuple[tuple[type[Backbone], dict[str, Any]], ...] = (
    (vit.ViT, vit.SIZES), (resnet.ResNet, resnet.SIZES), (ttm.TTM, ttm.SIZES), (gpht.GPHT, gpht.SIZES),
    (towers.Towers, towers.SIZES), (gnn.GNN, gnn.SIZES), (predformer.PredFormer, predformer.SIZES),
    (per_frame.PerFrame, per_frame.SIZES))

__all__ = ["Backbone", "backbone_names", "backbone_options", "build_backbone"]


def backbone_names() -> list[str]:
    """Names of osteon's own backbones, small to large within a family; ``timm:NAME`` and ``hf:NAME`` also work."""
    return [name for _, sizes in FAMILIES for name in sizes]


def build_backbone(name: str, *, channels: int, size: int | Sequence[int], **options: Any) -> Backbone:
    """Build a backbone with random weights.

    Args:
        name: one of :func:`backbone_names`, ``timm:NAME``, or ``hf:`` and the name or local folder of a transformers
            model.
        channels: number of input channels.
        size: side of the images in pixels, or the sides of another sample, e.g. (bands, frames).
        **options: options of that backbone, see :func:`backbone_options`; an unknown one raises UsageError.
    """
    if not isinstance(size, int) and len(size) == 2 and size[0] == size[1]:
        size = int(size[0])
    prefix, _, rest = name.partition(":")
    if rest and prefix in DOORS:
        if not isinstance(size, int):
            raise UsageError(f"{name} takes square images, not samples of {' x '.join(map(str, size))}.",
                             where="backbone", fix=f"Choose one of {', '.join(backbone_names()[:5])}...")
        module, class_name = DOORS[prefix]
        return getattr(importlib.import_module(module), class_name)(rest, channels=channels, size=size, options=options)
    builder, preset = _own(name)
    known = backbone_options(name)
    for option in options:
        if option not in known:
            raise UsageError(f"{name} has no option {option}.{nearest(option, known)}", where=f"backbone {name}",
                             fix=f"Options: {', '.join(known)}.")
    return builder(name, channels=channels, size=size, **{**preset, **options})


def backbone_options(name: str) -> dict[str, Any]:
    """Options of one of osteon's own backbones and their defaults."""
    builder, preset = _own(name)
    parameters = inspect.signature(builder).parameters
    return {key: preset.get(key, p.default) for key, p in parameters.items() if key not in ("name", "channels", "size")}


def _own(name: str) -> tuple[Callable[..., Backbone], dict[str, Any]]:
    for family, sizes in FAMILIES:
        if name in sizes:
            return family, dict(sizes[name])
    known = backbone_names()
    raise UsageError(f"There is no backbone {name!r}.{nearest(name, known)}", where="backbone",
                     fix=f"Known: {', '.join(known)}, timm:NAME, hf:NAME.")
