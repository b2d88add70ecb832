"""Recipes of views of sets: every member's own recipe of that name, drawn apart; what is missing stays missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from osteon.parts.members import Member, Members
from osteon.parts.types import DataSpec, Draws, Geometry, View

if TYPE_CHECKING:
    from osteon.views.recipes import Views


@dataclass(frozen=True)
class SetPlan:
    """One view of a set.

    Args:
        parts: every member with the maker of its one view.
    """

    parts: tuple[tuple[Member, Views], ...]

    def view(self, x: Tensor, spec: DataSpec, draws: Draws) -> View:
        """Draw and compute the view of packed samples (B, 1, T): packed again, in stored values."""
        members = Members(member for member, _ in self.parts)
        made = {member.name: members.stored(member, views(members.values(x, member), draws.fork(member.name))[0].x)
                for member, views in self.parts}
        box = torch.tensor([0.0, 0.0, 1.0, 1.0], device=x.device).expand(len(x), 4)
        flip = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        return View(members.pack(members.there(x), made), Geometry(box, flip))


def plans(spec: DataSpec, name: str, count: int, **options: Any) -> list[SetPlan]:
    """So many views of sets by the recipe ``name`` of every member, each with the options that its recipe has."""
    from osteon.views.recipes import make_views, recipe_options

    made = []
    for member in Members.of(spec.traits):
        known = recipe_options(name, member.name)
        given = {k: v for k, v in options.items() if k in known and v is not None}
        made.append((member, make_views(name, member.spec, **given)))
    return [SetPlan(tuple((member, views.only(min(i, len(views) - 1))) for member, views in made))
            for i in range(count)]


def _recipe(name: str, views: int) -> Callable[..., list[SetPlan]]:
    def recipe(spec: DataSpec, *, min_scale: float | None = None, strength: float | None = None,
               flip: bool | None = None, n_views: int = views) -> list[SetPlan]:
        return plans(spec, name, n_views, min_scale=min_scale, strength=strength, flip=flip)

    recipe.__doc__ = f"Each member's own recipe ``{name}``."
    return recipe


def multicrop(spec: DataSpec, *, style: str = "swav", n_local: int = 0, stride: int = 1,
              global_scale: float | None = None, strength: float | None = None) -> list[SetPlan]:
    """Two views as in ``simclr``: a part of a set of another size has no place in a packed sample.

    Args:
        spec: the data.
        style: accepted for the sake of images, without effect.
        n_local: accepted for the sake of images, without effect.
        stride: accepted for the sake of images, without effect.
        global_scale: smallest share of a member in a view.
        strength: of what a member's recipe calls so.
    """
    return plans(spec, "simclr", 2, min_scale=global_scale, strength=strength)


#: Recipe name -> function of the data and keyword options that plans its views.
RECIPES: dict[str, Callable[..., list[SetPlan]]] = {
    "none": _recipe("none", 1), "crop_flip": _recipe("crop_flip", 1), "simclr": _recipe("simclr", 2),
    "byol": _recipe("byol", 2), "multicrop": multicrop, "supervised": _recipe("supervised", 1)}
