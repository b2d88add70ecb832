"""Whether embeddings of two views agree because they show one sample, or because everything has become alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from osteon.core.errors import MonitorStop

_FIX = ("Check that the objective keeps what prevents collapse (stop-gradient, variance term, negatives, temperature); "
        "lower the learning rate or lengthen the warm-up. --set collapse_stop=false goes on regardless.")


#: Samples below which nothing is judged: the deviation of a few says little.
FEWEST = 8


def agreement(pairs: Tensor) -> tuple[float, float, float]:
    """How alike two views are, of one sample and of two.

    Args:
        pairs: (B, V, P) embeddings, B >= 2; the first two views count.

    Returns:
        Mean cosine of the two views of a sample, mean cosine of views of different samples, and the effect size of
        their difference: mean over samples divided by its standard deviation (Cohen's d), 0 where views tell nothing
        of the sample.
    """
    first, second = F.normalize(pairs.double(), dim=-1)[:, :2].unbind(1)
    cosines = first @ second.T
    same = cosines.diagonal()
    strangers = (cosines.sum(0) + cosines.sum(1) - 2 * same) / (2 * (len(cosines) - 1))
    gain = same - strangers
    return float(same.mean()), float(strangers.mean()), float(gain.mean() / gain.std().clamp(min=1e-12))


class AgreementMonitor:
    """Stops a run in which views of different samples agree as well as those of one sample.

    This is what collapse is to the embeddings a joint-embedding loss compares, however spread the features before the
    head still are. Over the last ``window`` checks, strangers must agree (mean cosine of views of different samples at
    least ``alike``) and have come to it (it was lower by ``risen`` before: a fresh network may begin anywhere), or the
    embeddings must have shrunk (their deviation over samples is below ``shrunk`` times the largest it was); and the
    effect size of the difference must lie below ``effect`` by two standard errors. The absence of a difference is thus
    shown and not presumed: small batches take longer (fewer than 8 samples are not judged), and a difference that is
    only weak goes on.

    Args:
        alike: cosine from which strangers agree.
        risen: by how much that must have grown.
        shrunk: share of the largest deviation.
        effect: effect size below which views tell nothing of the sample.
        window: checks that are judged together.
        rows: at most so many samples are looked at.
    """

    def __init__(self, *, alike: float = 0.6, risen: float = 0.25, shrunk: float = 1 / 3, effect: float = 0.3,
                 window: int = 5, rows: int = 128) -> None:
        self.alike, self.risen, self.shrunk, self.effect = alike, risen, shrunk, effect
        self.window, self.rows = window, rows
        self._least, self._widest = math.inf, 0.0
        self._seen: list[list[float]] = []  # of the last checks: strangers, deviation, effect size, samples

    @torch.no_grad()
    def check(self, pairs: Tensor, step: int) -> dict[str, float]:
        """Measure embeddings (B, V, P) and stop the run if they have collapsed.

        Returns:
            ``view_cosine``, ``stranger_cosine`` and ``embedding_std``. Empty where nothing can be said: one view, fewer
            than three samples, or numbers that are not finite.

        Raises:
            MonitorStop: collapsed; names values and thresholds.
        """
        pairs = pairs.detach()[:self.rows]
        if pairs.dim() != 3 or len(pairs) < 3 or pairs.shape[1] < 2 or not bool(torch.isfinite(pairs).all()):
            return {}
        same, strangers, effect = agreement(pairs.cpu())
        spread = float(pairs[:, 0].double().std(0).mean())
        self._least, self._widest = min(self._least, strangers), max(self._widest, spread)
        self._seen = [*self._seen, [strangers, spread, effect, float(len(pairs))]][-self.window:]
        if len(self._seen) == self.window and min(count for *_, count in self._seen) >= FEWEST:
            self._judge(step, same)
        return {"view_cosine": same, "stranger_cosine": strangers, "embedding_std": spread}

    def _judge(self, step: int, same: float) -> None:
        strangers = sum(one[0] for one in self._seen) / self.window
        spread, samples = max(one[1] for one in self._seen), sum(one[3] for one in self._seen)
        pooled, error = sum(one[2] * one[3] for one in self._seen) / samples, samples**-0.5
        collapsed = strangers >= max(self.alike, self._least + self.risen) or spread < self.shrunk * self._widest
        if collapsed and pooled + 2 * error < self.effect:
            raise MonitorStop(
                f"The embeddings have collapsed: views of different samples agree (cosine {strangers:.2f}, at first "
                f"{self._least:.2f}) as well as views of one ({same:.2f}), standard deviation {spread:.2g} (once "
                f"{self._widest:.2g}); effect size {pooled:.2f} +- {2 * error:.2f} (threshold {self.effect:g}), over "
                f"{self.window} checks.", where=f"step {step}", fix=_FIX)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {"least": self._least if math.isfinite(self._least) else None, "widest": self._widest,
                "seen": [list(one) for one in self._seen]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        self._least = math.inf if state["least"] is None else float(state["least"])
        self._widest, self._seen = float(state["widest"]), [list(map(float, one)) for one in state["seen"]]
