"""Networks filled from weights that lie on disk: scored, differentiated, their batch-norm statistics measured anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from osteon.backbones import Backbone, build_backbone
from osteon.core import registry
from osteon.core.errors import DataError, UsageError
from osteon.data import Dataset
from osteon.data.targets import why_unlabelled
from osteon.parts.adapter import Adapter
from osteon.parts.members import spec_from
from osteon.parts.norm import BatchNorm
from osteon.parts.state_algebra import StateFile, Weights, is_statistic
from osteon.parts.subsets import holdout
from osteon.verbs._adapt_store import reopen
from osteon.verbs._arms import quality
from osteon.verbs._model import extract, fit_samples

#: samples a forward pass
BATCH = 256
#: sharpness of the softmax over cosines to class means
TEMPERATURE = 0.1
#: reads backbones that have no classifier of their own
READER = "knn"


class Host:
    """One network that can be filled with any weights fitting a model.

    Args:
        like: a model; its description says how to build the network.
        data: samples on which batch-norm statistics are measured anew after every filling, or None.
    """

    def __init__(self, like: StateFile, data: Dataset | None = None) -> None:
        self.spec, self.data = spec_from(like.meta["data"]), data
        self.module: Any  # a backbone, or an adapter with its classifier
        if like.meta.get("adapter"):
            made = like.meta["adapter"]
            self.module = registry.build("adapter", made["name"], reopen(like.meta["base"]).backbone, self.spec,
                                         **made["options"])
            self.slots: dict[str, Tensor] = dict(self.module.learned())
        else:
            made = like.meta["backbone"]
            self.module = build_backbone(made["name"], channels=made["channels"], size=made["size"], **made["options"])
            self.slots = dict(self.module.state_dict(keep_vars=True))
        self.module.eval()

    @property
    def backbone(self) -> Backbone:
        """The network that makes the features."""
        return self.module.backbone if isinstance(self.module, Adapter) else self.module

    @torch.no_grad()
    def fill(self, weights: Weights, *, measure: bool = True) -> None:
        """Copy weights in, one tensor at a time, then measure the statistics if there are data for it."""
        for name, slot in self.slots.items():
            slot.copy_(weights(name))
        if self.data is not None and measure:
            measure_statistics(self.backbone, self.data, self.spec)

    def statistics(self) -> dict[str, Tensor]:
        """Batch-norm statistics by the names of the models' tensors, copied."""
        return {name: slot.detach().clone() for name, slot in self.slots.items() if is_statistic(name)}


@torch.no_grad()
def measure_statistics(backbone: Backbone, data: Dataset, spec: Any, batches: int = 50) -> None:
    """Set every batch norm's running statistics to the mean over batches of the data, not augmented."""
    norms = [m for m in backbone.modules() if isinstance(m, BatchNorm | nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    before = [m.momentum for m in norms]
    backbone.train()
    order = np.random.default_rng(0).permutation(len(data))[:batches * BATCH]
    for i, rows in enumerate(np.array_split(order, max(1, len(order) // BATCH))):
        for norm in norms:
            norm.momentum = 1 / (i + 1)  # a plain mean of the batches, the first of which replaces what was there
        backbone(fit_samples(data, spec, np.sort(rows)))
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    backbone.eval()


class HeldOut:
    """Scores weights on ``--val``: a classifier's own answers, or a k-NN's that reads the backbone.

    The k-NN's neighbours are one half of the samples and its questions the other.

    Args:
        host: network.
        val: labelled samples.
        classes: names of the classifier's classes; empty for backbones.
    """

    def __init__(self, host: Host, val: Dataset, classes: list[str]) -> None:
        if val.labels is None:
            raise UsageError(f"Scores need labels; {why_unlabelled(val)}.", where=f"--val {val.source}")
        self.host, self.own = host, isinstance(host.module, Adapter)
        self.val = val.with_classes(classes) if self.own and classes else val
        assert self.val.labels is not None
        self.labels = np.asarray(self.val.labels)
        if self.own:
            self.shown, self.asked = np.empty(0, np.int64), np.arange(len(val))
        else:
            self.shown, self.asked = holdout(self.labels, 0.5, 0)
            if not len(self.asked):
                raise DataError("Every class of --val has a single sample: none is left to ask.", where=val.source)

    def quality(self, weights: Weights, *, merged: bool = True) -> np.ndarray:
        """Right or wrong (several labels: average precision) of every sample asked, (M,).

        Weights that are not ``merged`` keep the batch-norm statistics they have.
        """
        self.host.fill(weights, measure=merged)
        return quality(self._scores(), self.labels[self.asked])

    def _scores(self) -> np.ndarray:
        if self.own:
            parts = []
            with torch.inference_mode():
                for start in range(0, len(self.val), BATCH):
                    rows = np.arange(start, min(start + BATCH, len(self.val)))
                    parts.append(self.host.module(fit_samples(self.val, self.host.spec, rows)).float().numpy())
            return np.concatenate(parts)
        x = extract(self.host.backbone, self.val, self.host.spec)
        count = self.labels.shape[1] if self.labels.ndim == 2 else max(2, len(self.val.class_names))
        return registry.build("evaluator", READER)(x[self.shown], self.labels[self.shown], x[self.asked], classes=count)


class FewShots:
    """Differentiates cross-entropy on ``--train``, through a fixed classifier.

    Classifiers keep their own, averaged over the members. A backbone is read by the class means of the base's features,
    unit length, cosine over a temperature of 0.1.

    Args:
        host: network.
        train: labelled samples, one label each.
        base: weights the class means are taken at.
        classes: names of the classifier's classes; empty for backbones.
    """

    def __init__(self, host: Host, train: Dataset, base: Weights, classes: list[str]) -> None:
        if train.labels is None or train.labels.ndim != 1:
            raise UsageError("Learning coefficients needs one label a sample.", where=f"--train {train.source}")
        self.host = host
        self.train = train.with_classes(classes) if isinstance(host.module, Adapter) and classes else train
        self.count = len(train)
        self.labels = torch.from_numpy(np.asarray(self.train.labels))
        self.means: Tensor | None = None
        if not isinstance(host.module, Adapter):
            host.fill(base)
            features = F.normalize(torch.from_numpy(extract(host.backbone, self.train, host.spec)), dim=1)
            present = self.labels.unique()
            self.means = F.normalize(torch.stack([features[self.labels == c].mean(0) for c in present]), dim=1)
            self.labels = torch.searchsorted(present, self.labels)

    def slopes(self, weights: Weights, rows: np.ndarray) -> tuple[float, Mapping[str, Tensor]]:
        """Loss of some samples and its gradient by name."""
        self.host.fill(weights)
        module = self.host.module.eval().requires_grad_(True)
        module.zero_grad(set_to_none=True)
        x = fit_samples(self.train, self.host.spec, rows)
        if self.means is None:
            logits = module(x)
        else:
            logits = F.normalize(self.host.backbone(x).pooled, dim=1) @ self.means.T / TEMPERATURE
        loss = F.cross_entropy(logits.float(), self.labels[torch.from_numpy(np.asarray(rows))])
        loss.backward()
        return float(loss.detach()), {name: slot.grad for name, slot in self.host.slots.items()
                                      if isinstance(slot, nn.Parameter) and slot.grad is not None}
