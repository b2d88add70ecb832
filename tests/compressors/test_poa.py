from __future__ import annotations

import copy
import math

import pytest
import torch

from osteon.backbones import build_backbone
from osteon.compressors.poa import (
    POA,
    Elastic,
    Projection,
    cross_entropy,
    elastic_vit,
    extract_size,
    kept_blocks,
    koleo,
    sizes,
    slice_forward,
)
from osteon.core.errors import UsageError
from osteon.parts.compressor import Budget, params_of
from osteon.parts.types import Draws, Step
from tests.contracts.compressor_kit import SPEC, VIT, calibration, fit_on, network


@pytest.mark.parametrize("options", [{}, {"pool": "cls", "registers": 2, "layer_scale": 0.5, "positions": "learned"},
                                     {"qkv_bias": False}])
def test_a_size_cut_out_computes_what_the_slice_does(options):
    torch.manual_seed(0)
    net = build_backbone("vit_tiny", channels=3, size=16, **VIT, **options).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    x = next(calibration().batches())
    for size in sizes(net):
        small = extract_size(net, size)
        with torch.no_grad():
            assert torch.allclose(small(x).pooled, slice_forward(net, x, size), atol=1e-5)
        assert small.dim == 8 * size[0] and len(small.blocks) == len(size[1])
    with torch.no_grad():
        assert torch.allclose(slice_forward(net, x, sizes(net)[-1]), net(x).pooled, atol=1e-5)


def test_blocks_and_sizes_are_the_papers():
    assert kept_blocks(24, 12) == tuple(math.floor(23 * i / 11) for i in range(12))
    assert kept_blocks(4, 2) == (0, 3) and kept_blocks(4, 4) == (0, 1, 2, 3) and kept_blocks(5, 1) == (0,)
    net = network()
    assert [(h, len(b)) for h, b in sizes(net)] == [(h, d) for d in (2, 3, 4) for h in (2, 3, 4)]


def test_gradient_of_the_slice_lands_only_in_the_sliced_weights():
    net = network()
    slice_forward(net, next(calibration().batches()), (2, (0, 3))).sum().backward()
    grad = net.blocks[0].attn.qkv.weight.grad
    assert grad[:16, :16].abs().sum() > 0 and grad[32:48, :16].abs().sum() > 0
    assert (grad[:, 16:] == 0).all() and (grad[16:32] == 0).all() and net.blocks[1].mlp.fc1.weight.grad is None


def task(**options):
    torch.manual_seed(1)
    return Elastic(network(), SPEC, POA(prototypes="6,10", **options))


def test_the_loss_is_the_sum_of_its_terms():
    made, batch = task(share=0.7, koleo=0.0), calibration().stored(torch.arange(8).numpy())
    encoded = made.encode(batch, Draws.of(batch, Step(0, 4)))
    loss = made.score(encoded, Step(0, 4))
    parts = loss.parts
    assert torch.allclose(loss.total, 0.7 * parts["student"] + 0.3 * (parts["elastic"] + parts["same_view"]))
    from osteon.parts.prototypes import sinkhorn

    whole, same = [], []
    for i in range(2):
        for v in (0, 1):
            target = sinkhorn(encoded[f"teacher{i}.{1 - v}"], eps=0.05)
            whole.append(-(target * (encoded[f"student{i}.{v}"] / 0.1).log_softmax(1)).sum(1).mean())
            own = (encoded[f"student{i}.{v}"] / 0.1).softmax(1)
            same.append(-(own * (encoded[f"elastic{i}.{v}"] / 0.1).log_softmax(1)).sum(1).mean())
    assert torch.allclose(parts["student"], torch.stack(whole).mean(), atol=1e-5)
    assert torch.allclose(parts["same_view"], torch.stack(same).mean(), atol=1e-5)


def test_the_student_gets_nothing_from_the_same_view_term_as_a_target():
    made, batch = task(share=0.0, koleo=0.0), calibration().stored(torch.arange(8).numpy())
    encoded = made.encode(batch, Draws.of(batch, Step(0, 4)))
    for v in (0, 1):
        for i in range(2):
            encoded[f"student{i}.{v}"].retain_grad()
    made.score(encoded, Step(0, 4)).total.backward()
    grads = [encoded[f"student{i}.{v}"].grad for i in range(2) for v in (0, 1)]
    assert all(g is None or (g == 0).all() for g in grads)
    assert all(p.grad is None for p in made.teacher.parameters())


