"""Recipes of views of volumes: crops of all three sides, blur, contrast, gain and noise.

The changes are those of contrastive learning on scans (Taleb et al. 2020, 3D Self-Supervised Methods for Medical
Imaging) in kind; their sizes are options. Mirrors (``flip=true``) are along all three sides and off by default, because
anatomy is not symmetric.
"""

from __future__ import annotations

from osteon.views.solids import Manner, Sides, recipes_of


def _spans(share: float) -> Sides:
    """The same least share of every side, so that their product is the share of the volume."""
    side = share ** (1 / 3)
    return side, side, side


#: Recipe name -> function of the data and keyword options that plans its views.
RECIPES = recipes_of(Manner(_spans, flips=(True, True, True), blur=(True, True, True)))
