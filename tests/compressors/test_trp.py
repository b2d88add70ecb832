from __future__ import annotations

import copy

import pytest
import torch

from osteon.compressors.trp import TRP, LowRankTraining, cut, rank_for, truncate
from osteon.parts.compact import fat_weight, thin_matrix
from osteon.parts.types import Step
from tests.contracts.compressor_kit import calibration, network


def test_fewest_singular_values_that_reach_the_energy():
    values = torch.tensor([3.0, 2.0, 1.0, 1.0]).double()  # squares 9 4 1 1 of 15
    assert [rank_for(values, e) for e in (0.0, 0.6, 0.61, 13 / 15, 0.9, 1.0)] == [1, 1, 2, 2, 3, 4]


def test_the_direction_is_the_gradient_of_the_nuclear_norm():
    w = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, direction = truncate(w, 4)
    for place in ((0, 0), (2, 5)):
        change = torch.zeros_like(w)
        change[place] = 1e-6
        slope = (torch.linalg.svdvals(w + change).sum() - torch.linalg.svdvals(w - change).sum()) / 2e-6
        assert torch.isclose(direction[place], slope, atol=1e-6)


@pytest.mark.parametrize("form", ["channel", "spatial"])
@pytest.mark.parametrize("kind", ["tokens", "maps"])
def test_the_cut_straight_after_a_projection_changes_nothing(kind, form):
    net, data = network(kind), calibration()
    method = TRP(form=form, augment="none")
    names = ["blocks.0.mlp.fc1", "blocks.1.attn.qkv"] if kind == "tokens" else ["layer2.0.conv1", "layer3.1.conv2"]
    task = LowRankTraining(copy.deepcopy(net), net, data, method, dict.fromkeys(names, 3))
    task.project()
    x = next(data.batches())
    with torch.no_grad():
        assert not torch.allclose(task.backbone(x).pooled, net(x).pooled, atol=1e-3)
        assert torch.allclose(cut(task.backbone, task.ranks, form)(x).pooled, task.backbone(x).pooled, atol=1e-4)
    for name in names:
        assert torch.linalg.matrix_rank(thin_matrix(task.weight_of(name), form), rtol=1e-4) == 3


def test_projections_come_every_m_steps():
    net = network()
    task = LowRankTraining(copy.deepcopy(net), net, calibration(), TRP(every=3, energy=0.0, augment="none"),
                           {"blocks.0.mlp.fc1": 2})
    weight, ranks = task.weight_of("blocks.0.mlp.fc1"), []
    for i in range(6):
        with torch.no_grad():
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(i)))
        task.after_step(Step(i, 6))
        ranks.append(int(torch.linalg.matrix_rank(weight, rtol=1e-4)))
    assert ranks == [32, 32, 2, 32, 32, 2]


def test_ranks_drift_by_energy_and_then_settle_on_the_budget():
    net = network()
    task = LowRankTraining(copy.deepcopy(net), net, calibration(), TRP(every=1, energy=0.9, settle=0.5, augment="none"),
                           {"blocks.0.mlp.fc1": 2})
    weight, ranks = task.weight_of("blocks.0.mlp.fc1"), []
    with torch.no_grad():  # singular values 5, 4, 2, 1, 0...: the first two hold 41 of 46 (0.891), three 45
        u, _ = torch.linalg.qr(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
        v, _ = torch.linalg.qr(torch.randn(u.shape[1], u.shape[1], generator=torch.Generator().manual_seed(1)))
        start = u @ torch.diag(torch.tensor([5.0, 4.0, 2.0, 1.0] + [0.0] * (u.shape[1] - 4))) @ v.T
    for i in range(4):
        with torch.no_grad():
            weight.copy_(start)
        task.after_step(Step(i, 4))
        ranks.append(int(torch.linalg.matrix_rank(weight, rtol=1e-4)))
    assert ranks == [3, 2, 2, 2]  # after a quarter of training by energy, from the middle on by the budget


def test_the_nuclear_term_pulls_along_u_v():
    net = network()
    task = LowRankTraining(copy.deepcopy(net), net, calibration(), TRP(nuclear_weight=0.5, energy=0.0, augment="none"),
                           {"blocks.0.mlp.fc1": 2})
    weight = task.weight_of("blocks.0.mlp.fc1")
    grad = torch.autograd.grad(task.extras(Step(0, 1))["nuclear"], weight)[0]
    u, _, vh = torch.linalg.svd(weight.detach(), full_matrices=False)
    assert torch.allclose(grad, 0.5 * u[:, :2] @ vh[:2], atol=1e-4)


def test_reshaping_kernels_is_undone():
    kernel = torch.randn(5, 3, 2, 4)
    assert thin_matrix(kernel, "spatial").shape == (6, 20) and thin_matrix(kernel).shape == (5, 24)
    for form in ("spatial", "channel"):
        assert torch.equal(fat_weight(thin_matrix(kernel, form), kernel.shape, form), kernel)
