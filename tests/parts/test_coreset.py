from __future__ import annotations

import numpy as np
import pytest

from osteon.parts.coreset import farthest_first, spherical_kmeans, thin, unit_rows

LINE = np.array([[0.0], [1.0], [10.0], [4.0]])


def gap(x: np.ndarray):
    return lambda a, b: np.abs(x[a][:, None] - x[b][None, :])


def test_farthest_first_on_a_line() -> None:
    rows, distances = farthest_first(LINE, 4, 0)
    assert rows.tolist() == [0, 2, 3, 1]
    assert distances.tolist() == [np.inf, 10, 4, 1]
    assert farthest_first(LINE, 2, 2)[0].tolist() == [2, 0]


def test_farthest_first_never_takes_a_copy_before_something_new_nor_a_sample_twice() -> None:
    x = np.array([[0.0], [0.0], [0.0], [5.0]])
    rows, distances = farthest_first(x, 4, 1)
    assert rows[:2].tolist() == [1, 3] and sorted(rows.tolist()) == [0, 1, 2, 3]
    assert distances[2:].tolist() == [0, 0]


def test_farthest_first_covers_within_twice_the_best() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(9, 2))
    rows, _ = farthest_first(x, 3, 4)
    away = np.linalg.norm(x[:, None] - x[None], axis=2)
    from itertools import combinations
    best = min(away[:, list(c)].min(1).max() for c in combinations(range(9), 3))
    assert away[:, rows].min(1).max() <= 2 * best + 1e-6
    naive = [4]
    while len(naive) < 3:
        naive.append(int(away[:, naive].min(1).argmax()))
    assert rows.tolist() == naive


def test_thin_keeps_the_first_of_what_repeats() -> None:
    x = np.array([0.0, 0.5, 1.0, 3.0, 2.5, 9.0])
    assert thin(gap(x), 6, 1.0).tolist() == [0, 3, 5]
    assert thin(gap(x), 6, 0.5).tolist() == [0, 2, 3, 5]  # at the threshold a sample repeats; 1.0 is far from 0
    assert thin(gap(x), 6, -1.0).tolist() == [0, 1, 2, 3, 4, 5]
    assert thin(gap(x), 6, 100.0).tolist() == [0]
    assert thin(gap(x), 6, 1.0, ["a", "b", "b", "a", "a", "b"]).tolist() == [0, 1, 3, 5]
    assert thin(gap(x), 0, 1.0).tolist() == []


def test_thin_over_many_blocks_is_the_plain_loop() -> None:
    x = np.random.default_rng(1).uniform(0, 3000, 1300)
    kept: list[int] = []
    for i, value in enumerate(x):
        if all(abs(value - x[j]) > 1.0 for j in kept):
            kept.append(i)
    assert len(kept) > 600
    assert thin(gap(x), 1300, 1.0).tolist() == kept


def test_thin_compares_with_every_exemplar_of_earlier_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.concatenate([np.arange(0, 1400, 2), np.arange(1, 1400, 2)]).astype(float)
    assert thin(gap(x), 1400, 1.0).tolist() == list(range(700))  # the odd numbers lie exactly 1 from even ones
    monkeypatch.setattr("osteon.parts.coreset._BLOCK", 8)  # 64 exemplars at a time
    assert thin(gap(x), 1400, 1.0).tolist() == list(range(700))


def test_unit_rows() -> None:
    assert np.allclose(unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]])), [[0.6, 0.8], [0, 0]])


def test_kmeans_finds_two_directions_whatever_the_lengths() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal([5, 0], 0.1, (20, 2)), rng.normal([0, 1], 0.02, (20, 2))])
    centres = spherical_kmeans(x, 2, 0)
    assert np.allclose(np.linalg.norm(centres, axis=1), 1, atol=1e-6)
    assert np.allclose(sorted(centres[:, 0]), [0, 1], atol=0.02)
    for c in range(2):  # a centre is the direction of the sum of its unit-length members
        mine = unit_rows(x)[(unit_rows(x) @ centres.T).argmax(1) == c]
        assert np.allclose(centres[c], unit_rows(mine.sum(0, keepdims=True))[0], atol=1e-6)


@pytest.mark.parametrize("k", [5, 9])
def test_kmeans_with_few_rows_gives_them_all(k: int) -> None:
    x = np.random.default_rng(0).normal(size=(5, 3))
    assert np.allclose(spherical_kmeans(x, k, 0), unit_rows(x))


def test_kmeans_of_copies_has_no_empty_or_broken_centre() -> None:
    centres = spherical_kmeans(np.ones((30, 4)), 3, 0)
    assert centres.shape == (3, 4) and np.allclose(centres, 0.5)


def test_kmeans_repeats_itself_and_leaves_no_cluster_empty() -> None:
    x = np.random.default_rng(0).normal(size=(200, 5))
    assert np.array_equal(spherical_kmeans(x, 10, 3), spherical_kmeans(x, 10, 3))
    assert not np.array_equal(spherical_kmeans(x, 10, 3), spherical_kmeans(x, 10, 4))
    assert len(set((unit_rows(x) @ spherical_kmeans(x, 10, 3).T).argmax(1))) == 10
