"""Causal language model: the loss by a loop that gives the network no later word; see test__words for the rest."""

from __future__ import annotations

import torch
from tests.objectives.texts import SPEC, STEP, draws_of, network, shaken, texts

from osteon.objectives.clm import CLM
from osteon.parts.types import Step


def make(**options) -> CLM:
    return shaken(CLM(network(), SPEC, **options))


def test_words_are_predicted_from_those_before_them_at_every_step():
    objective, batch = make(), texts(20, 5, 1, 0)
    assert all(objective.causal(Step(i, 10)) for i in range(10))
    tokens, errors = batch["text"][:, 0].long(), []
    net = objective.backbone
    for b, length in enumerate((20, 5, 1, 0)):
        for t in range(1, length):
            given = net.stem(tokens[b:b + 1, None, :t].float()) + net.positions((t,))
            out = net.trunk(given, attend=torch.ones(t, t, dtype=torch.bool).tril())
            errors.append(-objective.head(out)[0, -1].double().log_softmax(-1)[tokens[b, t]])
    assert len(errors) == 23
    torch.testing.assert_close(objective(batch, STEP).total, torch.stack(errors).mean().float(), rtol=1e-4, atol=1e-5)


def test_views_keep_what_was_asked_for():
    length = (make(crop_min=0.5).tokens(texts(*[20] * 300), draws_of(300)) != 0).sum(1)
    assert length.min() == 11 and length.max() == 20
