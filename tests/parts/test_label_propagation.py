"""Label propagation: neighbours by hand, the radius, the memory, and a pattern that moves."""

from __future__ import annotations

import math

import pytest
import torch
from tests.objectives.pairs import normal

from osteon.core.errors import UsageError
from osteon.parts.label_propagation import propagate, region_similarity, within_radius


def test_places_within_a_radius_by_hand():
    # 2 x 3 places: from the first one, the right and the lower neighbour are 1 away, the diagonal sqrt 2.
    assert within_radius(2, 3, 1.0)[0].tolist() == [True, True, False, True, False, False]
    assert within_radius(2, 3, 1.5)[0].tolist() == [True, True, False, True, True, False]
    assert within_radius(2, 3, 0.0).equal(torch.eye(6, dtype=torch.bool))


def test_two_neighbours_by_hand():
    # Frame 0: features (1, 0) and (0, 1) with labels 1 and 0; a place of frame 1 has (1, 0): cosines 1 and 0.
    features = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]], [[[3.0, 3.0]], [[0.0, 0.0]]]])
    first = torch.tensor([[[1.0, 0.0]]])
    got = propagate(features, first, topk=2, temperature=0.5, radius=5)
    weight = math.exp(1 / 0.5) / (math.exp(1 / 0.5) + 1)
    assert got[1].flatten().tolist() == pytest.approx([weight, weight], rel=1e-5)
    assert torch.equal(got[0], first)
    assert propagate(features, first, topk=1, radius=5)[1].flatten().tolist() == [1, 1]
    # Only itself is within a radius of 0: the second place keeps its label.
    assert propagate(features, first, topk=2, radius=0)[1].flatten().tolist() == pytest.approx([1, 0])


def test_the_first_frame_is_always_looked_at_and_memory_frames_before():
    # Features of two places: told apart in frames 0 and 2, alike (the second's) in frame 1.
    apart, alike = torch.eye(2)[:, None], torch.tensor([[[0.0, 0.0]], [[1.0, 1.0]]])
    labels = torch.tensor([[[1.0, 0.0]]])
    got = propagate(torch.stack([apart, alike, apart]), labels, memory=1, topk=1, radius=5)
    assert got[:, 0, 0].tolist() == [[1, 0], [0, 0], [1, 0]]  # lost in frame 1, found again by frame 0
    # The first place turns to 35 and 60 degrees, the second stays at 90: frame 2 is nearer to its place in frame 1
    # than to the second place, but in frame 0 the second place is the nearer.
    features = torch.tensor([[0.0, 1.0]]).expand(3, 2)[:, :, None, None].repeat(1, 1, 1, 2)
    near = torch.tensor([0.0, 35.0, 60.0]).deg2rad()
    features[:, 0, 0, 0], features[:, 1, 0, 0] = near.cos(), near.sin()
    assert propagate(features, labels, memory=1, topk=1, radius=5)[2, 0, 0].tolist() == [1, 0]  # by frame 1: 25 degrees
    assert propagate(features, labels, memory=0, topk=1, radius=5)[2, 0, 0].tolist() == [0, 0]  # 60 against 30


def test_a_moving_pattern_keeps_its_label_with_good_features():
    # One-hot features that move a cell a frame: every place finds itself exactly.
    ids = torch.stack([torch.arange(36).view(6, 6).roll(t, 1) for t in range(6)])
    features = torch.nn.functional.one_hot(ids, 36).permute(0, 3, 1, 2).float()
    true = ((ids == 7) | (ids == 8)).long()
    got = propagate(features, true[:1].float(), topk=1, radius=6)[:, 0].round().long()
    assert torch.equal(got, true) and region_similarity(got, true, 1) == 1.0
    near = propagate(features, true[:1].float(), topk=1, radius=1, memory=1)[:, 0].round().long()
    assert region_similarity(near[:4], true[:4], 1) == 1.0  # until it wraps around, a step is one cell


def test_region_similarity_by_hand():
    true = torch.tensor([[[1, 1, 0, 0]], [[1, 1, 0, 0]], [[0, 0, 0, 0]]])
    guess = torch.tensor([[[0, 0, 0, 0]], [[0, 1, 1, 0]], [[0, 0, 0, 0]]])
    assert region_similarity(guess, true, 1) == pytest.approx((1 / 3 + 1) / 2)  # the first frame does not count


def test_labels_of_all_kinds_sum_to_one():
    first = torch.rand(3, 4, 4).softmax(0)
    got = propagate(normal(4, 8, 4, 4), first)
    torch.testing.assert_close(got.sum(1), torch.ones(4, 4, 4))


def test_labels_that_do_not_lie_on_the_map_are_refused():
    with pytest.raises(UsageError, match="do not lie on maps"):
        propagate(normal(4, 8, 4, 4), torch.ones(1, 3, 4))
    with pytest.raises(UsageError, match="out of range"):
        propagate(normal(4, 8, 4, 4), torch.ones(1, 4, 4), topk=0)
