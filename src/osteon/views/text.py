"""Recipes of views of text: spans of the window, and tokens hidden by ``<mask>``.

Spans of a text as its views: Giorgi et al. 2021 (DeCLUTR, arXiv:2006.03659, section 3.1); hidden tokens: Devlin et al.
2019 (BERT, arXiv:1810.04805, section 3.1) in kind. Sizes and shares are options.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from osteon.core.errors import UsageError
from osteon.parts.types import DataSpec, Draws, Geometry, View
from osteon.parts.words import MASK, PAD


@dataclass(frozen=True)
class TextPlan:
    """What one view of a text consists of.

    Args:
        length: tokens of the view, T'.
        keep: smallest share of a view's length that shows text, from its start; the share itself is uniform up to 1 and
            the rest is ``<pad>``.
        hide: probability that a token is replaced by ``<mask>``.
    """

    length: int
    keep: float = 1.0
    hide: float = 0.0

    def view(self, x: Tensor, spec: DataSpec, draws: Draws) -> View:
        """Draw and compute the view of samples (B, 1, T) of token numbers: (B, 1, T') of the same type.

        A span starts anywhere within the text, not in the padding; a text shorter than it is kept whole.
        """
        tokens = x[:, 0]
        batch, window = tokens.shape
        place = torch.arange(1, window + 1, device=x.device)
        written = ((tokens != PAD) * place).amax(1)  # tokens up to the last one
        stream = draws.fork("crop")
        share = self.keep + (1 - self.keep) * stream.rand().to(x.device)
        length = (share * torch.minimum(written, torch.tensor(self.length, device=x.device))).ceil().long().clamp(min=1)
        start = (stream.rand().to(x.device) * ((written - length).clamp(min=0) + 1)).floor().long()
        column = torch.arange(self.length, device=x.device)
        index = (start[:, None] + column).clamp(max=window - 1)
        shown = (column < length[:, None]) & (start[:, None] + column < window)
        y = torch.where(shown, tokens.gather(1, index), torch.full_like(tokens[:, :1], PAD))
        params = {"start": start, "length": length}
        if self.hide:
            params["hide"] = (draws.fork("hide").rand(self.length).to(x.device) < self.hide) & (y != PAD)
            y = y.masked_fill(params["hide"], MASK)
        zero = torch.zeros(batch, device=x.device)
        box = torch.stack([start / window, zero, (start + length) / window, zero + 1], 1)
        return View(y[:, None], Geometry(box, torch.zeros(batch, dtype=torch.bool, device=x.device)), params)


def _plan(spec: DataSpec, share: float, hide: float, *, keep: float = 1.0) -> TextPlan:
    if not 0 < share <= 1 or not 0 < keep <= 1:
        raise UsageError(f"A span of {min(share, keep)} of a text is impossible.", where="views",
                         fix="Give shares in (0, 1].")
    if not 0 <= hide < 1:
        raise UsageError(f"Hiding a share of {hide:g} of the tokens leaves none.", where="views",
                         fix="Give a smaller strength.")
    return TextPlan(max(1, round(share * spec.extent[-1])), keep, hide)


def none(spec: DataSpec) -> list[TextPlan]:
    """No augmentation."""
    return [_plan(spec, 1.0, 0.0)]


def crop_flip(spec: DataSpec, *, min_scale: float = 1.0, n_views: int = 1) -> list[TextPlan]:
    """The whole window; with ``min_scale`` below 1 a span of at least that share of it, followed by ``<pad>``."""
    return [_plan(spec, 1.0, 0.0, keep=min_scale)] * n_views


def simclr(spec: DataSpec, *, min_scale: float = 0.5, strength: float = 1.0, hide: float = 0.1,
           n_views: int = 2) -> list[TextPlan]:
    """Views drawn alike: spans of one length with hidden tokens.

    Args:
        spec: the data.
        min_scale: length of a span as a share of the window, the same for all.
        strength: multiplies ``hide``.
        hide: probability that a token is hidden.
        n_views: number of views.
    """
    return [_plan(spec, min_scale, strength * hide)] * n_views


def byol(spec: DataSpec, *, min_scale: float = 0.5, strength: float = 1.0, hide: float = 0.1) -> list[TextPlan]:
    """A pair drawn as in :func:`simclr`."""
    return simclr(spec, min_scale=min_scale, strength=strength, hide=hide)


def multicrop(spec: DataSpec, *, style: str = "swav", n_local: int = 4, stride: int = 1, global_scale: float = 0.5,
              strength: float = 1.0, hide: float = 0.1) -> list[TextPlan]:
    """Two long spans, then ``n_local`` of half their length.

    Args:
        spec: the data.
        style: accepted for the sake of images, without effect.
        n_local: number of short views.
        stride: accepted for the sake of images: a token of the backbone is a token of the text.
        global_scale: length of a long span as a share of the window.
        strength: multiplies ``hide``.
        hide: probability that a token is hidden.
    """
    whole, short = (_plan(spec, share * global_scale, strength * hide) for share in (1.0, 0.5))
    return [whole, whole] + [short] * n_local


def supervised(spec: DataSpec, *, min_scale: float = 1.0, hide: float = 0.1) -> list[TextPlan]:
    """The window with hidden tokens, for training with labels."""
    return [_plan(spec, 1.0, hide, keep=min_scale)]


#: Recipe name -> function of the data and keyword options that plans its views.
RECIPES: dict[str, Callable[..., list[TextPlan]]] = {
    "none": none, "crop_flip": crop_flip, "simclr": simclr, "byol": byol, "multicrop": multicrop,
    "supervised": supervised,
}
