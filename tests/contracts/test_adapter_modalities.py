"""The family contract of adapters on every other modality their cards name, on that modality's generated source."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch

from osteon.backbones import Backbone, build_backbone
from osteon.core import registry
from osteon.data import Dataset, open_source
from osteon.data.codec import named_sources
from osteon.modalities import NAMES, find
from osteon.parts.adapter import Adapter
from osteon.parts.types import Step
from osteon.verbs._adapt_objective import AdaptObjective
from osteon.verbs._model import fit_samples
from tests.contracts.adapter_kit import OPTIONS

PAIRS = [(card.name, modality) for card in registry.cards(kind="adapter") for modality in NAMES[1:]
         if registry.fits(card, modality) and "tokens" in card.backbones]
EVERY = pytest.mark.parametrize(("name", "modality"), PAIRS)


@functools.cache
def data(modality: str) -> Dataset:
    """48 labelled samples."""
    whole = open_source(f"{next(iter(named_sources(modality)))}:train", cache=False, limit=48)
    return whole


def network(modality: str) -> Backbone:
    spec = data(modality).spec
    torch.manual_seed(0)
    return build_backbone("vit_tiny", channels=spec.channels, size=spec.extent, dim=32, depth=2, heads=2,
                          **find(modality).backbone_options(spec)).eval()


@functools.cache
def trained(name: str, modality: str) -> tuple[Adapter, Backbone, list[float]]:
    """An adapter after a few steps on one batch, its base, and the losses."""
    base = network(modality)
    torch.manual_seed(1)
    adapter: Adapter = registry.build("adapter", name, copy.deepcopy(base), data(modality).spec,
                                      **OPTIONS.get(name, {}))
    objective = AdaptObjective(adapter, data(modality).spec, augment="none").train()
    optimizer = torch.optim.Adam(list(adapter.trainable().values()), lr=1e-2)
    batch, losses = data(modality).batch(np.arange(48)), []
    for index in range(8):
        loss = objective(batch, Step(index, 8, 3)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.after_step(Step(index, 8, 3))
        losses.append(float(loss.detach()))
    return adapter.eval(), base, losses


@EVERY
def test_it_trains_what_it_declares_and_the_loss_falls(name, modality):
    adapter, _, losses = trained(name, modality)
    assert sum(p.numel() for p in adapter.trainable().values()) == adapter.expected_trainable()
    assert np.isfinite(losses).all() and min(losses[-2:]) < losses[0]


@EVERY
def test_merged_it_computes_the_same_and_the_delta_brings_it_back(name, modality):
    adapter, base, _ = trained(name, modality)
    x = fit_samples(data(modality), data(modality).spec, np.arange(8))
    torch.manual_seed(5)
    again: Adapter = registry.build("adapter", name, base, data(modality).spec, **OPTIONS.get(name, {}))
    again.load_delta(adapter.delta())
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(x), adapter(x), atol=1e-4, rtol=1e-3)
        if adapter.mergeable:
            torch.testing.assert_close(adapter.merge().eval()(x).pooled, adapter.encode(x), atol=1e-4, rtol=1e-3)


@EVERY
def test_training_views_are_of_the_modality(name, modality):
    if name != "linear":
        return
    adapter, _, _ = trained(name, modality)
    objective = AdaptObjective(adapter, data(modality).spec)
    batch = data(modality).batch(np.arange(8))
    assert objective.train()(batch, Step(0, 8, 3)).total.isfinite()
