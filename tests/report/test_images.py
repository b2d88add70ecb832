"""Pictures: what goes in comes out of the PNG again."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from osteon.core.errors import UsageError
from osteon.report.images import LONGEST, data_uri


def decode(uri: str) -> np.ndarray:
    head, _, body = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_pixels_survive(channels):
    image = np.random.default_rng(0).integers(0, 256, (6, 4, channels), dtype=np.uint8)
    shown = image[..., :3] if channels >= 3 else image[..., 0]
    np.testing.assert_array_equal(decode(data_uri(image)), shown)


def test_a_plain_grey_image_and_one_with_strides():
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    np.testing.assert_array_equal(decode(data_uri(image[::-1, ::2])), image[::-1, ::2])


def test_large_pictures_are_reduced_with_their_proportions():
    assert decode(data_uri(np.zeros((400, 800, 3), np.uint8))).shape == (LONGEST // 2, LONGEST, 3)


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8),
                                   np.zeros(4, np.uint8)])
def test_refusals(image):
    with pytest.raises(UsageError, match="uint8"):
        data_uri(image)
