"""Held-out loss: over all words at once, whatever the batches, and without a trace in the objective."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from osteon.backbones import build_backbone
from osteon.data import open_source
from osteon.objectives.biphasic import Biphasic
from osteon.objectives.mae import MAE
from osteon.parts.types import Step
from osteon.train.held_out import held_out_loss


@pytest.fixture(scope="module")
def data():
    return open_source("sentences:test", cache=False).subset(np.arange(50))


def make(data) -> Biphasic:
    torch.manual_seed(0)
    network = build_backbone("vit_tiny", channels=1, size=data.spec.extent, dim=16, depth=1, heads=2, drop_path=0.5,
                             vocabulary=data.spec.traits["vocabulary"])
    return Biphasic(network, data.spec, share=0.5)


def test_it_is_the_loss_of_one_large_batch_whatever_the_batches(data):
    objective = make(data).train()
    step = Step(9, 10, 3)
    values = [held_out_loss(objective, data, step, batch_size=size) for size in (50, 7, 1)]
    assert objective.training and all(p.grad is None for p in objective.parameters())
    objective.eval()
    batch = data.batch(np.arange(50))
    whole = objective(batch, step).total.item()
    assert all(v["loss"] == pytest.approx(whole, rel=1e-5) for v in values)
    assert values[0]["perplexity"] == pytest.approx(math.exp(values[0]["cross_entropy"]))
    assert values[0]["causal"] == 0.0 and held_out_loss(objective, data, Step(0, 10, 3))["causal"] == 1.0


def test_a_model_that_knows_nothing_has_the_vocabulary_for_perplexity(data):
    objective = make(data)
    with torch.no_grad():
        objective.head.weight.zero_()
        objective.head.bias.zero_()
    assert held_out_loss(objective, data)["perplexity"] == pytest.approx(data.spec.traits["vocabulary"], rel=1e-4)


def test_objectives_without_words_have_no_perplexity(data):
    network = build_backbone("vit_tiny", channels=1, size=8, dim=16, depth=1, heads=2)
    images = open_source("digits:test", cache=False).subset(np.arange(10))
    spec = replace(images.spec)
    values = held_out_loss(MAE(network, spec), images)
    assert "perplexity" not in values and math.isfinite(values["loss"])
