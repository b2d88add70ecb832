from __future__ import annotations

import pytest
import torch

from osteon.core.errors import UsageError
from osteon.parts.queue import Queue


def numbers(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None]


def held(queue: Queue) -> list[float]:
    return sorted(queue.read()[:, 0].tolist())


def test_the_oldest_make_room():
    queue = Queue(5, (1,))
    assert len(queue) == 0 and not queue.full and queue.read().shape == (0, 1)
    queue.push(numbers(1, 2, 3))
    assert held(queue) == [1, 2, 3] and not queue.full
    queue.push(numbers(4, 5, 6))
    assert held(queue) == [2, 3, 4, 5, 6] and queue.full
    queue.push(numbers(7))
    queue.push(numbers(8))
    assert held(queue) == [4, 5, 6, 7, 8]


def test_more_than_fit_leaves_the_last():
    queue = Queue(3, (1,))
    queue.push(numbers(0))
    queue.push(numbers(1, 2, 3, 4, 5))
    assert held(queue) == [3, 4, 5]
    queue.push(numbers(6))
    assert held(queue) == [4, 5, 6]


def test_any_sequence_of_pushes_keeps_the_last_ones():
    generator = torch.Generator().manual_seed(0)
    queue, seen = Queue(7, (1,)), []
    for _ in range(40):
        count = int(torch.randint(0, 12, (1,), generator=generator))
        fresh = list(range(len(seen), len(seen) + count))
        seen += fresh
        queue.push(torch.tensor(fresh, dtype=torch.float32)[:, None])
        assert held(queue) == [float(v) for v in seen[-7:]]


def test_entries_keep_shape_type_and_no_gradient():
    queue = Queue(4, (2, 3))
    entry = torch.randn(2, 2, 3, requires_grad=True)
    queue.push(entry)
    assert torch.equal(queue.read(), entry) and not queue.read().requires_grad
    labels = Queue(4, (), dtype=torch.long)
    labels.push(torch.tensor([3, 1]))
    assert labels.read().tolist() == [3, 1] and labels.read().dtype == torch.long


def test_checkpoints_carry_the_queue():
    one, two = Queue(4, (1,)), Queue(4, (1,))
    one.push(numbers(1, 2, 3, 4, 5, 6))
    two.load_state_dict(one.state_dict())
    for queue in (one, two):
        queue.push(numbers(7))
    assert held(one) == held(two) == [4, 5, 6, 7]


def test_length_zero_is_always_empty():
    queue = Queue(0, (1,))
    queue.push(numbers(1, 2))
    assert len(queue) == 0 and not queue.full and len(queue.read()) == 0


def test_wrong_shapes_and_lengths_are_refused():
    with pytest.raises(UsageError, match="cannot hold"):
        Queue(-1, (1,))
    with pytest.raises(UsageError, match="shape"):
        Queue(2, (3,)).push(torch.zeros(1, 4))
