"""Named recipes of views, with the papers' settings and stated rules for small images and unusual channels."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast

import torch
from torch import Tensor

from osteon.core.errors import UsageError, nearest
from osteon.parts.types import DataSpec, Draws, View
from osteon.views import kernel, randaugment
from osteon.views.pipeline import Plan, Stored, make_view

#: Side in pixels up to which the small-image rules hold.
SMALL = 32
#: Options that every recipe of images has, and their defaults.
_COMMON: dict[str, object] = {"unit_range": None, "interpolation": "bilinear"}


class OtherPlan(Protocol):
    """A view of samples that are no images."""

    def view(self, x: Tensor, spec: DataSpec, draws: Draws) -> View:
        """Draw and compute it from samples (B, C, *extent) divided by the scale."""


@dataclass
class Views:
    """A recipe ready for use: call it on a batch of stored images and a stream of draws.

    Args:
        recipe: its name.
        spec: the data it was made for.
        plans: one a view, in order.
        notes: every automatic choice with its rule, to be printed.
        options: the options the recipe was made with, None where a rule decided.
    """

    recipe: str
    spec: DataSpec
    plans: Sequence[Plan | OtherPlan]
    notes: list[str]
    options: dict[str, object]

    def __len__(self) -> int:
        """Number of views."""
        return len(self.plans)

    def only(self, number: int) -> Views:
        """The view of that number alone."""
        return replace(self, plans=[self.plans[number]])

    def __call__(self, images: Tensor, draws: Draws) -> list[View]:
        """Compute every view of a batch.

        Args:
            images: samples (B, C, *extent) as stored, row i being global row ``draws.rows[i]``.
            draws: where training stands; view i is drawn from ``draws.fork(f"view{i}")``.

        Returns:
            One view a plan: normalised float32 with geometry, computed in float32 under autocast too, whose short
            products would move values by several levels of 255; ``params`` holds what was drawn where the recipe has
            that part: ``jitter``, ``grey``, ``solarise`` (B,) bool, ``blur`` (B,) sigma or 0, ``jitter_factor``,
            ``jitter_order`` (B, 4), ``randaugment_op``, ``randaugment_level``.
        """
        if len(images) != len(draws.rows):
            raise UsageError(f"{len(images)} images came with draws for {len(draws.rows)} rows.", where="views",
                             fix="Give the draws of exactly these rows: draws.at(rows).")
        batch = Stored(images, self.spec)
        with torch.autocast(images.device.type, enabled=False):
            return [_picture(batch, plan, draws.fork(f"view{i}")) if isinstance(plan, Plan)
                    else plan.view(batch.unit, self.spec, draws.fork(f"view{i}")) for i, plan in enumerate(self.plans)]


def _picture(batch: Stored, plan: Plan, draws: Draws) -> View:
    """A view of images, by the curriculum where training follows one: augmentation as strong, then images as small."""
    if draws.course is None:
        return make_view(batch, plan, draws)
    if plan.augment is not None:
        plan = replace(plan, augment=replace(plan.augment, magnitude=draws.course.magnitude(draws.step)))
    view = make_view(batch, plan, draws)
    return replace(view, x=draws.course.shrink(view.x, draws.step))


class _Maker:
    """What a recipe needs to decide its automatic options: the data, the size, and a notebook."""

    def __init__(self, spec: DataSpec, size: int, unit_range: bool | None) -> None:
        self.spec, self.size, self.notes = spec, size, list[str]()
        self.small = size <= SMALL
        self.unit = spec.scale != 1 if unit_range is None else unit_range
        if not self.unit:
            self.notes.append("values are floats of arbitrary range (scale 1): colour changes and solarisation, which "
                              "assume [0, 1], are left out; unit_range=True puts them back")

    def pick(self, name: str, given: float | None, small: float, large: float) -> float:
        """An option, or its default by the size of the images, noted."""
        if given is not None:
            return given
        value, sign = (small, "<=") if self.small else (large, ">")
        if small != large:
            self.notes.append(f"{name} = {value:g} because the images are {sign} {SMALL} pixels")
        return value

    def side(self, size: int | None) -> tuple[int, int]:
        """A view's size, that of the data when None."""
        side = self.size if size is None else size
        if side < 1:
            raise UsageError(f"A view of {side} pixels is empty.", where="size", fix="Give a positive size.")
        return side, side

    def colour(self, plan: Plan) -> Plan:
        """The plan with what the data's channels and range do not allow taken out, noted."""
        if not self.unit:
            return replace(plan, jitter=None, grey=0.0, solarise=0.0)
        if self.spec.channels == 3 or not (plan.jitter or plan.grey):
            return plan
        note = (f"hue, saturation and grey are left out: they need 3 channels, the data has {self.spec.channels}; "
                "brightness and contrast stay")
        if note not in self.notes:
            self.notes.append(note)
        b, c = (plan.jitter or (0.0, 0.0))[:2]
        return replace(plan, jitter=(b, c, 0.0, 0.0) if plan.jitter else None, grey=0.0)


