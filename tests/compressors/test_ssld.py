from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from osteon.compressors.ssld import SSLD, SoftLabels, cluster_classifier, divergence, linear_classifier, thinner
from osteon.core.errors import UsageError
from osteon.parts.compressor import Budget
from osteon.parts.types import Step
from tests.contracts.compressor_kit import SPEC, calibration, fit_on, network

A = torch.log(torch.tensor([[0.5, 0.5], [0.9, 0.1]]))
B = torch.log(torch.tensor([[0.5, 0.5], [0.1, 0.9]]))


def test_divergences_by_hand():
    jeffreys = 0.8 * math.log(9)  # both directions are 0.9 ln 9 - 0.1 ln 9
    assert torch.allclose(divergence(A, B, "jeffreys"), torch.tensor([0.0, jeffreys]), atol=1e-6)
    js = 0.9 * math.log(1.8) + 0.1 * math.log(0.2)
    assert torch.allclose(divergence(A, B, "js"), torch.tensor([0.0, js]), atol=1e-6)
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert torch.allclose(divergence(A, A, "ce"), torch.tensor([math.log(2), entropy]), atol=1e-6)


def test_temperature_softens_and_cross_entropy_is_scaled_with_its_square():
    hot = divergence(A, B, "ce", 2.0)
    assert torch.allclose(hot, 4 * divergence(A / 2, B / 2, "ce"))
    assert torch.allclose(divergence(A, B, "jeffreys", 2.0), divergence(A / 2, B / 2, "jeffreys"))


def test_js_is_symmetric_and_bounded_where_jeffreys_is_not():
    far = torch.tensor([[40.0, -40.0]])
    assert divergence(far, -far, "js") <= math.log(2) + 1e-6 and divergence(far, -far, "jeffreys") > 10
    x, y = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    for kind in ("js", "jeffreys"):
        assert torch.allclose(divergence(x, y, kind), divergence(y, x, kind), atol=1e-6)
        assert (divergence(x, y, kind) > 0).all()


def test_the_teacher_gets_no_gradient_and_labels_play_no_part():
    net, data = network(), calibration(labels=True)
    task = SoftLabels(thinner(net, 0.5, "auto"), net, nn.Linear(net.dim, 3), SPEC, SSLD(augment="none")).train()
    batch = data.stored(torch.arange(8).numpy())
    loss = task({**batch, "label": torch.arange(8)}, Step(0, 1)).total
    loss.backward()
    assert torch.equal(loss, task(batch, Step(0, 1)).total)
    assert all(p.grad is None and not p.requires_grad for c in task.companions() for p in c.parameters())
    assert not task.teacher.training and task.backbone.training
    assert all(p.grad is not None for p in task.student_head.parameters())


def test_a_student_is_thinner_by_the_rule_and_foreign_networks_need_a_name():
    assert thinner(network(), 0.5, "auto").dim == 16 and thinner(network(), 1.0, "auto").dim == 4
    assert thinner(network("maps"), 0.5, "auto").options["widths"] == [4, 8, 8]
    assert thinner(network(), 0.3, "resnet_tiny").name == "resnet_tiny"
    net = network()
    net.options = {}
    with pytest.raises(UsageError, match="no rule"):
        thinner(net, 0.5, "auto")


def test_classifiers_on_features():
    g = torch.Generator().manual_seed(0)
    centres = 5 * torch.randn(3, 6, generator=g)
    y = torch.arange(60) % 3
    x = centres[y] + 0.1 * torch.randn(60, 6, generator=g)
    assert (linear_classifier(x, y)(x).argmax(1) == y).all()
    clusters = cluster_classifier(x, 3, 0)
    guess = clusters(x).argmax(1)
    assert all(len(set(guess[y == c].tolist())) == 1 for c in range(3)) and len(set(guess.tolist())) == 3
    x = x + 2 * torch.randn(60, 6, generator=g)  # shares that are neither 0 nor 1
    clusters = cluster_classifier(x, 3, 0)
    guess = clusters(x).argmax(1)
    means = torch.stack([x[guess == c].mean(0) for c in range(3)])
    heat = sum(float((x[guess == c] - means[c]).square().sum()) for c in range(3)) / 60
    logits = -torch.cdist(x, means).square() / heat
    assert torch.allclose(clusters(x).softmax(1), logits.softmax(1), atol=1e-4)


def test_classes_come_from_the_head_else_labels_else_clusters():
    net = network()
    for labels, head, said in ((True, nn.Linear(32, 5), "own head"), (True, None, "calibration labels"),
                               (False, None, "clusters")):
        data = calibration(labels=labels)
        data.head = head
        method = SSLD(clusters=4, augment="none")
        found = method.classes(net, data, 0)
        assert said in method.notes[0] and found.out_features == (5 if head is not None else 3 if labels else 4)


def test_the_student_comes_to_agree_with_its_teacher():
    net, data = network(), calibration()
    method = SSLD(clusters=4, augment="none")
    seen: list[float] = []

    def fit(objective, recipe):
        batch = data.stored(torch.arange(24).numpy())
        seen.append(float(objective(batch, Step(0, 1)).total.detach()))
        fit_on(data, 60, 5e-3)(objective, recipe)
        seen.append(float(objective.eval()(batch, Step(0, 1)).total.detach()))

    small = method(net, Budget("params", 0.5), data, fit)
    assert seen[1] < 0.5 * seen[0] and small.dim < net.dim
