"""Codebooks: clusters found by hand, error that falls with every stage, and the same result every time."""

from __future__ import annotations

import pytest
import torch

from osteon.core.errors import UsageError
from osteon.parts.codebooks import Codebooks, kmeans, nearest_code


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_nearest_code_by_hand():
    centres = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    x = torch.tensor([[1.0, 1.0], [3.0, 1.0], [1.0, 3.0], [2.0, 0.0]])  # the last lies halfway: the first wins
    assert nearest_code(x, centres).tolist() == [0, 1, 2, 0]


def test_separate_groups_are_found_and_their_means_are_the_centres():
    middle = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    x = (middle[:, None] + torch.randn(3, 50, 2, generator=generator())).flatten(0, 1)
    for seed in range(3):
        found = kmeans(x, 3, generator(seed))
        order = nearest_code(middle, found)
        assert sorted(order.tolist()) == [0, 1, 2]
        torch.testing.assert_close(found[order], x.view(3, 50, 2).mean(1), rtol=1e-5, atol=1e-5)


def test_a_cluster_without_vectors_takes_the_farthest_and_too_few_vectors_are_refused():
    x = torch.tensor([[0.0], [0.0], [0.0], [1.0], [9.0]])
    assert sorted(kmeans(x, 3, generator()).flatten().tolist()) == [0.0, 1.0, 9.0]
    alike = kmeans(torch.ones(6, 2), 3, generator())
    assert torch.equal(alike, torch.ones(3, 2))
    with pytest.raises(UsageError, match="2 vectors do not form 3"):
        kmeans(torch.zeros(2, 1), 3, generator())


def test_stages_quantise_what_is_left_and_the_error_falls():
    x = torch.randn(400, 5, generator=generator(1))
    books = Codebooks(5, 8, 3)
    assert not bool(books.fitted)
    books.fit(x, 7)
    codes, rest, left = books(x.view(20, 20, 5)), x, []
    assert codes.shape == (20, 20, 3) and bool(books.fitted)
    for stage in range(3):
        code = torch.cdist(rest, books.centres[stage]).argmin(1)
        assert torch.equal(code, codes.view(400, 3)[:, stage])
        rest = rest - books.centres[stage][code]
        left.append(float(rest.square().sum() / (x - x.mean(0)).square().sum()))
    torch.testing.assert_close(books.unexplained, torch.tensor(left))
    assert 1 > left[0] > left[1] > left[2] > 0
    one = Codebooks(5, 8)
    one.fit(x, 7)
    assert torch.equal(one.centres[0], books.centres[0])  # the first stage is plain k-means


def test_the_same_seed_gives_the_same_codebooks_and_they_travel_in_the_state():
    x = torch.randn(200, 4, generator=generator(1))
    first, second, third = (Codebooks(4, 6, 2) for _ in range(3))
    first.fit(x, 3)
    second.fit(x, 3)
    assert torch.equal(first.centres, second.centres)
    third.load_state_dict(first.state_dict())
    assert bool(third.fitted) and torch.equal(third(x), first(x)) and not list(first.parameters())
