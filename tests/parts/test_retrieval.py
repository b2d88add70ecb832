from __future__ import annotations

import numpy as np

from osteon.parts.retrieval import class_means, nearest_rows, partner_ranks


def test_ranks_by_hand_and_ties_count_against_the_partner():
    queries, gallery = np.eye(3), np.array([[1.0, 0, 0], [0.9, 0.1, 0], [0, 0, 1]])
    assert partner_ranks(queries, gallery).tolist() == [0, 0, 0]
    assert partner_ranks(np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]), gallery).tolist() == [2, 1, 2]
    assert partner_ranks(np.ones((4, 2)), np.ones((4, 2))).tolist() == [3, 3, 3, 3]


def test_ranks_in_pieces_are_ranks_of_the_whole():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((1500, 4)), rng.standard_normal((1500, 4))
    score = a @ b.T
    want = (score > score.diagonal()[:, None]).sum(1)
    np.testing.assert_array_equal(partner_ranks(a, b), want)
    assert nearest_rows(a, b, 2).shape == (1500, 2) and (nearest_rows(a, b)[:, 0] == (a @ b.T).argmax(1)).all()


def test_class_means_are_unit_and_absent_classes_zero():
    means = class_means(np.array([[1.0, 0], [0, 1], [0, 1]]), np.array([0, 0, 2]), 4)
    np.testing.assert_allclose(means, [[2**-0.5, 2**-0.5], [0, 0], [0, 1], [0, 0]])
