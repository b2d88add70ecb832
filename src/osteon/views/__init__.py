"""Batched augmentation on the device of the input, with geometry always returned, and policies of what to hide."""

from osteon.views.pipeline import denormalise, normalise
from osteon.views.recipes import RECIPES, Views, make_views, recipe_options

__all__ = ["RECIPES", "Views", "denormalise", "make_views", "normalise", "recipe_options"]
