from __future__ import annotations

import numpy as np
import pytest

from osteon.core.errors import DataError, UsageError
from osteon.data.policy import choose_size, make_plan
from osteon.modalities.image import Header
from osteon.parts.types import DataSpec


def plan(*headers: tuple[int, int, int, str], size=None, like=None):
    return make_plan({i: Header(*h) for i, h in enumerate(headers)}, size=size, like=like, source="here")


def like(channels: int = 3, size: int = 16, scale: float = 255.0) -> DataSpec:
    return DataSpec("image", channels, size, (0.5,) * channels, (0.5,) * channels, scale)


@pytest.mark.parametrize(("sides", "size", "expected", "words"), [
    ([(32, 32), (32, 32)], None, 32, "kept"),
    ([(256, 256)], None, 256, "kept"),
    ([(257, 257)], None, 224, "resized"),
    ([(32, 48), (32, 48)], None, 32, "resized"),  # of one size but not square
    ([(30, 90), (45, 70), (300, 61)], None, 40, "median shorter side 45"),
    ([(400, 300), (500, 700), (100, 100)], None, 224, "resized"),
    ([(5, 9), (6, 7)], None, 8, "resized"),
    ([(32, 32)], 64, 64, "size=64 was given"),
    ([(64, 64)], 64, 64, "kept")])
def test_size(sides, size, expected, words):
    side, note = choose_size(np.array(sides), size)
    assert side == expected and words in note


def test_size_refused():
    with pytest.raises(UsageError):
        choose_size(np.array([(8, 8)]), 0)


def test_grey_among_colour_becomes_rgb_and_is_said():
    chosen = plan((8, 8, 1, "uint8"), (8, 8, 3, "uint8"), (8, 8, 3, "uint8"))
    assert chosen.channels == 3 and any("1 grey images among 2 in colour" in note for note in chosen.notes)
    assert plan((8, 8, 1, "uint8")).channels == 1 and plan((8, 8, 5, "uint8")).channels == 5


def test_depth_follows_the_majority_and_floats_do_not_mix():
    assert plan((8, 8, 1, "uint8"), (8, 8, 1, "uint8"), (8, 8, 1, "uint16")).dtype == "uint8"
    assert plan((8, 8, 1, "uint8"), (8, 8, 1, "uint16")).dtype == "uint16"
    mixed = plan((8, 8, 1, "uint8"), (8, 8, 1, "float32"), (8, 8, 1, "uint8"))
    assert mixed.dtype == "uint8" and list(mixed.rejected) == [1] and "float32" in mixed.rejected[1]
    mixed = plan((8, 8, 1, "uint8"), (8, 8, 1, "float32"), (8, 8, 1, "float32"))
    assert mixed.dtype == "float32" and list(mixed.rejected) == [0]


def test_like_a_trained_model():
    chosen = plan((40, 60, 1, "uint8"), (32, 32, 1, "uint16"), like=like())
    assert (chosen.size, chosen.channels, chosen.dtype) == (16, 3, "uint8")
    assert plan((40, 60, 3, "uint8"), like=like(channels=1, scale=65535)).dtype == "uint16"
    assert plan((40, 60, 3, "uint8"), size=24, like=like()).size == 24
    with pytest.raises(DataError, match="5 channels"):
        plan((8, 8, 5, "uint8"), like=like())
    with pytest.raises(DataError, match="float32"):
        plan((8, 8, 3, "uint8"), like=like(scale=1.0))
