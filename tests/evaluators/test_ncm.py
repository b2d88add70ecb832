"""Nearest class mean by hand, streamed, and with classes it has not seen."""

import numpy as np
import pytest

from osteon.core.errors import UsageError
from osteon.evaluators.ncm import NCM


def test_by_hand() -> None:
    x = np.array([[2, 0], [0, 5], [-3, 0]], dtype=np.float32)  # unit: (1,0), (0,1), (-1,0)
    y = np.array([0, 0, 1])  # means (0.5, 0.5), (-1, 0)
    found = NCM()(x, y, np.array([[0, 9]], dtype=np.float32), classes=2)  # d^2 = 0.5, 2
    assert found[0].tolist() == pytest.approx([1 / (1 + np.exp(-1.5)), 1 / (1 + np.exp(1.5))], abs=1e-6)


def test_a_spread_class_pays_less_than_its_angle_says() -> None:
    """Euclidean distance to means that are not scaled again: d^2 = 1 + |mu|^2 - 2 f mu differs from the cosine."""
    angle = np.deg2rad([60, -60, 70])
    x = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)  # class 0 mean (0.5, 0), class 1 at 70 degrees
    query = np.deg2rad(25)  # 25 degrees from class 0's direction, 45 from class 1's, but d^2: 0.344 and 0.586
    far = np.deg2rad(38)  # 38 and 32: the cosine prefers class 1; d^2: 0.462 and 0.304
    near_half = np.deg2rad(95)
    test = np.stack([[np.cos(a), np.sin(a)] for a in (query, far, near_half)]).astype(np.float32)
    assert NCM()(x, np.array([0, 0, 1]), test, classes=2).argmax(1).tolist() == [0, 1, 1]
    # 112.5 degrees away from class 0 and 110 from class 1 (cosine: class 1), d^2: 1.63 and 2.68 (Euclid: class 0)
    away = np.deg2rad(180)
    found = NCM()(x, np.array([0, 0, 1]), np.array([[np.cos(away), np.sin(away)]], dtype=np.float32), classes=2)
    assert found.argmax() == 0


def test_streaming_equals_one_go_and_classes_may_come_later() -> None:
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(4), 25)
    x = (rng.normal(size=(100, 5)) + y[:, None]).astype(np.float32)
    whole = NCM()(x, y, x, classes=4)
    stream = NCM()
    stream.partial_fit(x[:50], y[:50], classes=2)  # two classes first
    assert stream.scores(x).shape == (100, 2)
    for rows in np.split(np.arange(50, 100), 5):
        stream.partial_fit(x[rows], y[rows], classes=4)
    assert np.allclose(stream.scores(x), whole, atol=1e-6)


def test_unseen_class_gets_nothing() -> None:
    x = np.eye(3, dtype=np.float32)
    found = NCM()(x, np.array([0, 0, 2]), x, classes=4)
    assert (found[:, [1, 3]] == 0).all() and np.allclose(found.sum(1), 1)


def test_length_counts_only_when_asked() -> None:
    x = np.array([[1, 0], [10, 0]], dtype=np.float32)
    test = np.array([[9, 0]], dtype=np.float32)
    assert NCM(normalise=False)(x, np.array([0, 1]), test, classes=2).argmax() == 1
    assert NCM()(x, np.array([0, 1]), test, classes=2)[0].tolist() == pytest.approx([0.5, 0.5])


def test_multi_label() -> None:
    x = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=np.float32)
    y = np.array([[1, 1, 0], [1, 1, 0], [0, 1, 0], [0, 1, 0]], dtype=np.uint8)
    found = NCM()(x, y, x, classes=3)
    # label 0: |(1,0) - (0,1)|^2 = 2 against 0; label 1 is on every sample; label 2 on none
    assert found[0].tolist() == pytest.approx([1 / (1 + np.exp(-2)), 1, 0], abs=1e-6)
    assert found[2, 0] == pytest.approx(1 / (1 + np.exp(2)), abs=1e-6)


def test_wrong_use_is_named() -> None:
    with pytest.raises(UsageError, match="partial_fit"):
        NCM().scores(np.eye(2))
    started = NCM().partial_fit(np.eye(2), np.array([0, 1]), classes=2)
    for x, y, k in [(np.eye(3), np.arange(3), 3), (np.eye(2), np.zeros(2, dtype=int), 1),
                    (np.eye(2), np.eye(2, dtype=int), 2)]:
        with pytest.raises(UsageError, match="continue"):
            started.partial_fit(x, y, classes=k)
