from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.mergers.tasks import PARTS, Passing, final, follow, samples, task
from torch.nn import functional as F

from osteon.core.errors import UsageError
from osteon.mergers.nmc import NMC
from osteon.parts.continual import TaskData


def test_means_of_unit_features_by_hand() -> None:
    x = torch.tensor([[3.0, 4, 0, 0, 0, 0, 0, 0], [0, 2, 0, 0, 0, 0, 0, 0], [0, 0, 5, 0, 0, 0, 0, 0]]).view(3, 1, 2, 4)
    rule = NMC()
    rule.begin(Passing(), [(7, 9)], 0)
    rule.learn(TaskData(lambda rows: x[rows], torch.tensor([7, 7, 9]), (7, 9)))
    assert torch.allclose(rule.means()[0, :3], torch.tensor([0.3, 0.9, 0.0]).double(), atol=1e-7)  # not rescaled
    assert rule.seen == [7, 9] and rule.counts == {7: 2, 9: 1}
    asked = torch.zeros(1, 1, 2, 4)
    asked[0, 0, 0, :3] = torch.tensor([0.0, 1, 1])
    unit = F.normalize(asked.flatten(1), dim=1).double()
    wanted = [-float((unit - m).norm()) for m in rule.means()]
    assert rule.logits(asked)[0].tolist() == pytest.approx(wanted)
    assert int(rule.predict(10 * asked)) == int(rule.predict(asked))


def test_streaming_equals_all_at_once_in_any_order_and_nothing_else_changes() -> None:
    together, apart, reverse = NMC(), NMC(), NMC()
    follow(together, [tuple(range(6))])
    follow(apart)
    follow(reverse, PARTS[::-1])
    for c in range(6):
        means = [r.means()[r.seen.index(c)] for r in (together, apart, reverse)]
        assert torch.allclose(means[0], means[1], atol=1e-12) and torch.allclose(means[0], means[2], atol=1e-12)
    assert torch.equal(apart.backbone.map.weight, torch.eye(8))
    assert final(together) == final(apart) == 1.0
    portions = NMC()
    portions.begin(Passing(), PARTS, 0)
    whole = task((4, 1))
    for rows in np.array_split(np.arange(len(whole)), 3):
        portions.learn(TaskData(lambda index, rows=rows: whole.images(rows[index]), whole.labels[rows], (4, 1)))
    assert torch.allclose(portions.means(), apart.means()[:2], atol=1e-12) and portions.seen == [4, 1]


def test_cosine_and_euclidean_rank_differently() -> None:
    scattered, tight = torch.zeros(2, 8), torch.zeros(2, 8)
    scattered[0, 0] = scattered[1, 1] = 1  # mean (0.5, 0.5), length 0.71: the smaller penalty
    tight[:, 2] = 1.0
    x = torch.cat([scattered, tight]).view(4, 1, 2, 4)
    asked = torch.zeros(1, 8)
    asked[0, :3] = torch.tensor([0.49, 0.49, 0.72])  # cosine 0.69 to the first, 0.72 to the second
    told = []
    for metric in ("euclidean", "cosine"):
        rule = NMC(metric=metric)
        rule.begin(Passing(), [(0, 1)], 0)
        rule.learn(TaskData(lambda rows: x[rows], torch.tensor([0, 0, 1, 1]), (0, 1)))
        told.append(int(rule.predict(asked.view(1, 1, 2, 4))))
    assert told == [0, 1]
    with pytest.raises(UsageError, match="no metric"):
        NMC(metric="l1")


def test_only_classes_seen_are_answered() -> None:
    rule = NMC()
    rule.begin(Passing(), PARTS, 0)
    rule.learn(task(PARTS[0]))
    assert set(rule.predict(samples(60, 1)[0]).tolist()) <= {4, 1}
