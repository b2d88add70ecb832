"""Mixup and CutMix: each sample blended with a partner from the global batch, and its target likewise.

Zhang et al. 2018, mixup, section 2; Yun et al. 2019, CutMix, section 3.1 (algorithm A1). As timm does per batch, one
step uses one method, one share and one box. Partners are a permutation of the global batch, so that a step over
several processes or micro-batches mixes exactly what one process would mix.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from osteon.core.errors import UsageError
from osteon.parts.types import Draws


def mixup(x: Tensor, partner: Tensor, keep: Tensor) -> Tensor:
    """``keep x + (1 - keep) partner``; ``keep`` is a scalar in [0, 1]."""
    return keep * x + (1 - keep) * partner


def cutmix_box(height: int, width: int, keep: Tensor, centre: Tensor) -> tuple[int, int, int, int]:
    """Pixels x0, y0, x1, y1 of a box of about ``1 - keep`` of the image around ``centre`` (2,) in [0, 1), clipped."""
    side = float((1 - keep).clamp(0, 1).sqrt())
    w, h = int(width * side), int(height * side)
    cx, cy = int(float(centre[0]) * width), int(float(centre[1]) * height)
    return max(0, cx - w // 2), max(0, cy - h // 2), min(width, cx + w - w // 2), min(height, cy + h - h // 2)


class Mix:
    """Mix a batch of views and soft targets with partners.

    Args:
        mixup_alpha: Mixup's Beta parameter; 0 turns Mixup off.
        cutmix_alpha: CutMix's Beta parameter; 0 turns CutMix off.
        chance: probability that a step mixes at all.
        switch: probability of CutMix when both are on.
    """

    def __init__(self, *, mixup_alpha: float = 0.1, cutmix_alpha: float = 1.0, chance: float = 1.0,
                 switch: float = 0.5) -> None:
        if min(mixup_alpha, cutmix_alpha) < 0 or not (0 <= chance <= 1 and 0 <= switch <= 1):
            raise UsageError("Mixing takes alphas >= 0 and probabilities between 0 and 1.", where="mix",
                             fix="The usual setting is mixup_alpha=0.1, cutmix_alpha=1, chance=1, switch=0.5.")
        self.mixup_alpha, self.cutmix_alpha, self.chance, self.switch = mixup_alpha, cutmix_alpha, chance, switch

    def __call__(self, x: Tensor, targets: Tensor, draws: Draws,
                 fetch: Callable[[Tensor, Draws], tuple[Tensor, Tensor]] | None = None) -> tuple[Tensor, Tensor]:
        """Mixed views and targets.

        Args:
            x: (B, C, h, w) views of the rows held here.
            targets: (B, K) one-hot or multi-hot floats.
            draws: where training stands; the same object the views were drawn from will do.
            fetch: gives views and targets of other rows from their global numbers and ``draws.at(numbers)``, e.g.
                ``lambda rows, d: (views(d.take("image", rows), d)[0].x, one_hot(d.take("label", rows)))``. Called only
                if a partner is not held here.

        Returns:
            ``(x, targets)`` of the same shapes.
        """
        stream = draws.fork("mix")
        coin = stream.shared_rand(2)
        order = stream.permutation()
        if float(coin[0]) >= self.chance or not (self.mixup_alpha or self.cutmix_alpha):
            return x, targets
        cut = self.cutmix_alpha > 0 and (self.mixup_alpha == 0 or float(coin[1]) < self.switch)
        alpha = self.cutmix_alpha if cut else self.mixup_alpha
        keep = stream.shared_beta(alpha, alpha)
        other, other_targets = self._partners(x, targets, draws, order, fetch)
        if not cut:
            return mixup(x, other, keep), mixup(targets, other_targets, keep)
        height, width = x.shape[2:]
        x0, y0, x1, y1 = cutmix_box(height, width, keep, stream.shared_rand(2))
        out = x.clone()
        out[..., y0:y1, x0:x1] = other[..., y0:y1, x0:x1]
        # The share of the target is that of the pixels, after clipping at the border.
        share = torch.tensor(1 - (x1 - x0) * (y1 - y0) / (height * width), dtype=targets.dtype, device=x.device)
        return out, mixup(targets, other_targets, share)

    @staticmethod
    def _partners(x: Tensor, targets: Tensor, draws: Draws, order: Tensor,
                  fetch: Callable[[Tensor, Draws], tuple[Tensor, Tensor]] | None) -> tuple[Tensor, Tensor]:
        """Views and targets of each row's partner, ``order[row]``."""
        held = torch.full((draws.total,), -1)
        held[draws.rows] = torch.arange(len(draws.rows))
        rows = order[draws.rows]
        local = held[rows]
        if bool((local >= 0).all()):
            local = local.to(x.device)
            return x[local], targets[local]
        if fetch is None:
            raise UsageError("A mixing partner lies in another part of the batch.", where="mix",
                             fix="Give `fetch`, which computes views and targets of other rows.")
        return fetch(rows, draws.at(rows))
