from __future__ import annotations

import numpy as np
import pytest

from osteon.core.errors import DataError, UsageError
from osteon.parts.pseudo_labels import PseudoLabels

SCORES = np.array([[0.7, 0.2, 0.1], [0.3, 0.4, 0.3], [0.0, 0.1, 0.9]])


def test_hard_labels_and_their_confidence_by_hand():
    every = PseudoLabels()(SCORES)
    assert every.labels.tolist() == [0, 1, 2] and every.labels.dtype == np.int64 and every.kept.all()
    assert every.confidence.tolist() == [0.7, 0.4, 0.9]
    assert PseudoLabels(min_conf=0.7)(SCORES).kept.tolist() == [True, False, True]


def test_several_labels_are_as_sure_as_their_least_sure_answer():
    found = PseudoLabels(min_conf=0.75)(np.array([[0.9, 0.2], [0.6, 0.99], [0.1, 0.1]]), multi_label=True)
    assert found.labels.tolist() == [[1, 0], [1, 1], [0, 0]] and found.labels.dtype == np.uint8
    assert found.confidence.tolist() == pytest.approx([0.8, 0.6, 0.9]) and found.kept.tolist() == [True, False, True]


def test_what_leaves_nothing_or_makes_no_sense_is_refused():
    with pytest.raises(DataError, match="surest has 0.900"):
        PseudoLabels(min_conf=0.95)(SCORES)
    with pytest.raises(DataError, match="No sample"):
        PseudoLabels()(np.zeros((0, 3)))
    for wrong in (-0.1, 1.0):
        with pytest.raises(UsageError, match="min_conf"):
            PseudoLabels(min_conf=wrong)
