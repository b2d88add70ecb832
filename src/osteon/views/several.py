"""Recipes of views of sets: every member's own recipe of that name, drawn apart; what is missing stays missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from osteon.parts.members import Members
from osteon.parts.types import DataSpec, Draws, Geometry, View


@dataclass(frozen=True)
class SetPlan:
    """One view of a set.

    Args:
        recipe: of each member.
        number: which of the recipe's views.
        options: option of the recipe -> value, for the members whose recipe has it.
    """

    recipe: str
    number: int = 0
    options: tuple[tuple[str, float], ...] = ()

    def view(self, x: Tensor, spec: DataSpec, draws: Draws) -> View:
        """Draw and compute the view of packed samples (B, 1, T): packed again, in stored values."""
        from osteon.views.recipes import make_views, recipe_options

        members, made = Members.of(spec.traits), dict[str, Tensor]()
        for member in members:
            known = recipe_options(self.recipe, member.name)
            options: dict[str, Any] = {k: v for k, v in self.options if k in known}
            views = make_views(self.recipe, member.spec, **options)
            plan = views.only(min(self.number, len(views) - 1))
            drawn = plan(members.values(x, member), draws.fork(member.name))[0].x
            made[member.name] = members.stored(member, drawn)
        box = torch.tensor([0.0, 0.0, 1.0, 1.0], device=x.device).expand(len(x), 4)
        flip = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        return View(members.pack(members.there(x), made), Geometry(box, flip))


def _recipe(name: str, views: int) -> Callable[..., list[SetPlan]]:
    def recipe(spec: DataSpec, *, min_scale: float | None = None, strength: float | None = None,
               flip: bool | None = None, n_views: int = views) -> list[SetPlan]:
        given = {"min_scale": min_scale, "strength": strength, "flip": flip}
        options = tuple((k, v) for k, v in given.items() if v is not None)
        return [SetPlan(name, i, options) for i in range(n_views)]

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
    options = tuple((k, v) for k, v in (("min_scale", global_scale), ("strength", strength)) if v is not None)
    return [SetPlan("simclr", i, options) for i in range(2)]


#: Recipe name -> function of the data and keyword options that plans its views.
RECIPES: dict[str, Callable[..., list[SetPlan]]] = {
    "none": _recipe("none", 1), "crop_flip": _recipe("crop_flip", 1), "simclr": _recipe("simclr", 2),
    "byol": _recipe("byol", 2), "multicrop": multicrop, "supervised": _recipe("supervised", 1)}
