from __future__ import annotations

import copy

import pytest
import torch
from tests.mergers.tasks import PARTS, Passing, final, follow, samples, task
from torch.nn import functional as F

from osteon.core.errors import UsageError
from osteon.mergers._controls import Joint, Sequential
from osteon.mergers.seq import CosineHead, Seq

FAST = {"lr_classifier": 0.02, "lr_encoder": 0.01, "epochs": 6, "warmup_epochs": 2}


def test_cosine_head_by_hand() -> None:
    head = CosineHead(2, 2, 5.0)
    head.weight.data = torch.tensor([[2.0, 0], [3, 4]])
    assert torch.allclose(head(torch.tensor([[0.0, 7]])), torch.tensor([[0.0, 4.0]]))
    assert float(head(torch.randn(50, 2)).detach().abs().max()) <= 5 + 1e-5


@pytest.mark.parametrize("head", ["cosine", "linear"])
@pytest.mark.parametrize("preallocate", [False, True])
def test_backbone_and_old_heads_stay_bit_for_bit(head: str, preallocate: bool) -> None:
    rule = Seq(head=head, preallocate=preallocate, **FAST)
    rule.begin(Passing(), PARTS, 0)
    rule.learn(task(PARTS[0]))
    backbone, first = copy.deepcopy(rule.backbone.state_dict()), copy.deepcopy(rule.heads[0].state_dict())
    assert not torch.equal(backbone["map.weight"], torch.eye(8))  # the warm-up trained it
    assert len(rule.heads) == (3 if preallocate else 1)
    assert not any(p.requires_grad for part in (rule.backbone, rule.heads[0]) for p in part.parameters())
    rule.learn(task(PARTS[1]))
    rule.learn(task(PARTS[2]))
    assert all(torch.equal(backbone[k], v) for k, v in rule.backbone.state_dict().items())
    assert all(torch.equal(first[k], v) for k, v in rule.heads[0].state_dict().items())
    assert rule.seen == [4, 1, 0, 5, 2, 3] and [len(list(h.parameters())[0]) for h in rule.heads] == [2, 2, 2]


def test_later_classifiers_train_only_where_allocated() -> None:
    rule = Seq(preallocate=True, **FAST)
    rule.begin(Passing(), PARTS, 0)
    before = copy.deepcopy(rule.heads[2].weight.data)
    rule.learn(task(PARTS[0]))
    assert not torch.equal(before, rule.heads[2].weight)  # its wrong answers cost something already
    assert rule.logits(samples(4, 0)[0]).shape == (4, 2)  # and it does not answer yet
    plain = Seq(warmup_epochs=0, **{k: v for k, v in FAST.items() if k != "warmup_epochs"})
    follow(plain)
    assert torch.equal(plain.backbone.map.weight, torch.eye(8))


def test_it_forgets_less_than_fine_tuning_and_joint_knows_all() -> None:
    seq, plain, joint = Seq(**FAST), Sequential(epochs=6, lr=0.02), Joint(epochs=6, lr=0.02)
    kept, lost = follow(seq), follow(plain)
    follow(joint, [tuple(range(6))])
    assert kept[0] == lost[0] == 1.0
    assert kept[-1] > 0.9 and lost[-1] < 0.4
    assert final(joint) > 0.95 and final(seq) > 0.9 > 0.6 > final(plain)


def test_head_only_leaves_the_backbone_alone() -> None:
    rule = Sequential(epochs=1, head_only=True)
    follow(rule)
    assert torch.equal(rule.backbone.map.weight, torch.eye(8))
    assert not torch.equal(follow_weight(Sequential(epochs=1)), torch.eye(8))


def follow_weight(rule: Sequential) -> torch.Tensor:
    follow(rule)
    return rule.backbone.map.weight


def test_the_loss_is_over_the_classes_of_all_tasks_so_far() -> None:
    """One step by hand: the second task's classifier, the first one frozen but answering."""
    rule = Seq(warmup_epochs=0, epochs=1, batch_size=1000, lr_classifier=0.1, scale=2.0)
    rule.begin(Passing(), PARTS[:2], 0)
    rule.learn(task(PARTS[0]))
    twin = copy.deepcopy(rule)
    torch.manual_seed(0 + 1)
    twin._add(PARTS[1])
    data = task(PARTS[1])
    x = torch.cat([a for a, _ in data.in_order()])
    place = {4: 0, 1: 1, 0: 2, 5: 3}
    logits = torch.cat([2 * F.normalize(x.flatten(1), dim=1) @ F.normalize(h.weight, dim=1).T for h in twin.heads], 1)
    loss = F.cross_entropy(logits, torch.tensor([place[int(c)] for c in data.labels]))
    weight = twin.heads[1].weight
    grad = torch.autograd.grad(loss, weight)[0]
    step = grad / (grad.abs() + 1e-8)  # the first step of Adam
    rule.learn(data)
    assert torch.allclose(rule.heads[1].weight, weight * (1 - 0.1 * 5e-4) - 0.1 * step, atol=1e-4)


@pytest.mark.parametrize("bad", [{"head": "mlp"}, {"epochs": 0}, {"warmup_epochs": 11}, {"batch_size": 1},
                                 {"scale": 0.0}, {"lr_classifier": 0.0}])
def test_wrong_options(bad: dict) -> None:
    with pytest.raises(UsageError):
        Seq(**bad)
