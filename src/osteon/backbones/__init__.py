"""Networks that turn samples into features: our own here, everything else through ``timm:`` and ``hf:``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import psutil
import torch

from osteon.backbones import gnn, gpht, per_frame, predformer, resnet, towers, ttm, unet, vit, xnet
from osteon.backbones._base import Backbone
from osteon.core.errors import OsteonError, UsageError, nearest
from osteon.core.options import coerce

#: Prefix of a name -> (module, class) of the door to another library, imported when first used.
DOORS = {"timm": ("osteon.backbones.timm_door", "TimmBackbone"), "hf": ("osteon.backbones.hf_door", "HfBackbone")}

#: osteon's own: the class of a family, and its sizes by name.
FAMILIES: tuple[tuple[type[Backbone], dict[str, Any]], ...] = (
    (vit.ViT, vit.SIZES), (resnet.ResNet, resnet.SIZES), (ttm.TTM, ttm.SIZES), (gpht.GPHT, gpht.SIZES),
    (towers.Towers, towers.SIZES), (gnn.GNN, gnn.SIZES), (predformer.PredFormer, predformer.SIZES),
    (per_frame.PerFrame, per_frame.SIZES), (unet.UNet, unet.SIZES), (xnet.XNet, xnet.SIZES))

#: Most blocks, and largest number of any other option.
DEEPEST, LARGEST = 4096, 2**20

__all__ = ["Backbone", "backbone_names", "backbone_options", "build_backbone", "weights_of"]


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
    options = {**preset, **{key: _fitted(key, known[key], value, name) for key, value in options.items()}}
    fix = f"Options: {', '.join(known)}."
    try:
        if options != preset:
            _check_memory(lambda: builder(name, channels=channels, size=size, **options), name)
        return builder(name, channels=channels, size=size, **options)
    except (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        if options == preset:
            raise
        raise UsageError(f"{name} cannot be built with these options: {str(error)[:300] or type(error).__name__}.",
                         where=f"backbone {name}", fix=fix) from error


def _fitted(key: str, usual: Any, value: Any, name: str) -> Any:
    """An option of the type of its default, where that is a number, and not beyond all measure."""
    if isinstance(usual, (bool, int, float)):
        value = coerce(value, type(usual).__name__, name=key, where=f"backbone {name}")
    most = DEEPEST if key == "depth" else LARGEST
    if isinstance(value, int) and value > most:
        raise UsageError(f"{key}={value:,} is more than the limit of {most:,}.", where=f"backbone {name}",
                         fix="Choose a smaller one.")
    return value


def weights_of(build: Callable[[], Backbone]) -> int:
    """How many weights a network has, without memory for them; 0 where that cannot be told before it is built."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return sum(p.numel() for p in build().parameters())
    except OsteonError:
        raise
    except Exception:  # what needs values cannot be built without them; building it tells what is wrong
        return 0


def _check_memory(build: Callable[[], Backbone], name: str) -> None:
    """Refuse a network whose weights alone do not fit into the memory that is free, before it is taken."""
    claimed = 4 * weights_of(build)
    free = int(psutil.virtual_memory().available)
    if claimed > free:
        raise UsageError(f"The weights of {name} would take {claimed / 2**30:,.1f} GiB, {free / 2**30:,.1f} are free.",
                         where=f"backbone {name}", fix="Choose a smaller network.")


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
