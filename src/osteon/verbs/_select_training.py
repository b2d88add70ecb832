"""Classifiers early in their training, for the selectors whose scores come from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from osteon.backbones import Backbone, build_backbone
from osteon.core import registry
from osteon.core.errors import UsageError
from osteon.data import Dataset, Loader
from osteon.modalities import find
from osteon.parts.selection import Learner
from osteon.parts.types import Step
from osteon.train.loop import Engine, make_fabric
from osteon.train.settings import resolve_settings
from osteon.verbs._model import fit_samples

#: the largest batch of the scoring trainings, as in the paper's code
BATCH = 128


class _Classifier(nn.Module):
    """Normalised samples -> logits."""

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *extent) -> (B, K)."""
        return self.head(self.backbone(x).pooled)


def make_learn(dataset: Dataset, backbone: str, say: Callable[[str], None]) -> Callable[[int, float], Learner]:
    """``(seed, epochs) -> Learner``: a classifier trained on the labels of a data set from random weights.

    Args:
        dataset: labelled samples, one label each.
        backbone: name of the network; ``auto``: a small ResNet by image size, a vit_mini for other samples.
        say: told what goes on.

    Raises:
        UsageError: no labels, several labels a sample, or a single class.
    """
    labels = dataset.labels
    if labels is None or labels.ndim != 1:
        raise UsageError("This selection needs one label a sample.", where=dataset.source,
                         fix="Give a labelled source, or the labels with --train.")
    if len(np.unique(labels)) < 2:
        raise UsageError("This selection needs at least two classes.", where=dataset.source)
    size, modality = dataset.spec.size, dataset.modality
    name = backbone
    if name == "auto":
        name = ("vit_mini" if modality != "image" else "resnet_tiny" if size <= 16 else
                "resnet_mini" if size <= 64 else "resnet18")
    spec = replace(dataset.spec, num_classes=len(dataset.class_names))

    def learn(seed: int, epochs: float) -> Learner:
        torch.manual_seed(20_000 + seed)
        network = build_backbone(name, channels=spec.channels, size=spec.extent,
                                 **find(modality).backbone_options(spec))
        method = registry.build("objective", "supervised", network, spec)
        batch = min(BATCH, len(dataset))
        steps = round(epochs * len(dataset) / batch)
        settings, _ = resolve_settings({"steps": max(1, steps), "batch_size": batch, "seed": seed, "precision": "32",
                                        "schedule": "constant"}, method.recipe, max(2, len(dataset)),
                                       kind=network.kind)
        engine = Engine(method.train(), settings, make_fabric("32"))
        if steps:
            for index, rows in enumerate(Loader(dataset, batch, seed).iterate(0, steps)):
                loss, _, _ = engine.run(rows, Step(index, steps, seed))
            say(f"scoring network {seed}: {steps} steps, loss {float(loss.total):.3g}")
        method.eval()
        module = _Classifier(method.backbone, method.head).eval()
        device = engine.fabric.device

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for start in range(0, len(dataset), 256):
                rows = np.arange(start, min(start + 256, len(dataset)))
                yield (fit_samples(dataset, spec, rows).to(device),
                       torch.from_numpy(np.asarray(labels)[rows]).to(device))

        return Learner(module, batches)

    return learn
