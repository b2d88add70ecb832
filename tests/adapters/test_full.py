from __future__ import annotations

import torch
from torch.nn import functional as F

from osteon.adapters.full import Full
from osteon.train.optim import make_optimizer
from tests.contracts.adapter_kit import TASK, images, network, train


def test_it_trains_what_pre_training_trains_and_statistics_move():
    base = network("resnet")
    adapter = Full(base, TASK)
    assert adapter.expected_trainable() == sum(p.numel() for p in base.parameters()) + 16 * 4 + 4
    mean = adapter.backbone.bn1.running_mean.clone()
    train(adapter, steps=2)
    assert not torch.equal(adapter.backbone.bn1.running_mean, mean)
    assert torch.equal(base.bn1.running_mean, mean)
    assert "backbone.bn1.running_mean" in adapter.delta()


def test_what_pre_training_froze_stays_frozen_but_a_wholly_frozen_network_trains():
    base = network("vit")
    base.norm.requires_grad_(False)
    adapter = Full(base, TASK)
    assert not adapter.backbone.norm.weight.requires_grad and adapter.backbone.blocks[0].attn.proj.weight.requires_grad
    assert all(p.requires_grad for p in Full(network("vit").requires_grad_(False), TASK).parameters())


def test_a_step_is_a_step_of_plain_fine_tuning():
    adapter = Full(network("vit"), TASK)
    plain = network("vit").train()
    head = torch.nn.Linear(32, 4)
    head.load_state_dict(adapter.head.state_dict())
    x, y = images(), torch.arange(8) % 4
    F.cross_entropy(adapter.train()(x), y).backward()
    F.cross_entropy(head(plain(x).pooled), y).backward()
    for (name, mine), (_, other) in zip(adapter.backbone.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-6, rtol=1e-4, msg=name)


def test_the_rate_falls_by_the_decay_from_block_to_block():
    adapter = Full(network("vit"), TASK)
    assert Full.recipe["layer_decay"] == 0.75
    optimizer = make_optimizer([(f"backbone.{n}", p) for n, p in adapter.named_parameters()], lr=1.0, layer_decay=0.75)
    rate = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    network_ = adapter.backbone
    got = [rate[id(p)] for p in (adapter.head.weight, network_.norm.weight, network_.blocks[2].mlp.fc1.weight,
                                 network_.blocks[1].mlp.fc1.weight, network_.blocks[0].mlp.fc1.weight,
                                 network_.patch_embed.proj.weight)]
    assert got == [1.0, 1.0, 0.75, 0.75**2, 0.75**3, 0.75**4]
