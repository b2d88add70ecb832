"""Few-shot episodes: chance on noise, perfect on separated classes, and the counts asked for."""

import numpy as np
import pytest

from osteon.core.errors import DataError, UsageError
from osteon.evaluators.few_shot import FewShot


def separated(n: int, classes: int = 8) -> tuple[np.ndarray, np.ndarray]:
    y = np.arange(n) % classes
    return (np.eye(classes)[y] + 0.001 * np.arange(n)[:, None] / n).astype(np.float32), y


def test_separated_classes_are_told_apart() -> None:
    x, y = separated(80)
    found = FewShot(episodes=20).episodes(x, y, x, y, classes=8)
    assert found.accuracies.tolist() == [1.0] * 20 and found.interval.low == found.interval.high == 1


@pytest.mark.parametrize("ways", [2, 5])
def test_noise_is_chance(ways: int) -> None:
    rng = np.random.default_rng(0)
    x, test = rng.normal(size=(2, 400, 6)).astype(np.float32)
    found = FewShot(ways=ways, episodes=300).episodes(x, np.arange(400) % 8, test, np.arange(400) % 8, classes=8)
    assert found.interval.mean == pytest.approx(1 / ways, abs=0.02)
    assert found.interval.low < found.interval.mean < found.interval.high


def test_more_shots_help() -> None:
    rng = np.random.default_rng(1)
    centres, y = rng.normal(size=(8, 10)), np.arange(400) % 8
    x, test = (centres[y] + 1.5 * rng.normal(size=(2, 400, 10))).astype(np.float32)
    one, ten = (FewShot(shots=s, episodes=100).episodes(x, y, test, y, classes=8).interval for s in (1, 10))
    assert ten.low > one.high


def test_one_shot_by_hand() -> None:
    """Two classes, one training sample each: the episode is fully determined."""
    x = np.array([[1, 0], [0, 1]], dtype=np.float32)
    test = np.array([[2, 1], [1, 2], [3, 1]], dtype=np.float32)
    found = FewShot(ways=2, shots=1, episodes=3).episodes(x, np.array([0, 1]), test, np.array([0, 0, 1]), classes=2)
    assert found.accuracies.tolist() == pytest.approx([1 / 3] * 3)  # only the first is nearer to its own class


def test_scores_use_the_shots_only() -> None:
    x, y = separated(80)
    y = np.where(np.arange(80) < 40, y, 0)  # class 0 has many, and most of them look like others
    scores = FewShot(shots=1)(x[:40], y[:40], x, classes=8, seed=3)
    assert scores.shape == (80, 8) and (scores[:40].argmax(1) == y[:40]).all()
    draws = [FewShot(shots=1)(x, y, x, classes=8, seed=s) for s in (0, 0, 1)]
    assert (draws[0] == draws[1]).all() and (draws[0] != draws[2]).any()


def test_classes_too_small_take_no_part() -> None:
    x, y = separated(80)
    keep = np.flatnonzero((y < 2) | (np.arange(80) < 8))
    found = FewShot(ways=5, shots=5, episodes=5).episodes(x[keep], y[keep], x, y, classes=8)
    assert found.accuracies.tolist() == [1.0] * 5
    with pytest.raises(DataError, match="Only 0 classes"):
        FewShot(shots=11).episodes(x, y, x, y, classes=8)


def test_wrong_use_is_named() -> None:
    for options in ({"ways": 1}, {"shots": 0}, {"queries": 0}, {"episodes": 1}):
        with pytest.raises(UsageError, match=next(iter(options))):
            FewShot(**options)
    x = np.eye(4, dtype=np.float32)
    with pytest.raises(UsageError, match="one label"):
        FewShot()(x, np.eye(4, dtype=np.uint8), x, classes=4)
