from __future__ import annotations

import torch
from torch.nn import functional as F

from osteon.adapters.linear import Linear
from tests.contracts.adapter_kit import TASK, images, network


def test_the_logits_are_the_head_on_the_frozen_features_and_no_graph_enters_the_backbone():
    base = network("vit")
    probe = Linear(base, TASK)
    with torch.no_grad():
        want = base(images()).pooled @ probe.head.weight.T + probe.head.bias
    torch.testing.assert_close(probe(images()), want)
    assert not probe.encode(images().requires_grad_()).requires_grad
    assert probe.expected_trainable() == 32 * 4 + 4


def test_training_finds_the_head_that_separates_the_features():
    probe = Linear(network("vit"), TASK)
    x, y = images(), torch.arange(8) % 4
    features = probe.encode(x)
    optimizer = torch.optim.LBFGS(probe.head.parameters(), max_iter=200)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(probe.head(features), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert closure().item() < 0.05  # 8 points in 32 dimensions are separable


def test_merged_it_is_the_backbone_as_it_was():
    base = network("vit")
    merged = Linear(base, TASK).merge()
    assert list(merged.state_dict()) == list(base.state_dict())
    assert all(torch.equal(v, base.state_dict()[k]) for k, v in merged.state_dict().items())
