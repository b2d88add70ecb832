"""Views of spectrograms and series: spans of each side, gain, noise, hidden bands; drawn for the whole batch at once.

A sample is (C, *extent) with one or two sides. Random spans resized to the full side: Niizumi et al. 2021 (BYOL for
audio, arXiv:2103.06695, section III); hidden bands: Park et al. 2019 (SpecAugment, arXiv:1904.08779, section 2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from osteon.core.errors import UsageError
from osteon.parts.types import DataSpec, Draws, Geometry, View
from osteon.views.crop import crop_resize
from osteon.views.pipeline import standardise


@dataclass(frozen=True)
class ArrayPlan:
    """What one view consists of, in the order in which it is done. Amounts are in deviations of the data.

    Args:
        extent: sides of the view.
        spans: smallest share of each side that is kept; the largest is 1. The span is resized to the view's side.
        gain: deviation of a shift of the whole sample, the same for all cells of a channel (a gain, where values are
            logarithms of energies).
        scale: deviation of the logarithm of a factor on the whole sample.
        noise: largest deviation of white noise; the deviation itself is uniform from 0.
        hide: largest share of each side that is hidden by the mean; the share itself is uniform from 0.
    """

    extent: tuple[int, ...]
    spans: tuple[float, ...]
    gain: float = 0.0
    scale: float = 0.0
    noise: float = 0.0
    hide: tuple[float, ...] = ()

    def view(self, x: Tensor, spec: DataSpec, draws: Draws) -> View:
        """Draw and compute the view of samples (B, C, *extent) already divided by ``spec.scale``."""
        sides, batch = len(self.extent), x.shape[0]
        box = sample_spans(draws.fork("crop"), self.spans, batch, x.device)
        flip = torch.zeros(batch, dtype=torch.bool, device=x.device)
        y = standardise(x, spec)
        if min(self.spans) < 1 or self.extent != tuple(x.shape[2:]):
            y = y if sides == 2 else y[:, :, None]
            size = self.extent if sides == 2 else (1, *self.extent)
            y = crop_resize(y, box, (size[0], size[1]), flip)
            y = y if sides == 2 else y[:, :, 0]
        ones, params = [1] * sides, dict[str, Tensor]()
        if self.scale:
            params["scale"] = (self.scale * draws.fork("scale").randn(y.shape[1])).exp()
            y = y * params["scale"].view(batch, -1, *ones)
        if self.gain:
            params["gain"] = self.gain * draws.fork("gain").randn(y.shape[1])
            y = y + params["gain"].view(batch, -1, *ones)
        if self.noise:
            stream = draws.fork("noise")
            params["noise"] = self.noise * stream.rand()
            y = y + params["noise"].view(batch, 1, *ones) * stream.randn(*y.shape[1:])
        for side, share in enumerate(self.hide):
            if share:
                hidden = hidden_band(draws.fork(f"hide{side}"), y.shape[2 + side], share)
                shape = [batch, 1, *ones]
                shape[2 + side] = -1
                y = y.masked_fill(hidden.view(shape), 0.0)
        return View(y, Geometry(box, flip), params)


def sample_spans(draws: Draws, spans: tuple[float, ...], batch: int, device: torch.device) -> Tensor:
    """Boxes (B, 4) x0, y0, x1, y1 of random spans: shares uniform from each least share to 1, places uniform."""
    if not all(0 < share <= 1 for share in spans):
        raise UsageError(f"Spans of {spans} of a sample are impossible.", where="views", fix="Give shares in (0, 1].")
    u = draws.rand(len(spans), 2)
    share = torch.tensor(spans, device=u.device) + (1 - torch.tensor(spans, device=u.device)) * u[..., 0]
    start = u[..., 1] * (1 - share)
    edges = torch.stack([start, start + share], -1).to(device)  # (B, sides, 2), first side first
    if len(spans) == 1:
        whole = torch.tensor([0.0, 1.0], device=device).expand(batch, 1, 2)
        edges = torch.cat([whole, edges], 1)
    return torch.stack([edges[:, 1, 0], edges[:, 0, 0], edges[:, 1, 1], edges[:, 0, 1]], 1)


def hidden_band(draws: Draws, length: int, share: float) -> Tensor:
    """(B, length) bool, True in one band of each sample, of a share uniform in [0, ``share``]."""
    u = draws.rand(2)
    wide = u[:, :1] * share * length
    start = u[:, 1:] * (length - wide)
    cell = torch.arange(length, device=u.device) + 0.5
    return (cell >= start) & (cell < start + wide)