def _strength(s: float, base: Sequence[float]) -> tuple[float, float, float, float] | None:
    """Half-ranges of a jitter; None when there is nothing to do. Hue stays within half a turn."""
    if s < 0:
        raise UsageError(f"A jitter of strength {s} has no meaning.", where="strength", fix="Give 0 or more.")
    b, c, sat, hue = (s * v for v in base)
    return (b, c, sat, min(hue, 0.5)) if s else None


def none(make: _Maker) -> list[Plan]:
    """No augmentation: resize if asked, normalise."""
    return [Plan(make.side(None))]


def crop_flip(make: _Maker, *, min_scale: float = 0.2, flip: bool = True, n_views: int = 1) -> list[Plan]:
    """Random resized crop and mirror. He et al. 2022 (MAE), appendix A.1; SimMIM uses ``min_scale=0.67``."""
    return [Plan(make.side(None), (min_scale, 1.0), flip=0.5 * flip)] * n_views


def simclr(make: _Maker, *, min_scale: float | None = None, strength: float | None = None, flip: bool = True,
           jitter: float = 0.8, grey: float = 0.2, blur: float | None = None, solarise: float = 0.0,
           n_views: int = 2) -> list[Plan]:
    """Views drawn alike. Chen et al. 2020, appendices A and B.9 (CIFAR-10: half strength, no blur).

    Args:
        make: the data.
        min_scale: smallest crop as a share of the image; 0.08, or 0.2 up to 32 pixels.
        strength: strength of the colour jitter; 1, or 0.5 up to 32 pixels.
        flip: mirror half of the views.
        jitter: probability of the colour jitter.
        grey: probability of removing colour.
        blur: probability of a blur; 0.5, or 0 up to 32 pixels.
        solarise: probability of solarisation.
        n_views: number of views.
    """
    scale = make.pick("min_scale", min_scale, 0.2, 0.08)
    s = make.pick("strength", strength, 0.5, 1.0)
    plan = Plan(make.side(None), (scale, 1.0), flip=0.5 * flip, jitter=_strength(s, (0.8, 0.8, 0.8, 0.2)),
                jitter_chance=jitter, grey=grey, blur=make.pick("blur", blur, 0.0, 0.5), solarise=solarise)
    return [make.colour(plan)] * n_views


def byol(make: _Maker, *, min_scale: float | None = None, strength: float = 1.0, flip: bool = True,
         jitter: float = 0.8, grey: float = 0.2, blur: float | None = None, blur_second: float | None = None,
         solarise: float = 0.2) -> list[Plan]:
    """An asymmetric pair: the first always blurred, the second sometimes solarised. Grill et al. 2020, appendix B.

    Args:
        make: the data.
        min_scale: smallest crop as a share of the image; 0.08, or 0.2 up to 32 pixels.
        strength: multiplies the jitter 0.4, 0.4, 0.2, 0.1.
        flip: mirror half of the views.
        jitter: probability of the colour jitter.
        grey: probability of removing colour.
        blur: probability of a blur of the first view; 1, or 0 up to 32 pixels.
        blur_second: the same for the second view; 0.1, or 0 up to 32 pixels.
        solarise: probability of solarisation of the second view.
    """
    scale = make.pick("min_scale", min_scale, 0.2, 0.08)
    first = Plan(make.side(None), (scale, 1.0), flip=0.5 * flip, jitter=_strength(strength, (0.4, 0.4, 0.2, 0.1)),
                 jitter_chance=jitter, grey=grey, blur=make.pick("blur", blur, 0.0, 1.0))
    second = replace(first, blur=make.pick("blur_second", blur_second, 0.0, 0.1), solarise=solarise)
    return [make.colour(first), make.colour(second)]


