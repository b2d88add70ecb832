"""What the objective contracts share: every registered objective on a small backbone, on digits."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from osteon.backbones import Backbone, build_backbone
from osteon.core import registry
from osteon.core.card import Card
from osteon.data import Dataset, open_source
from osteon.parts.norm import BatchNorm
from osteon.parts.objective import Objective

#: options without which a digit is another sign, where the objective has them
QUIET = {"flip": False}


def objective_cards() -> list[Card]:
    """Every registered objective."""
    return registry.cards(kind="objective")


def pairs() -> list[tuple[str, str]]:
    """(objective, backbone) for every kind of backbone its card claims."""
    small = {"tokens": "vit_tiny", "maps": "resnet_tiny"}
    return [(card.name, small[kind]) for card in objective_cards() if registry.fits(card, "image")
            for kind in card.backbones if kind in small]


@functools.cache
def digits() -> Dataset:
    """1,000 digits with labels."""
    return open_source("digits:train", cache=False).subset(np.arange(1000))


def make(name: str, backbone: str, *, seed: int = 0, batchnorm: bool = True, dataset: Dataset | None = None,
         backbone_options: dict[str, Any] | None = None) -> Objective:
    """Build an objective with fresh weights; ``batchnorm=False`` takes every BatchNorm out."""
    dataset = dataset or digits()
    torch.manual_seed(seed)
    spec = dataset.spec
    options = dict(backbone_options or ({"stride": 2} if backbone == "resnet_tiny" and spec.size <= 8 else {}))
    network: Backbone = build_backbone(backbone, channels=spec.channels, size=spec.size, **options)
    card = registry.find("objective", name)
    known = {o.name for o in registry.options(card)}
    method: Objective = registry.build("objective", name, network, spec,
                                       **{k: v for k, v in QUIET.items() if k in known})
    if not batchnorm:
        remove_batchnorm(method)
    return method


class _Same(nn.Module):
    """Stands in for a BatchNorm: returns its input, zero where hidden."""

    def forward(self, x: Tensor, where: Tensor | None = None) -> Tensor:
        """The input itself."""
        if where is None:
            return x
        return x * (where[:, None] if x.dim() >= 4 else where[..., None])


def remove_batchnorm(module: nn.Module) -> None:
    """Replace every BatchNorm, so that samples meet in the score alone."""
    for name, child in module.named_children():
        if isinstance(child, BatchNorm | nn.modules.batchnorm._BatchNorm):
            setattr(module, name, _Same())
        else:
            remove_batchnorm(child)


def batch(size: int, start: int = 0, dataset: Dataset | None = None) -> dict[str, Tensor]:
    """Consecutive samples."""
    return (dataset or digits()).batch(np.arange(start, start + size))


def weights(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the state."""
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def assert_same_gradient(got: dict[str, Tensor], want: dict[str, Tensor], share: float = 5e-3) -> None:
    """Every gradient equals the wanted one up to rounding: in relative norm, tiny ones relative to the whole.

    Norms and not elements, since batch statistics in float32 amplify rounding at single elements; a gradient that is
    wrong by a factor, a view or a rank is off by a large share.
    """
    assert got.keys() >= want.keys()
    whole = torch.stack([g.norm() for g in want.values()]).norm()
    for key, g in want.items():
        error = float((got[key] - g).norm() / torch.maximum(g.norm(), 1e-2 * whole))
        assert error <= share, f"{key}: off by {error:.2g} of its norm"


def knn_accuracy(features: np.ndarray, labels: np.ndarray, train: int) -> float:
    """k-NN accuracy of the rows after the first ``train``, which are the store."""
    judge = registry.build("evaluator", "knn")
    classes = int(labels.max()) + 1
    scores = judge(features[:train], labels[:train], features[train:], classes=classes)
    return float((scores.argmax(1) == labels[train:]).mean())
