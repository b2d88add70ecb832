"""Controls: values by hand and by naive loops."""

import numpy as np
import pytest
import torch

from osteon.core.errors import DataError
from osteon.modalities._image_controls import image_statistics, random_convolutions, raw_pixels, standardise


def test_raw_pixels_keep_order_and_scale() -> None:
    images = np.arange(2 * 2 * 2 * 2).reshape(2, 2, 2, 2).astype(np.uint8)
    assert np.allclose(raw_pixels(images), images.reshape(2, 8) / 255)
    assert np.allclose(raw_pixels(images.astype(np.uint16)), images.reshape(2, 8) / 65535)
    assert np.allclose(raw_pixels(torch.from_numpy(images).float()), images.reshape(2, 8))


def test_large_images_are_averaged_over_areas() -> None:
    images = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    assert raw_pixels(images, side=2).tolist() == [[2.5, 4.5, 10.5, 12.5]]


def test_statistics_by_hand() -> None:
    images = np.array([[[[0, 255], [255, 0]], [[51, 51], [51, 51]]]], dtype=np.uint8)
    # all means, then all deviations, maxima, minima
    assert image_statistics(images)[0].tolist() == pytest.approx([0.5, 0.2, 0.5, 0, 1, 0.2, 0, 0.2], abs=1e-6)


def test_random_convolutions_by_loop() -> None:
    rng = np.random.default_rng(0)
    images = rng.random((3, 2, 5, 4)).astype(np.float32)
    weight = torch.randn(7, 2, 3, 3, generator=torch.Generator().manual_seed(5)).numpy()
    wanted = np.zeros((3, 7))
    for n in range(3):
        for f in range(7):
            values = [max(0.0, float((images[n, :, r:r + 3, c:c + 3] * weight[f]).sum()) - 0.5)
                      for r in range(3) for c in range(2)]
            wanted[n, f] = np.mean(values)
    assert np.allclose(random_convolutions(images, filters=7, bias=-0.5, seed=5), wanted, atol=1e-5)


def test_block_and_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 6, 6), dtype=np.uint8)
    whole = random_convolutions(images, filters=16)
    assert (whole == random_convolutions(images, filters=16)).all()
    assert (whole != random_convolutions(images, filters=16, seed=1)).any()
    monkeypatch.setattr("osteon.modalities._image_controls.BLOCK", 2)
    assert np.allclose(random_convolutions(images, filters=16), whole, atol=1e-6)
    assert len(raw_pixels(images)) == len(image_statistics(images)) == 5


def test_standardise_uses_training_statistics_only() -> None:
    train, test = np.array([[0.0, 7], [2, 7]]), np.array([[5.0, 9]])
    a, b = standardise(train, test)
    assert a.tolist() == [[-1, 0], [1, 0]] and b.tolist() == [[4, 0]]


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(DataError, match="N, C, H, W"):
        raw_pixels(np.zeros((3, 4, 4)))
    with pytest.raises(DataError, match="smaller"):
        random_convolutions(np.zeros((1, 1, 2, 2)))