def multicrop(make: _Maker, *, style: str = "swav", n_local: int = 6, global_size: int | None = None,
              local_size: int | None = None, stride: int = 1, global_scale: float | None = None,
              local_scale: float | None = None, min_local: float | None = None, strength: float | None = None,
              flip: bool = True, jitter: float = 0.8, grey: float = 0.2, blur: float | None = None,
              solarise: float | None = None) -> list[Plan]:
    """Two global crops, then ``n_local`` small ones. Caron et al. 2020 (SwAV), appendix A; 2021 (DINO), section 3.

    Args:
        make: the data.
        style: ``"swav"`` (all crops alike, crops meet at 0.14) or ``"dino"`` (BYOL's colours and asymmetry, at 0.4).
        n_local: number of local crops.
        global_size: side of a global crop in pixels; that of the data when None.
        local_size: side of a local crop in pixels; half the global one, rounded to a multiple of ``stride``, when None.
        stride: pixels a token of the backbone.
        global_scale: smallest global crop as a share of the image; by style, swav 0.25 up to 32 pixels.
        local_scale: largest local crop as a share of the image; ``global_scale`` when None.
        min_local: smallest local crop as a share of the image; 0.05, or 0.1 up to 32 pixels.
        strength: strength of the colour jitter; 1, or 0.5 up to 32 pixels with style swav.
        flip: mirror half of the views.
        jitter: probability of the colour jitter.
        grey: probability of removing colour.
        blur: probability of a blur of every crop; by style, or 0 up to 32 pixels.
        solarise: probability of solarisation of the second global crop; swav 0, dino 0.2.
    """
    if style not in ("swav", "dino"):
        raise UsageError(f"There is no multicrop style {style!r}.", where="style", fix="Give swav or dino.")
    dino = style == "dino"
    big = make.side(global_size)
    if local_size is None:
        local_size = max(1, int(big[0] / 2 / stride + 0.5)) * stride
        make.notes.append(f"local_size = {local_size}: half of {big[0]}, rounded to a multiple of {stride}")
    low = make.pick("global_scale", global_scale, 0.4 if dino else 0.25, 0.4 if dino else 0.14)
    top = low if local_scale is None else local_scale
    bottom = min(make.pick("min_local", min_local, 0.1, 0.05), top)
    s = make.pick("strength", strength, 1.0 if dino else 0.5, 1.0)
    base = (0.4, 0.4, 0.2, 0.1) if dino else (0.8, 0.8, 0.8, 0.2)
    chances = (1.0, 0.1, 0.5) if dino else (0.5, 0.5, 0.5)
    if blur is not None:
        chances = (blur, blur, blur)
    elif make.small:
        chances = (0.0, 0.0, 0.0)
        make.notes.append(f"blur = 0 because the images are <= {SMALL} pixels")
    first = Plan(big, (low, 1.0), flip=0.5 * flip, jitter=_strength(s, base), jitter_chance=jitter, grey=grey,
                 blur=chances[0])
    second = replace(first, blur=chances[1], solarise=(0.2 if dino else 0.0) if solarise is None else solarise)
    local = replace(first, size=make.side(local_size), scale=(bottom, top), blur=chances[2])
    return [make.colour(first), make.colour(second)] + [make.colour(local)] * n_local


def supervised(make: _Maker, *, min_scale: float | None = None, flip: bool = True, randaugment_ops: int = 2,
               magnitude: float = 7.0, magnitude_std: float = 0.5) -> list[Plan]:
    """Crop, mirror and RandAugment for training with labels. Wightman et al. 2021 (ResNet strikes back), section 3.

    Args:
        make: the data.
        min_scale: smallest crop as a share of the image; 0.08, or 0.2 up to 32 pixels.
        flip: mirror half of the views.
        randaugment_ops: operations a sample; 0 for no RandAugment.
        magnitude: mean strength of RandAugment, 0 to 10.
        magnitude_std: its standard deviation.
    """
    plan = Plan(make.side(None), (make.pick("min_scale", min_scale, 0.2, 0.08), 1.0), flip=0.5 * flip)
    if not randaugment_ops:
        return [plan]
    ops = randaugment.allowed_ops(make.spec.channels, make.unit)
    left_out = [op for op in randaugment.OPS if op not in ops]
    if left_out:
        make.notes.append(f"RandAugment without {', '.join(left_out)}: not defined for this data")
    return [replace(plan, augment=randaugment.Settings(randaugment_ops, magnitude, magnitude_std, ops=ops))]


