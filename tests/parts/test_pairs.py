from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from osteon.parts.pairs import pairs_of, symmetric_nce


def sphere(n=6, d=4, seed=0):
    return F.normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_pairs():
    assert pairs_of(2) == [(0, 1)] and pairs_of(3) == [(0, 1), (0, 2), (1, 2)]


def test_constant_vectors_cost_log_n_and_aligned_ones_nothing():
    one = F.normalize(torch.ones(7, 3), dim=-1)
    assert abs(float(symmetric_nce(one, one, 10.0)) - math.log(7)) < 1e-5
    assert float(symmetric_nce(torch.eye(7), torch.eye(7), 100.0)) < 1e-5


def test_by_a_loop_and_symmetric():
    a, b = sphere(), sphere(seed=1)
    total = 0.0
    for i in range(6):
        rows = [math.exp(5 * float(a[i] @ b[j])) for j in range(6)]
        columns = [math.exp(5 * float(a[j] @ b[i])) for j in range(6)]
        total += -math.log(rows[i] / sum(rows)) - math.log(columns[i] / sum(columns))
    assert abs(float(symmetric_nce(a, b, 5.0)) - total / 12) < 1e-5
    torch.testing.assert_close(symmetric_nce(a, b, 5.0), symmetric_nce(b, a, 5.0))


def test_smoothing_mixes_in_the_mean_over_the_batch():
    a, b = sphere(), sphere(seed=1)
    logits = 5 * a @ b.T
    every = -(logits.log_softmax(1).mean(1) + logits.T.log_softmax(1).mean(1)).mean() / 2
    torch.testing.assert_close(symmetric_nce(a, b, 5.0, smoothing=0.1), 0.9 * symmetric_nce(a, b, 5.0) + 0.1 * every)


def test_weights_choose_anchors_not_candidates():
    a, b = sphere(), sphere(seed=1)
    weight = torch.tensor([1.0, 0, 0, 0, 0, 0])
    logits = 5 * a @ b.T
    alone = -(logits.log_softmax(1)[0, 0] + logits.T.log_softmax(1)[0, 0]) / 2
    torch.testing.assert_close(symmetric_nce(a, b, 5.0, weight=weight), alone)
    torch.testing.assert_close(symmetric_nce(a, b, 5.0, weight=torch.ones(6)), symmetric_nce(a, b, 5.0))
