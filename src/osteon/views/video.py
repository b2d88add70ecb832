"""Recipes of views of clips: a span of time and one crop for all frames, blur, contrast, gain and noise.

One crop for the whole clip, as consistent over time as in Qian et al. 2021 (Spatiotemporal Contrastive Video
Representation Learning, section 3). Time is never mirrored nor blurred; frames are mirrored left-right by ``flip=true``
alone.
"""

from __future__ import annotations

from osteon.views.solids import Manner, Sides, recipes_of


def _spans(share: float) -> Sides:
    """The least share of a frame's sides whose product is ``share``, and as much of time."""
    side = share**0.5
    return side, side, side


#: Recipe name -> function of the data and keyword options that plans its views.
RECIPES = recipes_of(Manner(_spans, flips=(False, False, True), blur=(False, True, True)))