#: Recipe name -> function of the data and keyword options that plans its views.
RECIPES: dict[str, Callable[..., list[Plan]]] = {
    "none": none, "crop_flip": crop_flip, "simclr": simclr, "byol": byol, "multicrop": multicrop,
    "supervised": supervised,
}


def recipes_of(modality: str) -> Mapping[str, Callable[..., Sequence[Plan | OtherPlan]]]:
    """The recipes of a modality, by name."""
    if modality == "image":
        return RECIPES
    return cast(Mapping[str, Callable[..., Sequence[OtherPlan]]],
                importlib.import_module(f"osteon.views.{modality}").RECIPES)


def recipe_options(recipe: str, modality: str = "image") -> dict[str, object]:
    """Options of a recipe and their defaults; None stands for a rule on the data, reported in ``notes``."""
    known = recipes_of(modality)
    if recipe not in known:
        raise UsageError(f"There is no recipe of views called {recipe!r} for {modality}.", where="recipe",
                         fix=f"Known: {', '.join(known)}." + nearest(recipe, known))
    parameters = list(inspect.signature(known[recipe]).parameters.values())[1:]
    return {p.name: p.default for p in parameters} | (_COMMON if modality == "image" else {})


def make_views(recipe: str, spec: DataSpec, *, size: int | None = None,
               usual: Mapping[str, object] | None = None, **options: object) -> Views:
    """Prepare a recipe of augmented views for some data.

    An option given as None is left to the recipe. What only images have (mirroring, a size of the views) is None for
    other modalities.

    Args:
        recipe: ``none``, ``crop_flip``, ``simclr``, ``byol``, ``multicrop`` or ``supervised``.
        spec: the data.
        size: side of the (global) views in pixels; that of the data when None.
        usual: options of images that stand where one is None.
        options: options of the recipe, see :func:`recipe_options`; ``unit_range`` says whether values divided by the
            scale lie in [0, 1] (None: they do unless the scale is 1), ``interpolation`` how images are resampled:
            ``bilinear`` or ``bicubic``, always antialiased.

    Raises:
        UsageError: unknown recipe or option (the nearest known one is named), or a value out of range.
    """
    if spec.modality == "image":
        options = {k: (usual or {}).get(k, True if k == "flip" else None) if v is None else v
                   for k, v in options.items()}
    else:
        mirrors = "flip" in inspect.signature(recipes_of(spec.modality).get(recipe, none)).parameters
        options = {k: v for k, v in {**options, "size": size}.items()
                   if v is not None and not (k == "flip" and v is False and not mirrors)}
    known = recipe_options(recipe, spec.modality)
    for name in options:
        if name not in known:
            raise UsageError(f"The recipe {recipe} has no option {name!r}.", where="views",
                             fix=f"Known: {', '.join(known)}." + nearest(name, known))
    given = known | options
    if spec.modality != "image":
        plans = list(recipes_of(spec.modality)[recipe](spec, **options))
        return Views(recipe, spec, plans, [f"views of {spec.modality}: {recipe}"], given)
    unit_range = options.pop("unit_range", None)
    make = _Maker(spec, spec.size if size is None else size, unit_range if unit_range is None else bool(unit_range))
    smooth = options.pop("interpolation", "bilinear")
    if smooth not in ("bilinear", "bicubic"):
        raise UsageError(f"There is no interpolation {smooth!r}.", where=f"views {recipe}",
                         fix="Give bilinear or bicubic.")
    pictures = RECIPES[recipe](make, **options)
    if smooth == "bicubic":
        pictures = [replace(plan, cubic=True, clip=make.unit) for plan in pictures]
    for plan in pictures:
        for name in ("flip", "jitter_chance", "grey", "blur", "solarise"):
            if not 0 <= getattr(plan, name) <= 1:
                raise UsageError(f"{name} = {getattr(plan, name)} is not a probability.", where=f"views {recipe}",
                                 fix="Give a number between 0 and 1.")
        if plan.scale and not 0 < plan.scale[0] <= plan.scale[1] <= 1:
            raise UsageError(f"Crops of {plan.scale} of the image are impossible.", where=f"views {recipe}",
                             fix="Give shares with 0 < smallest <= largest <= 1.")
    return Views(recipe, spec, pictures, [*make.notes, kernel.note()], given)