def test_the_teacher_is_an_average_of_the_whole_student():
    made = task(momentum=0.9)
    before = copy.deepcopy(made.teacher["backbone"].norm.weight)
    with torch.no_grad():
        made.backbone.norm.weight.add_(1.0)
    made.after_step(Step(0, 100))
    assert torch.allclose(made.teacher["backbone"].norm.weight, before + 0.1, atol=1e-5)
    assert made.exported() is made.teacher["backbone"]


def test_small_sizes_are_drawn_more_often_and_by_the_step():
    made = task()
    drawn = []
    for i in range(300):
        draws = Draws(Step(i, 300), torch.arange(2), 2)
        drawn.append(made.draw(draws))
        assert made.draw(draws) == drawn[-1]
    counts = [sum(h == k for h, _ in drawn) for k in (2, 3, 4)]
    assert counts[0] > counts[1] > counts[2] > 20 and set(drawn) == set(made.sizes)


def test_parts_by_hand():
    assert torch.allclose(cross_entropy(torch.zeros(2, 4), torch.eye(4)[:2]), torch.tensor(math.log(4)))
    z = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    assert torch.allclose(koleo(z), torch.tensor(-math.log(math.sqrt(2))))
    head = Projection(8, 5)
    x = torch.randn(3, 4)
    assert torch.allclose(head(x), head(torch.cat([2 * x, torch.zeros(3, 4)], 1)), atol=1e-6)
    assert head(x).abs().max() <= 1 + 1e-6


def test_the_dearest_size_within_the_budget_is_cut_and_others_are_refused():
    net, data = network(), calibration()
    small = POA(prototypes="6")(net, Budget("params", 0.5), data, fit_on(data, 1))
    costs = sorted(params_of(extract_size(net, s)) for s in sizes(net))
    assert params_of(small) == max(c for c in costs if c <= 0.5 * costs[-1])
    with pytest.raises(UsageError, match="cannot be sliced"):
        POA()(network("maps"), Budget("params", 0.5), data, fit_on(data, 1))
    with pytest.raises(UsageError, match="prototypes"):
        POA(prototypes="6,x")


def text(count: int = 4) -> torch.Tensor:
    """Words with padding."""
    x = torch.randint(3, 9, (count, 1, 6), generator=torch.Generator().manual_seed(0)).float()
    x[1, 0, 2:], x[2, 0, 5:] = 0, 0
    return x


@pytest.mark.parametrize(("kind", "options"), [
    ("series", {"channels": 2, "size": (16,), "patch": 4}),
    ("clips", {"channels": 1, "size": (4, 8, 8), "stem": "tubes"}),
    ("columns", {"channels": 2, "size": (5,), "levels": (0, 3, 0, 2, 4)}),
    ("words", {"channels": 1, "size": (6,), "vocabulary": 9}),
    ("words", {"channels": 1, "size": (6,), "vocabulary": 9, "causal": True}),
    ("words", {"channels": 1, "size": (6,), "vocabulary": 9, "pool": "cls", "registers": 1})])
def test_sizes_of_other_networks_compute_what_the_slice_does_padding_or_not(kind, options):
    torch.manual_seed(0)
    net = build_backbone("vit_tiny", **VIT, **options).eval()
    x = text() if kind == "words" else net.example(4)
    with torch.no_grad():
        for size in sizes(net)[::3]:
            part = slice_forward(net, x, size)
            assert torch.allclose(extract_size(net, size)(x).pooled, part, atol=1e-5)
            assert torch.allclose(slice_forward(net, x[1:2, ..., :2] if kind == "words" else x[1:2], size), part[1:2],
                                  atol=1e-5)
        assert torch.allclose(slice_forward(net, x, sizes(net)[-1]), net(x).pooled, atol=1e-5)


@pytest.mark.parametrize("options", [
    {"channels": 9, "size": (7,), "stem": "nodes", "stem_options": {"features": 2}},
    {"channels": 3, "size": (64,), "stem": "points"}, {"channels": 3, "size": 16, "trunk": "mamba"},
    {"channels": 3, "size": 16, "gated": True}])
def test_what_has_no_slices_is_refused(options):
    with pytest.raises(UsageError, match="cannot be sliced"):
        elastic_vit(build_backbone("vit_tiny", **VIT, **options))
