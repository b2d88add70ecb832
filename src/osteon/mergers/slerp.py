"""SLERP: go from one model to another along the sphere, tensor by tensor.

Shoemake 1985; for language models, and the check of the gain over both parents: Lu et al. 2024, "Fine-tuning large
language models for domain adaptation", arXiv:2409.03444, section on model merging.
"""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor

from osteon.core.card import Card
from osteon.parts.merging import Merger, Models, share
from osteon.parts.state_algebra import weighted

CARD = Card(kind="merger", name="slerp",
            papers=("Fine-tuning large language models for domain adaptation: Exploration of training strategies, "
                    "scaling, model merging and synergistic capabilities",), modalities=("any",),
            differs="one t for all tensors instead of a schedule over depth; coefficients act on the tensors as they "
                    "are, as in mergekit, so only tensors of equal length keep it; the share of tensors on the "
                    "spherical path is printed, since near-parallel ones are averaged; the gain over both parents is "
                    "printed with --val",
            rows=(425,), cost="two passes over the files")

#: cosine beyond which two tensors count as parallel
PARALLEL = 0.9995


def coefficients(a: Tensor, b: Tensor, t: float) -> tuple[float, float, bool]:
    """Weights of a and b at t, and whether the path is spherical: sin((1-t) angle) / sin(angle), sin(t angle) / ..."""
    x, y = a.double().reshape(-1), b.double().reshape(-1)
    length = float(x.norm() * y.norm())
    cosine = float(x @ y) / length if length > 1e-16 else 1.0
    if t in (0.0, 1.0) or abs(cosine) > PARALLEL:
        return 1 - t, t, False
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle), True


class Slerp(Merger):
    """Spherical interpolation of two models.

    Args:
        t: place between the first model (0) and the second (1).
    """

    exactly: ClassVar[int] = 2

    def __init__(self, *, t: float = 0.5) -> None:
        self.t = share(t, "t")

    def prepare(self, models: Models) -> list[str]:
        """Count the tensors on the spherical path."""
        a, b = models.members
        round_ = [coefficients(a[n], b[n], self.t)[2] for n in models.trained]
        note = f"slerp: {sum(round_)} of {len(round_)} tensors take the spherical path; the others are interpolated"
        return [note + (", so this is close to a weighted average" if sum(round_) < len(round_) / 2 else "")]

    def combine(self, name: str, models: Models) -> Tensor:
        """The tensor at t; the parents themselves at 0 and 1."""
        a, b = (m[name] for m in models.members)
        first, second, _ = coefficients(a, b, self.t)
        return weighted([(first, a), (second, b)])

    def statistic(self, name: str, models: Models) -> Tensor:
        """Straight interpolation: a variance has no direction."""
        a, b = (m[name] for m in models.members)
        return weighted([(1 - self.t, a), (self.t, b)])
