"""Controls of hidden tokens: they answer with what is seen, near, or like it, and never with what is asked for."""

from __future__ import annotations

import torch

from osteon.parts.judged import Judged, constant_answer, nearest_cloud, nearest_sample, nearest_token

WHERE = torch.arange(5.0)[:, None]


def judged(asked: list[int], *, causal: bool = False, samples: int = 1) -> Judged:
    truth = torch.arange(5.0).mul(10)[None, :, None].repeat(samples, 1, 2)
    mask = torch.zeros(samples, 5, dtype=torch.bool)
    mask[:, asked] = True
    return Judged(torch.zeros(samples, 5), mask, truth, "squared error", causal=causal)


def test_the_nearest_token_that_is_seen():
    assert nearest_token(judged([0, 1, 3]), WHERE)[0, :, 0].tolist() == [20, 20, 20, 20, 40]
    shifted = WHERE.clone()
    shifted[3] = 3.4
    assert nearest_token(judged([3]), shifted)[0, 3, 1] == 40
    every = torch.stack([WHERE, shifted])
    assert nearest_token(judged([3], samples=2), every)[:, 3, 0].tolist() == [20, 40]


def test_the_token_before_where_all_before_are_seen():
    assert nearest_token(judged([2, 3, 4], causal=True), WHERE)[0, :, 0].tolist() == [0, 0, 10, 20, 30]


def test_the_training_sample_that_agrees_where_it_is_seen():
    asked = judged([3, 4])
    right = asked.truth.clone()
    right[0, 3:] = -1e3  # far off where nothing is seen
    wrong = asked.truth + 1.0
    wrong[0, 3:] = asked.truth[0, 3:]
    known = torch.cat([wrong, torch.zeros_like(wrong), right])
    assert torch.equal(nearest_sample(asked, known), right)


def test_the_training_cloud_whose_points_lie_at_the_visible_ones():
    # Two groups of two points about (0, 0, 0) and (4, 0, 0); the second is hidden.
    centres = torch.tensor([[[0.0, 0, 0], [4, 0, 0]]])
    groups = torch.tensor([[[0.0, 0, 0, 1, 0, 0], [0.0, 0, 0, 0, 1, 0]]])
    asked = torch.tensor([[False, True]])
    near = torch.tensor([[0.1, 0, 0], [1, 0, 0], [4, 0, 3], [4, 0, 2]])
    far = torch.tensor([[2.0, 0, 0], [2, 0, 0], [4, 0, 0], [4, 1, 0]])
    answer = nearest_cloud(groups, asked, centres, torch.stack([far, near]))
    assert answer[0, 1].tolist() == [0, 0, 2, 0, 0, 3]
    assert torch.equal(nearest_cloud(groups, ~asked, centres, torch.stack([far, near]))[0, 0].view(2, 3)[:, 0],
                       torch.tensor([2.0, 2.0]))


def test_a_cloud_of_fewer_points_than_a_group_repeats_them():
    groups, centres = torch.zeros(1, 2, 9), torch.zeros(1, 2, 3)
    answer = nearest_cloud(groups, torch.tensor([[False, True]]), centres, torch.ones(1, 2, 3))
    assert torch.equal(answer, torch.ones(1, 2, 9))


def test_the_best_constant_is_the_mean_or_the_frequencies_of_what_is_asked_for():
    rng = torch.Generator().manual_seed(0)
    truth = torch.rand(40, 3, 2, generator=rng) + torch.tensor([0.0, 1, 2])[:, None]
    asked = torch.rand(40, 3, generator=rng) < 0.5
    asked[:, 2] = True

    def squared(guess, true):
        return (guess - true).square().mean(-1)

    parts = [Judged(torch.zeros(20, 3), asked[i:i + 20], truth[i:i + 20], "", squared) for i in (0, 20)]
    weight = asked[..., None].float()
    torch.testing.assert_close(constant_answer(parts, 3, 2)[0], (truth * weight).sum(0) / weight.sum(0), atol=0.01,
                               rtol=0)
    torch.testing.assert_close(constant_answer(parts, 1, 2)[0, 0], (truth * weight).sum((0, 1)) / weight.sum((0, 1)),
                               atol=0.01, rtol=0)
    words = torch.tensor([[0], [0], [0], [1]])

    def entropy(guess, true):
        return torch.nn.functional.cross_entropy(guess.transpose(1, 2), true, reduction="none")

    told = constant_answer([Judged(torch.zeros(4, 1), torch.ones(4, 1) > 0, words, "", entropy)], 1, 2)
    torch.testing.assert_close(told.softmax(-1)[0, 0], torch.tensor([0.75, 0.25]), atol=0.01, rtol=0)
