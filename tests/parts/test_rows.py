"""Rows read where they are asked for are the rows of the matrix."""

import numpy as np
import pytest
import torch

from osteon.parts.rows import BLOCK, OneHot, Rows

X = np.arange(30, dtype=np.float32).reshape(10, 3)


def kinds(tmp_path):  # type: ignore[no-untyped-def]
    np.save(tmp_path / "x.npy", X.astype(np.float64))
    return [Rows(X), Rows(torch.from_numpy(X)), Rows(np.load(tmp_path / "x.npy", mmap_mode="r"))]


def test_reads_what_numpy_would(tmp_path) -> None:  # type: ignore[no-untyped-def]
    for rows in kinds(tmp_path):
        assert rows.shape == (10, 3) and len(rows) == 10 and rows[2:4].dtype == torch.float32
        assert np.array_equal(rows[2:4], X[2:4]) and np.array_equal(rows[8:99], X[8:])
        for at in ([3], [4, 5, 6], [4, 6, 5, 7], [9, 0, 0, 4], []):
            assert np.array_equal(rows[torch.tensor(at, dtype=torch.int64)], X[np.array(at, dtype=int)])
        assert np.array_equal(torch.cat(list(rows.split(4))), X) and np.array_equal(np.asarray(rows), X)
        assert np.allclose(rows.mean(), X.mean(0))


def test_parts_of_parts_joined_and_changed(tmp_path) -> None:  # type: ignore[no-untyped-def]
    for rows in kinds(tmp_path):
        odd = rows.subset(np.array([1, 3, 5, 7])).subset(np.array([3, 0]))
        assert np.array_equal(odd[:], X[[7, 1]])
        both = odd.followed_by(rows)
        assert both.shape == (12, 3) and np.array_equal(both[torch.tensor([11, 0, 2, 1])], X[[9, 7, 0, 1]])
        changed = both.mapped(lambda x: x + 1).mapped(lambda x: 2 * x)
        assert np.array_equal(changed[:2], 2 * (X[[7, 1]] + 1)) and np.array_equal(both[:2], X[[7, 1]])
        with pytest.raises(ValueError, match="subsets"):
            both.subset(np.array([0]))


def test_nothing_is_read_before_it_is_asked_for() -> None:
    reads: list[int] = []

    class Source(np.ndarray):
        def __getitem__(self, at):  # type: ignore[no-untyped-def]
            out = super().__getitem__(at)
            reads.append(len(out))
            return out

    source = np.repeat(np.arange(2 * BLOCK + 5, dtype=np.float32)[:, None], 2, 1).view(Source)
    rows = Rows(source).subset(np.arange(1, len(source), 2)).mapped(lambda x: x)
    assert not reads
    assert rows.mean().tolist() == [BLOCK + 2, BLOCK + 2]  # of 1, 3, ..., 2 BLOCK + 3
    assert sum(reads) == len(rows) and max(reads) <= BLOCK


def test_labels_one_hot() -> None:
    assert OneHot(np.array([2, 0, 1]), 3)[torch.tensor([[0, 1], [2, 2]])].tolist() == [
        [[0, 0, 1], [1, 0, 0]], [[0, 1, 0], [0, 1, 0]]]
    several = np.array([[1, 1, 0], [0, 0, 1]], dtype=np.uint8)
    assert OneHot(several, 3)[torch.tensor([1])].tolist() == [[0.0, 0.0, 1.0]] and OneHot(several, 3).shape == (2, 3)
